from __future__ import annotations

import pytest
import torch

from rlinf_vlm.algorithms import ADVANTAGES
from rlinf_vlm.algorithms.advantages import AdvantageInput, grpo, grpo_no_std, reinpp, reinpp_baseline, rloo
from rlinf_vlm.registry import resolve

GROUPED = ["grpo", "grpo_no_std", "rloo", "reinpp_baseline"]


def answers(rewards, groups, lengths=None, token_rewards=None) -> AdvantageInput:
    return AdvantageInput(
        rewards=torch.tensor(rewards, dtype=torch.float64),
        groups=torch.tensor(groups),
        lengths=torch.tensor(lengths or [1] * len(rewards)),
        token_rewards=None if token_rewards is None else torch.tensor(token_rewards),
    )


def test_grpo_by_hand():
    # Rewards 1, 0, 0, 1: mean 0.5, squares 4 x 0.25 = 1, over n - 1 = 3: deviation 0.577350; 0.5 / 0.577351 = 0.866024.
    advantages = grpo(answers([1, 0, 0, 1], [7, 7, 7, 7], [2, 1, 1, 1]))
    assert advantages.dtype == torch.float32
    torch.testing.assert_close(advantages, torch.tensor([0.866024, 0.866024, -0.866024, -0.866024, 0.866024]))


def test_groups_are_told_by_number_not_by_place():
    # Group 5: 1, 3 (mean 2); group 2: 10, 30 (mean 20), interleaved.
    assert grpo_no_std(answers([1, 10, 3, 30], [5, 2, 5, 2])).tolist() == [-1, -10, 1, 10]


def test_rloo_by_hand():
    # 6 - (0 + 3) / 2 = 4.5; 0 - (6 + 3) / 2 = -4.5; 3 - (6 + 0) / 2 = 0.
    assert rloo(answers([6, 0, 3], [0, 0, 0], [1, 2, 1])).tolist() == [4.5, -4.5, -4.5, 0.0]


def test_reinpp_by_hand():
    # Rewards 1 and 0 of answers of 2 and 1 tokens; token rewards -0.5, -0.25 | -1. Returns to go: 1 - 0.75 = 0.25,
    # 1 - 0.25 = 0.75, -1. Mean 0; squares 0.0625 + 0.5625 + 1 = 1.625, over 2: deviation sqrt(0.8125) = 0.901388.
    advantages = reinpp(answers([1, 0], [0, 1], [2, 1], [-0.5, -0.25, -1.0]))
    torch.testing.assert_close(advantages, torch.tensor([0.277350, 0.832050, -1.109400]), atol=2e-6, rtol=0)


def test_reinpp_baseline_by_hand():
    # Group 0: 1, 0 -> 0.5, -0.5 with lengths 3 and 1: tokens .5 .5 .5 -.5, mean 0.25, deviations .25 .25 .25 -.75:
    # squares 3 x 0.0625 + 0.5625 = 0.75, over 3: deviation 0.5 -> 0.5, 0.5, 0.5, -1.5.
    advantages = reinpp_baseline(answers([1, 0], [0, 0], [3, 1]))
    torch.testing.assert_close(advantages, torch.tensor([0.5, 0.5, 0.5, -1.5]), atol=1e-5, rtol=0)


def test_rewards_of_tokens_count_in_the_answers_reward():
    # 1 - 0.5 - 0.5 = 0 and 0: equal, so nothing is learnt.
    assert grpo(answers([1, 0], [0, 0], [2, 1], [-0.5, -0.5, 0.0])).tolist() == [0, 0, 0]
    assert grpo_no_std(answers([1, 0], [0, 0], [1, 1], [-0.5, 0.0])).tolist() == [0.25, -0.25]


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
@pytest.mark.parametrize("value", [0.9, 0.1, 0.7, 1 / 3, -0.3, 1e-30, 1e30, 0.0])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 16])
def test_equal_rewards_give_exactly_zero(name: str, value: float, size: int):
    assert resolve("advantage", name, ADVANTAGES)(answers([value] * size, [3] * size)).tolist() == [0.0] * size


def test_a_float32_mean_would_not_be_exact():
    # What the test above is there for: eight float32 0.9 summed one by one, over 8, is not 0.9.
    total = torch.tensor(0.0)
    for _ in range(8):
        total = total + torch.tensor(0.9)
    assert (total / 8).item() != torch.tensor(0.9).item()


@pytest.mark.parametrize("name", GROUPED)
def test_an_equal_group_beside_others_is_exactly_zero(name: str):
    found = resolve("advantage", name, ADVANTAGES)(
        answers([0.9, 1.0, 0.9, 0.0, 0.9, 0.4], [4, 1, 4, 1, 4, 9], [1, 3, 2, 1, 1, 2])
    )
    assert found[[0, 4, 5, 7, 8, 9]].tolist() == [0.0] * 6  # group 4, and group 9 of one answer
    assert found[1].item() > 0 > found[6].item()


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_order_and_shift_change_nothing(name: str):
    function = resolve("advantage", name, ADVANTAGES)
    rewards, groups, lengths = [1.0, 0.0, 0.5, 0.25, 0.9], [0, 0, 1, 1, 1], [2, 1, 1, 3, 1]
    expected = torch.split(function(answers(rewards, groups, lengths)), lengths)
    order = [3, 0, 4, 2, 1]
    shuffled = answers([rewards[i] + 5 for i in order], [groups[i] * 10 for i in order], [lengths[i] for i in order])
    found = torch.split(function(shuffled), [lengths[i] for i in order])
    for place, index in enumerate(order):
        torch.testing.assert_close(found[place], expected[index])


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_empty_answers_and_no_answers(name: str):
    function = resolve("advantage", name, ADVANTAGES)
    assert function(answers([1.0, 0.0], [0, 0], [0, 2])).shape == (2,)
    none = AdvantageInput(
        rewards=torch.zeros(0), groups=torch.zeros(0, dtype=torch.int64), lengths=torch.zeros(0, dtype=torch.int64)
    )
    assert function(none).shape == (0,)


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_a_reward_that_is_no_number_is_an_error(name: str):
    with pytest.raises(ValueError, match="NaN"):
        resolve("advantage", name, ADVANTAGES)(answers([1.0, float("nan")], [0, 0]))
    with pytest.raises(ValueError, match="different numbers"):
        resolve("advantage", name, ADVANTAGES)(answers([1.0, 2.0], [0]))
