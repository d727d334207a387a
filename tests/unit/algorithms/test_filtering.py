from __future__ import annotations

import pytest
import torch

from rlinf_vlm.algorithms.filtering import informative, overlong_penalty, untruncated


def test_groups_of_equal_rewards_are_dropped():
    rewards = torch.tensor([0.9, 1.0, 0.9, 0.0, 0.9, 0.4], dtype=torch.float64)
    kept = informative(rewards, torch.tensor([4, 1, 4, 1, 4, 9]))
    assert kept.tolist() == [False, True, False, True, False, False]
    assert informative(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).tolist() == []
    with pytest.raises(ValueError, match="not of the same answers"):
        informative(torch.zeros(2), torch.zeros(3, dtype=torch.int64))


def test_overlong_by_hand():
    # 100 at most, the last 20 penalised: 80 -> 0, 85 -> -5/20, 90 -> -10/20, 100 -> -1, 120 -> -1.
    lengths = torch.tensor([10, 80, 85, 90, 100, 120])
    assert overlong_penalty(lengths, max_length=100, buffer=20).tolist() == [0, 0, -0.25, -0.5, -1, -1]
    assert overlong_penalty(lengths, max_length=100, buffer=0).tolist() == [0, 0, 0, 0, 0, -1]


@pytest.mark.parametrize("buffer", [-1, 101])
def test_a_buffer_that_does_not_fit(buffer: int):
    with pytest.raises(ValueError, match=f"buffer={buffer} is not between 0 and max_length=100"):
        overlong_penalty(torch.tensor([1]), max_length=100, buffer=buffer)


def test_cut_off_answers_have_no_tokens():
    assert untruncated(torch.tensor([True, False]), torch.tensor([7, 3])).tolist() == [0, 3]
