"""The rollout worker with a real vLLM engine on a CPU, in the order of a run: one engine serves all tests here."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from rlinf_vlm.rollout.records import PromptRef, Sampling, digest
from rlinf_vlm.types import PushSettings
from tests.engine_run import (
    BROKEN,
    TOO_LONG,
    engine_config,
    gap,
    make_worker,
    moved,
    packed,
    push,
    read_weights,
    reference_logprobs,
    write_problems,
    write_weights,
)
from tests.small_run import write_model

USABLE = tuple(range(8))
SAMPLED = Sampling(temperature=1.0, top_p=1.0, top_k=-1, max_new_tokens=24, n=4)
LANGUAGE_MODEL = ("model.", "lm_head.")


class Run:
    """A loaded worker, its folder, and the weights that it was last pushed."""

    def __init__(self, folder):
        write_model(folder / "model")
        write_problems(folder)
        self.folder = folder
        self.weights = read_weights(folder / "model")
        self.worker = make_worker(engine_config(folder))
        self.facts = self.worker.load()
        self.worker.open_push(PushSettings(transport="shm"))
        self.prompts = {row: self.worker._rows["train"]._reader.prompt(row) for row in USABLE}

    def push(self, weights, version):
        push(self.worker, weights, version)
        self.weights = {**self.weights, **weights}

    def ask(self, rows=USABLE, sampling=SAMPLED, evaluation=False, seed=0):
        refs = [PromptRef(row=row, group=100 + row, seed=seed + row) for row in rows]
        return self.worker.generate(refs, sampling, "eval" if evaluation else "train")

    def gap(self, rollouts, temperature=1.0):
        model = self.folder / f"model_{time.monotonic_ns()}"
        write_weights(self.folder / "model", self.weights, model)
        banned = list(self.worker.engine._banned)
        return gap(rollouts, reference_logprobs(model, self.prompts, rollouts, temperature, banned))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Before its first push, for the first tests."""
    made = Run(tmp_path_factory.mktemp("engine"))
    yield made
    made.worker.close()


@pytest.fixture
def run(fresh):
    """With weights."""
    if fresh.worker._version is None:
        fresh.push(fresh.weights, 0)
    return fresh


def test_nothing_is_generated_before_a_push(fresh):
    with pytest.raises(RuntimeError, match="push them first"):
        fresh.ask()


def test_a_weight_that_the_engine_does_not_have_is_refused(fresh):
    fresh.worker.begin_push()
    for bucket, path in packed({"model.layers.0.nonsense.weight": torch.zeros(2)}):
        with pytest.raises(Exception, match=r"does not take model\.layers\.0\.nonsense\.weight"):
            fresh.worker.receive_bucket(bucket, path)


def test_a_weight_that_did_not_come_is_named_and_may_come_later(fresh):
    late = ("visual.blocks.1.norm2.weight", "model.layers.1.self_attn.k_proj.weight", "visual.merger.mlp.0.bias")
    rest = {name: tensor for name, tensor in fresh.weights.items() if name not in late}
    fresh.worker.begin_push()
    for bucket, path in packed(rest):
        fresh.worker.receive_bucket(bucket, path)
    with pytest.raises(RuntimeError, match="at 3 places") as error:
        fresh.worker.finish_push(0)
    text = str(error.value)
    assert "visual.blocks.1.norm2.weight did not come" in text
    assert "layers.1.self_attn.qkv_proj got" in text and "a part of what is fused in it is missing" in text
    assert "visual.merger.mlp.0.bias did not come, though other weights of its layer did" in text
    for bucket, path in packed({name: fresh.weights[name] for name in late}):
        fresh.worker.receive_bucket(bucket, path)
    fresh.worker.finish_push(0)
    assert fresh.gap(fresh.ask().rollouts)[0] < 1e-5


def test_logprobs_are_those_of_the_trainers_model(run):
    answers = run.ask()
    assert [rollout.row for rollout in answers.rollouts] == [row for row in USABLE for _ in range(4)]
    assert [rollout.member for rollout in answers.rollouts] == [0, 1, 2, 3] * 8
    for rollout in answers.rollouts:
        prompt = run.prompts[rollout.row].input_ids.tolist()
        assert (rollout.prompt_length, rollout.prompt_digest) == (len(prompt), digest(prompt))
        assert (rollout.group, rollout.version, rollout.answer) == (100 + rollout.row, 0, "red")
        assert 0 < len(rollout.token_ids) <= 24
    assert len({len(run.prompts[row].input_ids) for row in USABLE}) > 4, "prompts of several lengths"
    mean, largest = run.gap(answers.rollouts)
    assert mean < 1e-5 and largest < 1e-4


def test_a_temperature_is_in_the_logprobs(run):
    answers = run.ask(sampling=Sampling(temperature=0.7, top_p=1.0, top_k=-1, max_new_tokens=24, n=2))
    assert run.gap(answers.rollouts, 0.7)[0] < 1e-5
    assert run.gap(answers.rollouts, 1.0)[0] > 1e-2


def test_greedy_answers_take_the_likeliest_token(run):
    greedy = Sampling(temperature=0.0, top_p=1.0, top_k=-1, max_new_tokens=8, n=2)
    answers = run.ask(sampling=greedy, seed=0).rollouts
    assert [a.token_ids for a in answers] == [a.token_ids for a in run.ask(sampling=greedy, seed=5).rollouts]
    assert all(first.token_ids == second.token_ids for first, second in zip(answers[::2], answers[1::2], strict=True))
    assert run.gap(answers)[0] < 1e-5


def test_the_same_seed_gives_the_same_tokens_and_members_differ(run):
    first, second, other = run.ask(), run.ask(rows=USABLE[::-1]), run.ask(seed=1000)
    said = {(a.row, a.member): a.token_ids for a in first.rollouts}
    assert said == {(a.row, a.member): a.token_ids for a in second.rollouts}
    assert said != {(a.row, a.member): a.token_ids for a in other.rollouts}
    assert len(set(said.values())) == len(said)


def test_marks_of_pictures_are_never_sampled(run):
    banned = run.worker.engine._banned
    tokens = [token for answer in run.ask(seed=7).rollouts for token in answer.token_ids]
    assert len(banned) == 4 and len(tokens) > 600, "so many that 8 of them would be expected"
    assert not set(banned) & set(tokens)


def test_an_answer_ends_with_a_token_that_ends_it(run):
    ends = run.worker._tokenizer.convert_tokens_to_ids(
        ["<|im_end|>", "<|endoftext|>"]
    )  # as generation_config.json says
    answers = [answer for seed in range(0, 500, 100) for answer in run.ask(seed=seed).rollouts]
    ended = [answer for answer in answers if answer.finish_reason == "stop"]
    assert {answer.token_ids[-1] for answer in ended} == set(ends)
    assert not any("<|" in answer.text for answer in ended)
    cut = [answer for answer in answers if answer.finish_reason == "length"]
    assert cut and all(len(answer.token_ids) == 24 and not set(ends) & set(answer.token_ids) for answer in cut)


def test_rows_that_cannot_be_asked_are_dropped_with_their_place(run):
    answers = run.ask(rows=(0, BROKEN, TOO_LONG, 1))
    assert [rollout.row for rollout in answers.rollouts[::4]] == [0, 1]
    broken, long = answers.dropped
    assert (broken.row, broken.group) == (BROKEN, 100 + BROKEN)
    assert "part.parquet row 8: image" in broken.reason and "does not decode" in broken.reason
    assert "part.parquet row 9: the prompt has" in long.reason and "data.max_prompt_length=120" in long.reason


def test_evaluation_rows_are_other_rows(run):
    (train, evaluation) = run.ask(rows=(3,)).rollouts[0], run.ask(rows=(6,), evaluation=True).rollouts[0]
    assert train.question == evaluation.question and train.prompt_digest == evaluation.prompt_digest
    assert run.facts.rows == {"train": 10, "eval": 10}
    assert run.facts.max_model_len == 144 and run.facts.kv_cache_tokens > 10_000


def test_a_push_changes_what_is_said_to_the_pushed_models_own(run):
    before = run.ask()
    run.push(moved(run.weights, seed=1), 1)
    after = run.ask()
    assert {a.version for a in after.rollouts} == {1}
    assert [a.token_ids for a in before.rollouts] != [a.token_ids for a in after.rollouts]
    assert run.gap(after.rollouts)[0] < 1e-5
    assert run.gap(before.rollouts)[0] > 1e-2


def test_a_push_of_the_trained_parts_leaves_the_others(run):
    run.push(moved(run.weights, seed=2, only=LANGUAGE_MODEL), 2)
    assert run.gap(run.ask().rollouts)[0] < 1e-5
    run.push(moved(run.weights, seed=3, only=["visual."]), 3)
    assert run.gap(run.ask().rollouts)[0] < 1e-5


def test_it_sleeps_on_a_cpu_without_losing_anything(run):
    before = run.ask()
    run.worker.sleep()
    assert [a.token_ids for a in run.ask().rollouts] == [a.token_ids for a in before.rollouts]


def test_an_engine_ends_with_its_worker_however_that_ends(run, tmp_path):
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, pathlib, psutil, signal\n"
        "from tests.engine_run import engine_config, make_worker\n"
        "if __name__ == '__main__':\n"
        f"    make_worker(engine_config(pathlib.Path({str(run.folder)!r}))).load()\n"
        "    print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    children = [int(pid) for pid in done.stdout.split("\n")[-2].split()]
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert children and not any(psutil.pid_exists(pid) for pid in children)


def test_a_dead_engine_is_an_error_at_once(run):
    """The last test: it kills the engine that all share."""
    processes = [child for child in psutil.Process().children(recursive=True) if "EngineCore" in child.name()]
    assert processes and all(os.getpgid(process.pid) == os.getpgid(0) for process in processes)
    long = Sampling(temperature=1.0, top_p=1.0, top_k=-1, max_new_tokens=24, n=64)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(run.ask, sampling=long)
        time.sleep(0.3)
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="process has died"):
            waiting.result(timeout=20)
    with pytest.raises(RuntimeError, match="process has died"):
        run.ask()
    with pytest.raises(RuntimeError, match="process has died"):
        run.worker.begin_push()
