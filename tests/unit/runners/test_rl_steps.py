"""A step's answers on their way to the actor, and what is said of it: with an actor that notes what it is told."""

from __future__ import annotations

from typing import Any

import pytest

from rlinf_vlm.config.load import load_config
from rlinf_vlm.config.schema import Config
from rlinf_vlm.rollout.records import DroppedPrompt, ScoredRollout
from rlinf_vlm.rollout.trained import TrainedAnswer, TrainedStep, TrainedTokens
from rlinf_vlm.runners.collecting import Collected, usable_groups
from rlinf_vlm.runners.rl import shown, train_step
from rlinf_vlm.types import UserError
from tests.rollouts import scored

TRAINED = {"train/loss": 0.0, "train/grad_norm": 0.0, "time/step": 1.25}


class Actor:
    """Notes the answers that each rank is given."""

    world_size = 2

    def __init__(self) -> None:
        self.given: list[int] = []

    def call_each(self, method: str, args: Any) -> list[TrainedStep]:
        assert method == "train_rollouts"
        self.given = [sum(len(part) for part in share.minibatches) for _, _, share in args]
        answers = (TrainedAnswer(group=1, member=0, tokens=TrainedTokens(advantages=(0.5,), logprobs=(-1.0,))),)
        return [
            TrainedStep(metrics={**TRAINED, "train/updates": float(any(self.given))}, answers=answers) for _ in args
        ]


def config(*, dynamic: bool = False) -> Config:
    return load_config(
        {
            "runner": {"task_type": "reasoning", "max_steps": 3},
            "data": {"train_data_paths": "a", "max_prompt_length": 64},
            "actor": {"model": {"model_type": "qwen2.5_vl", "model_path": "m"}},
            "algorithm": {"dynamic_sampling": {"enabled": dynamic}},
        }
    )


def collected(answers: list[ScoredRollout], made: Config, *dropped: DroppedPrompt) -> Collected:
    groups = usable_groups(answers, made.algorithm.dynamic_sampling)
    return Collected(scored=tuple(answers), groups=groups, cursor=2, dropped=dropped, metrics={})


EQUAL = [scored(group, member, 0.9) for group in (0, 1) for member in (0, 1)]


@pytest.mark.parametrize(("dynamic", "given"), [(False, 4), (True, 0)])
def test_groups_of_one_reward_end_no_run(dynamic, given):
    made, actor = config(dynamic=dynamic), Actor()
    figures, trained = train_step(actor, made, 0, collected(EQUAL, made))
    assert len(trained) == 2, "what every rank trained on"
    assert sum(actor.given) == given
    assert (figures["rollout/answers"], figures["rollout/zero_std_groups"]) == (4, 1)
    assert ("no update" in shown(figures)) is dynamic


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_step_whose_prompts_could_not_be_asked_says_which(dynamic):
    made = config(dynamic=dynamic)
    with pytest.raises(UserError, match=r"step 5: .* 1 prompts could not be asked; the first: a.parquet row 3: torn"):
        train_step(Actor(), made, 4, collected([], made, DroppedPrompt(row=3, group=0, reason="a.parquet row 3: torn")))


def test_the_progress_line_says_what_was_left_out():
    made = config()
    answers = [*EQUAL, scored(2, 0, status="timeout"), scored(2, 1, status="died")]
    figures, _ = train_step(Actor(), made, 0, collected(answers, made))
    assert shown({**figures, "data/dropped_prompts": 0}).endswith("  unjudged 2  1.2 s")
    assert "dropped prompts 3" in shown({**figures, "data/dropped_prompts": 3})
