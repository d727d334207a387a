"""A step's answers: which prompts are asked, in which order, and again where a group teaches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rlinf_vlm.config.load import load_config
from rlinf_vlm.rollout.records import Answers, DroppedPrompt, PromptRef, Rollout, Sampling, ScoredRollout, Turn
from rlinf_vlm.runners.collecting import Collector, PromptStream, sampling_seed, shares
from rlinf_vlm.types import UserError

ROWS = 10


def config(**algorithm: Any) -> Any:
    return load_config(
        {
            "runner": {"task_type": "reasoning", "max_steps": 3},
            "data": {"train_data_paths": "a", "max_prompt_length": 64, "rollout_batch_size": 4},
            "actor": {"model": {"model_type": "qwen2.5_vl", "model_path": "m"}},
            "algorithm": {"group_size": 2, **algorithm},
        }
    )


def answer(prompt: PromptRef, member: int) -> Rollout:
    return Rollout(
        row=prompt.row,
        group=prompt.group,
        member=member,
        prompt_length=3,
        prompt_digest=0,
        turns=(Turn(token_ids=(1, 2), logprobs=(-0.5, -0.25), text=str(member), finish_reason="stop"),),
        outcome="completed",
        version=0,
        question="",
        answer="0",
    )


class Engines:
    """Answers each prompt n times; rows of ``broken`` are dropped."""

    world_size = 2

    def __init__(self, broken: Sequence[int] = ()) -> None:
        self.broken = broken
        self.asked: list[list[int]] = []

    def call_each(self, method: str, args: Sequence[tuple[Sequence[PromptRef], Sampling, str]]) -> list[Answers]:
        assert method == "generate"
        self.asked.append([prompt.group for part, _, _ in args for prompt in part])
        return [
            Answers(
                rollouts=tuple(
                    answer(prompt, member)
                    for prompt in part
                    if prompt.row not in self.broken
                    for member in range(sampling.n)
                ),
                dropped=tuple(
                    DroppedPrompt(row=prompt.row, group=prompt.group, reason="x")
                    for prompt in part
                    if prompt.row in self.broken
                ),
                seconds=1.0,
            )
            for part, sampling, _ in args
        ]


class Graders:
    """Rewards by group: those in ``split`` get 0 and 1, the others 1 and 1; ``status`` of all."""

    world_size = 3

    def __init__(self, split: Sequence[int], status: str = "ok") -> None:
        self.split = split
        self.status = status

    def call_each(self, method: str, args: Sequence[tuple[Sequence[Rollout]]]) -> list[list[ScoredRollout]]:
        assert method == "score"
        return [
            [
                ScoredRollout(
                    rollout=item,
                    reward=float(item.member) if item.group in self.split else 1.0,
                    status=self.status,
                    detail="why,\nin two lines",
                )
                for item in part
            ]
            for (part,) in args
        ]


def collector(settings: Any, engines: Engines, graders: Graders) -> Collector:
    return Collector(settings, engines, graders, PromptStream(settings, ROWS))  # type: ignore[arg-type]


def test_a_step_asks_its_share_of_the_stream_once():
    settings = config()
    engines = Engines()
    found = collector(settings, engines, Graders([])).collect(8)
    assert engines.asked == [[8, 9, 10, 11]]
    assert found.cursor == 12
    assert found.groups == {8, 9, 10, 11}
    assert [item.rollout.member for item in found.scored] == [0, 1] * 4


def test_the_stream_meets_every_row_once_an_epoch_and_is_the_same_each_time():
    settings = config()
    first, again = PromptStream(settings, ROWS), PromptStream(settings, ROWS)
    assert sorted(prompt.row for prompt in first.take(0, ROWS)) == list(range(ROWS))
    assert [prompt.row for prompt in first.take(ROWS, ROWS)] != [prompt.row for prompt in first.take(0, ROWS)]
    assert again.take(7, 9) == first.take(7, 9)
    assert len({prompt.seed for prompt in first.take(0, 50)}) == 50
    assert sampling_seed(1, 5) != sampling_seed(2, 5)
    assert sampling_seed(1, 5, "eval") != sampling_seed(1, 5)


def test_dynamic_sampling_asks_again_for_what_is_missing():
    settings = config(dynamic_sampling={"enabled": True, "max_rounds": 3})
    engines = Engines()
    found = collector(settings, engines, Graders([1, 3, 5, 6])).collect(0)
    assert engines.asked == [[0, 1, 2, 3], [4, 5], [6]]
    assert found.groups == {1, 3, 5, 6}
    assert found.cursor == 7
    assert found.metrics["rollout/rounds"] == 3
    assert found.metrics["rollout/dropped_groups"] == 3


def test_dynamic_sampling_ends_at_its_limit():
    settings = config(dynamic_sampling={"enabled": True, "max_rounds": 2})
    found = collector(settings, Engines(), Graders([1])).collect(0)
    assert found.groups == {1}
    assert found.cursor == 7


def test_prompts_that_cannot_be_asked_are_counted():
    settings = config()
    stream = PromptStream(settings, ROWS).take(0, 4)
    found = collector(settings, Engines(broken=[stream[1].row]), Graders([])).collect(0)
    assert [prompt.group for prompt in found.dropped] == [1]
    assert found.metrics["data/dropped_prompts"] == 1
    assert found.groups == {0, 2, 3}


def test_graders_that_judge_nothing_stop_the_run():
    with pytest.raises(UserError, match=r"judged none of 8 answers; the first: timeout: why, in two lines;"):
        collector(config(), Engines(), Graders([], status="timeout")).collect(0)


def test_shares_are_contiguous_and_lose_nothing():
    assert [list(part) for part in shares(list(range(7)), 3)] == [[0, 1], [2, 3], [4, 5, 6]]
    assert [list(part) for part in shares([5], 2)] == [[], [5]]
