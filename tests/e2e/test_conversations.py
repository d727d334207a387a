"""Conversations of several turns with a real vLLM engine on a CPU: its log-probabilities are the trainer's model's."""

from __future__ import annotations

import pytest
import torch

from rlinf_vlm.rollout.records import PromptRef, Rollout, Sampling
from rlinf_vlm.types import IGNORE_INDEX, PushSettings
from rlinf_vlm.workers.rl_batch import answer_sample
from tests.engine_run import engine_config, gap, make_worker, push, read_weights, reference_logprobs, write_problems
from tests.small_run import write_model

TURN = 120
SAMPLED = Sampling(temperature=1.0, top_p=1.0, top_k=-1, max_new_tokens=3 * TURN, n=8)
USABLE = tuple(range(8))


class Run:
    """A loaded worker whose environments can be changed."""

    def __init__(self, folder, env):
        self.folder = folder
        self.config = engine_config(
            folder,
            algorithm__sampling_params__max_new_tokens=SAMPLED.max_new_tokens,
            env__max_turns=3,
            env__max_new_tokens=TURN,
            env__max_observation_tokens=60,
            rollout__max_num_seqs=64,
            **env,
        )
        self.worker = make_worker(self.config)
        self.worker.load()
        self.worker.open_push(PushSettings(transport="shm"))
        push(self.worker, read_weights(folder / "model"), 0)
        self.reader = self.worker._rows["train"]._reader
        self.prompts = {row: self.reader.prompt(row) for row in USABLE}

    def ask(self, rows=USABLE, seed=0, sampling=SAMPLED) -> list[Rollout]:
        refs = [PromptRef(row=row, group=row, seed=seed + row) for row in rows]
        return list(self.worker.generate(refs, sampling, "train").rollouts)

    def gap(self, rollouts):
        banned = list(self.worker.engine._banned)
        model = self.folder / "model"
        return gap(rollouts, reference_logprobs(model, self.prompts, rollouts, 1.0, banned, self.worker._process))

    def use(self, name, **args):
        """From here on, another environment."""
        env = self.config.env.model_copy(update={"name": name, "options": args, "time_limit": 1.0})
        self.worker.config = self.config.model_copy(update={"env": env})
        from rlinf_vlm.envs import find_builder

        self.worker._build_env = find_builder(name)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversations")
    write_model(folder / "model")
    write_problems(folder)
    made = Run(folder, {"env__name": "tests.scripted_envs:showing"})
    yield made
    made.worker.close()


def three_turns(rollouts) -> list[Rollout]:
    return [rollout for rollout in rollouts if len(rollout.turns) == 3]


def test_three_turns_with_pictures_have_the_logprobs_of_the_trainers_model(run):
    rollouts = run.ask()
    long = three_turns(rollouts)
    assert len(long) >= 8 and {r.outcome for r in rollouts} == {"completed", "truncated"}
    for rollout in rollouts:
        complete = len(rollout.turns) == 3 and rollout.turns[-1].finish_reason == "stop"
        assert (rollout.outcome == "completed") == complete
        assert rollout.env_info == ({"turns": len(rollout.turns) - (not complete)} if len(rollout.turns) > 1 or complete
                                    else {})  # fmt: skip
        assert all(turn.finish_reason == "stop" for turn in rollout.turns[:-1])
        assert [len(turn.images) for turn in rollout.turns] == [0, 1, 0][: len(rollout.turns)]
        assert all(len(turn.token_ids) <= TURN for turn in rollout.turns)
    mean, largest = run.gap(long)
    assert mean < 1e-5 and largest < 1e-4


def test_what_is_trained_on_is_what_the_engine_saw(run):
    for rollout in three_turns(run.ask()):
        sample = answer_sample(run.prompts[rollout.row], rollout, run.reader.renderer)
        ids = run.prompts[rollout.row].input_ids.tolist()
        own = [False] * len(ids)
        for turn in rollout.turns:
            ids += [*turn.context_ids, *turn.token_ids]
            own += [False] * len(turn.context_ids) + [True] * len(turn.token_ids)
        assert sample.input_ids.tolist() == ids
        assert (sample.labels != IGNORE_INDEX).tolist() == own
        assert torch.equal(sample.labels[torch.tensor(own)], torch.tensor(rollout.token_ids))
        assert len(sample.images) == len(run.prompts[rollout.row].images) + 1


def test_the_same_seed_gives_the_same_conversations(run):
    first, again, other = run.ask(), run.ask(rows=USABLE[::-1]), run.ask(seed=1000)
    said = {(r.row, r.member): r.turns for r in first}
    assert said == {(r.row, r.member): r.turns for r in again} != {(r.row, r.member): r.turns for r in other}
    texts = [turn.token_ids for r in first for turn in r.turns]
    assert len(set(texts)) == len(texts), "each turn of each conversation has a seed of its own"


def test_an_environment_may_begin_with_an_observation(run):
    run.use("tests.scripted_envs:awaited")
    rollouts = run.ask()
    assert all(r.turns[0].context_ids and len(r.turns[0].images) == 1 for r in rollouts)
    assert all(r.prompt_length < len(run.prompts[r.row].input_ids) for r in rollouts)
    mean, largest = run.gap(rollouts)
    assert mean < 1e-5 and largest < 1e-4
    one = rollouts[0]
    assert len(answer_sample(run.prompts[one.row], one, run.reader.renderer).images) == 2 + (len(one.turns) > 1)


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        ("raises", "step raised RuntimeError: no idea in two lines"),
        ("leaves", "step raised RuntimeError: SystemExit(3)"),
        ("hangs", "step took longer than env.time_limit=1 seconds"),
        ("gives_nothing", "step gave a NoneType, not (observation, done, info)"),
        ("shows_nothing", "step gave an empty observation, but is not done"),
        ("talks", "an observation has 10,000,000 characters, which 60 tokens cannot hold"),
        ("shows_marks", "image placeholders"),
        ("breaks", "does not decode"),
        ("tells_secrets", "step gave an info that is no plain data"),
    ],
)
def test_what_an_environment_does_wrong_ends_its_conversation_alone(run, trouble, why):
    run.use("tests.scripted_envs:troubled", trouble=trouble, turn=1)
    rollouts = run.ask(
        rows=(0, 1, 2), sampling=Sampling(temperature=1.0, top_p=1.0, top_k=-1, max_new_tokens=TURN, n=8)
    )
    failed = [rollout for rollout in rollouts if rollout.outcome == "env_error"]
    assert failed and {rollout.row for rollout in failed} == {0}
    for rollout in failed:
        assert why in rollout.outcome_detail and "\n" not in rollout.outcome_detail
        assert len(rollout.turns) == 1, "what was said before is kept"
    assert {rollout.outcome for rollout in rollouts if rollout.row} <= {"completed", "truncated", "max_turns"}


def test_one_that_does_not_close_is_told(run):
    run.use("tests.scripted_envs:not_closing")
    rollouts = run.ask(rows=(0,))
    assert {rollout.outcome_detail for rollout in rollouts} == {"close raised OSError: the door is stuck"}
    assert "env_error" not in {rollout.outcome for rollout in rollouts}
