"""What training made of tokens, as it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlinf_vlm.rollout.files import forget_after, write_rollouts
from rlinf_vlm.rollout.trained import TrainedTokens, answers_of, read_trained, write_trained
from rlinf_vlm.types import UserError
from tests.rollouts import rollout, scored


def test_each_answer_has_its_own_tokens(tmp_path: Path):
    answers = answers_of([rollout(3, 1, length=2), rollout(4, 0, length=0), rollout(4, 1, length=1)],
                         [1 / 3, -2.0, 5e-9], [-0.123456789123, -1e-12, -700.0])  # fmt: skip
    write_rollouts(tmp_path / "rollouts", 2, [scored()])
    write_trained(tmp_path / "rollouts", 2, answers)
    assert read_trained(tmp_path, 2) == {
        (3, 1): TrainedTokens(advantages=(0.333333333, -2.0), logprobs=(-0.123456789, -1e-12)),
        (4, 0): TrainedTokens(advantages=(), logprobs=()),
        (4, 1): TrainedTokens(advantages=(5e-9,), logprobs=(-700.0,)),
    }
    assert read_trained(tmp_path / "rollouts", 1) == {}
    forget_after(tmp_path / "rollouts", 1)
    assert read_trained(tmp_path, 2) == {}


def test_numbers_that_are_not_of_the_answers_are_refused():
    with pytest.raises(ValueError, match="1 advantages and 2 log-probabilities for 2 tokens"):
        answers_of([rollout(length=2)], [1.0], [0.0, 0.0])


def test_a_cut_file_is_named(tmp_path: Path):
    file = write_trained(tmp_path, 1, answers_of([rollout(length=1)], [1.0], [0.0]))
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match="trained_1.jsonl, line 1: not a line of trained tokens .the line is cut"):
        read_trained(tmp_path, 1)
    file.write_text('{"group": 1}\n')
    with pytest.raises(UserError, match="KeyError: 'member'"):
        read_trained(tmp_path, 1)
