from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from rlinf_vlm.algorithms.advantages import AdvantageInput, grpo
from rlinf_vlm.algorithms.filtering import informative, overlong_penalty
from rlinf_vlm.config.rl import OverlongConfig
from rlinf_vlm.rollout.batching import divide, informative_groups, judged, metrics, with_overlong
from rlinf_vlm.types import UserError
from tests.rollouts import rollout, scored


def a_step(groups: int, *, members: int = 4, seed: int = 0):
    """Answers of uneven lengths in the order in which engines might have given them."""
    draw = random.Random(seed)
    answers = [
        scored(10 + group, member, draw.random(), length=draw.randrange(0, 60), prompt=20 + group)
        for group in range(groups)
        for member in range(members)
    ]
    draw.shuffle(answers)
    return answers


def test_by_hand():
    # Costs of groups 3, 5, 8, 9: 2 answers each of 10 + 10, 10 + 10, 10 + 30, 10 + 10 tokens.
    lengths = {3: 10, 5: 10, 8: 30, 9: 10}
    given = [scored(group, member, group + member / 2, length=lengths[group], prompt=10)
             for group in (8, 3, 9, 5) for member in (1, 0)]  # fmt: skip
    answers, (first, second) = divide(given, world_size=2, n_minibatches=2)
    assert answers.groups == (3, 3, 5, 5, 8, 8, 9, 9)
    assert answers.rewards == (3.0, 3.5, 5.0, 5.5, 8.0, 8.5, 9.0, 9.5)
    assert answers.lengths == (10, 10, 10, 10, 30, 30, 10, 10)
    assert answers.minibatches == (4, 4)
    assert (first.places, second.places) == ((0, 4), (2, 6))
    assert [[answer.group for answer in part] for part in first.minibatches] == [[3, 3], [8, 8]]
    assert [[answer.group for answer in part] for part in second.minibatches] == [[5, 5], [9, 9]]
    one, (alone,) = divide(given, world_size=1, n_minibatches=1)
    assert one == answers.__class__(rewards=answers.rewards, groups=answers.groups, lengths=answers.lengths,
                                    minibatches=(8,))  # fmt: skip
    assert alone.places == (0,) and len(alone.minibatches[0]) == 8


@pytest.mark.parametrize("groups", [0, 1, 2, 3, 7, 16, 33])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("n_minibatches", [1, 2, 5])
def test_every_answer_is_somewhere_once_and_found_by_its_place(groups: int, world_size: int, n_minibatches: int):
    given = a_step(groups)
    answers, shares = divide(given, world_size=world_size, n_minibatches=n_minibatches)
    count = min(n_minibatches, groups)
    assert len(shares) == world_size and len(answers.minibatches) == count
    assert all(len(share.minibatches) == len(share.places) == count for share in shares)
    reward_of = {(answer.rollout.group, answer.rollout.member): answer.reward for answer in given}
    seen: Counter[tuple[int, int]] = Counter()
    home: dict[int, set[tuple[int, int]]] = {}
    end = 0
    for number in range(count):
        for rank, share in enumerate(shares):
            assert share.places[number] == end
            for offset, answer in enumerate(share.minibatches[number]):
                place = end + offset
                assert answers.groups[place] == answer.group and answers.lengths[place] == len(answer.token_ids)
                assert answers.rewards[place] == reward_of[answer.group, answer.member]
                seen[answer.group, answer.member] += 1
                home.setdefault(answer.group, set()).add((number, rank))
            end += len(share.minibatches[number])
        assert end == sum(answers.minibatches[: number + 1])
    assert seen == Counter(reward_of.keys()) and end == len(answers.rewards) == len(given)
    assert all(len(homes) == 1 for homes in home.values())
    if count:
        of_minibatch = Counter(number for homes in home.values() for number, _ in homes)
        assert max(of_minibatch.values()) - min(of_minibatch.values()) <= 1


def test_the_order_of_the_engines_does_not_matter():
    given = a_step(9)
    assert divide(given, world_size=3, n_minibatches=2) == divide(given[::-1], world_size=3, n_minibatches=2)


def test_ranks_get_about_equal_tokens():
    # A part is off by at most a half of the group at either end.
    given = a_step(64, members=8, seed=3)
    _, shares = divide(given, world_size=4, n_minibatches=1)
    loads = [sum(answer.num_tokens for answer in share.minibatches[0]) for share in shares]
    costs = Counter[int]()
    for answer in given:
        costs[answer.rollout.group] += answer.rollout.num_tokens
    assert max(abs(load - sum(loads) / 4) for load in loads) <= max(costs.values())


def test_what_was_not_judged_is_not_trained_on():
    given = [scored(0, 0, 1.0), scored(0, 1, status="timeout"), scored(1, 0, status="error"), scored(1, 1, 0.5)]
    assert judged(given) == [given[0], given[3]]
    with pytest.raises(ValueError, match="2 of 4 answers have no judgement"):
        divide(given, world_size=1, n_minibatches=1)
    answers, _ = divide(judged(given), world_size=1, n_minibatches=1)
    assert answers.groups == (0, 1)


def test_informative_groups_compare_exactly_and_as_torch_does():
    rewards = {4: [0.9] * 3, 1: [1.0, 0.0], 9: [0.4], 2: [0.3, 0.1 + 0.2], 5: [0.0, -0.0]}
    given = [scored(group, member, reward) for group in rewards for member, reward in enumerate(rewards[group])]
    assert informative_groups(given) == {1, 2}
    numbers = torch.tensor([answer.rollout.group for answer in given])
    kept = informative(torch.tensor([answer.reward for answer in given], dtype=torch.float64), numbers)
    assert set(numbers[kept].tolist()) == {1, 2}
    # An answer without judgement has reward 0, which is not compared.
    assert informative_groups([scored(7, 0, 1.0), scored(7, 1, 0.0, status="died")]) == frozenset()
    assert informative_groups([]) == frozenset()


def test_the_other_groups_have_advantage_zero():
    given = a_step(6) + [scored(99, member, 0.9) for member in range(8)]
    answers, _ = divide(given, world_size=2, n_minibatches=3)
    advantages = grpo(
        AdvantageInput(
            rewards=torch.tensor(answers.rewards, dtype=torch.float64),
            groups=torch.tensor(answers.groups),
            lengths=torch.ones(len(given), dtype=torch.int64),
        )
    )
    silent = {group for group, value in zip(answers.groups, advantages.tolist(), strict=True) if value == 0.0}
    assert silent == {99} == set(answers.groups) - informative_groups(given)


@pytest.mark.parametrize(("buffer", "factor"), [(20, 1.0), (100, 0.5), (7, 2.0)])
def test_overlong_as_the_formula_of_the_algorithms(buffer: int, factor: float):
    lengths = [0, 10, 79, 80, 81, 85, 93, 94, 99, 100]
    given = [scored(0, member, 0.25, length=length) for member, length in enumerate(lengths)]
    found = with_overlong(given, 100, OverlongConfig(buffer=buffer, factor=factor))
    wanted = factor * overlong_penalty(torch.tensor(lengths), max_length=100, buffer=buffer)
    assert [answer.parts["overlong"] for answer in found] == wanted.tolist()
    assert [answer.reward for answer in found] == (0.25 + wanted).tolist()
    assert [answer.rollout for answer in found] == [answer.rollout for answer in given]


def test_overlong_by_hand_and_where_there_is_none():
    long = scored(0, 0, 1.0, length=95, parts={"math": 1.0})
    (punished,) = with_overlong([long], 100, OverlongConfig(buffer=10, factor=0.5))
    assert punished.reward == 0.75 and punished.parts == {"math": 1.0, "overlong": -0.25}
    assert with_overlong([long], 100, OverlongConfig()) == [long]
    failed = scored(0, 1, status="timeout", length=95)
    assert with_overlong([failed], 100, OverlongConfig(buffer=10)) == [failed]
    with pytest.raises(UserError, match=r"overlong.buffer=101 is more than .*max_new_tokens=100.*lower it"):
        with_overlong([long], 100, OverlongConfig(buffer=101))


def test_metrics_by_hand():
    given = [
        scored(0, 0, 1.0, length=4, parts={"math": 1.0, "form": 0.0}),
        scored(0, 1, 0.0, length=8, finish_reason="length", parts={"math": 0.0}),
        scored(1, 0, 0.5, length=2),
        scored(1, 1, status="timeout", length=6, finish_reason="length"),
        scored(2, 0, status="error", length=5),
    ]
    assert metrics(given) == pytest.approx(
        {
            "rollout/answers": 5,
            "rollout/groups": 3,
            "rollout/reward_mean": 0.5,
            "rollout/reward_std": (1 / 6) ** 0.5,  # squares .25 + .25 + 0, over 3
            "rollout/math": 0.5,
            "rollout/form": 0.0,
            "rollout/response_length": 5.0,
            "rollout/response_length_max": 8,
            "rollout/completed": 0.6,
            "rollout/truncated": 0.4,
            "rollout/max_turns": 0.0,
            "rollout/env_error": 0.0,
            "rollout/env_close_errors": 0,
            "rollout/turns": 1.0,
            "rollout/zero_std_groups": 2 / 3,
            "reward/failed": 2,
            "reward/failed_error": 1,
            "reward/failed_timeout": 1,
        }
    )


def test_how_conversations_ended_is_counted():
    two = (*rollout().turns, *rollout().turns)
    given = [
        scored(0, 0, 1.0, turns=two),
        scored(0, 1, 0.0, turns=two, outcome="max_turns", outcome_detail="close raised"),
        scored(0, 2, status="env_error", turns=(), outcome="env_error", outcome_detail="step raised"),
        scored(0, 3, 0.0, finish_reason="length"),
    ]
    found = metrics(given)
    assert [found[f"rollout/{name}"] for name in ("completed", "max_turns", "truncated", "env_error")] == [0.25] * 4
    assert (found["rollout/turns"], found["rollout/env_close_errors"], found["reward/failed_env_error"]) == (1.25, 1, 1)
    assert found["rollout/response_length"] == (6 + 6 + 0 + 3) / 4, "what the policy generated, in all turns"
    assert judged(given) == [given[0], given[1], given[3]]


def test_metrics_where_there_is_nothing_to_say():
    counts = {"rollout/answers": 0, "rollout/groups": 0, "reward/failed": 0}
    assert metrics([]) == counts
    failed = metrics([scored(0, 0, status="died")])
    assert failed["reward/failed_died"] == 1 and failed["rollout/zero_std_groups"] == 1.0
    assert "rollout/reward_mean" not in failed
    assert metrics([scored(0, member, 0.9) for member in range(8)])["rollout/reward_std"] == 0.0


def test_an_answer_that_nobody_would_read_is_wrong_and_counted():
    """What was refused is trained on with its reward; what the grader failed at is not."""
    refused, timeout = scored(group=0, member=0, status="refused"), scored(group=0, member=1, status="timeout")
    right = scored(group=0, member=2, reward=1.0)
    assert judged([refused, timeout, right]) == [refused, right]
    assert informative_groups([refused, right]) == {0}
    found = metrics([refused, timeout, right])
    assert (found["reward/failed"], found["reward/failed_refused"], found["rollout/reward_mean"]) == (2, 1, 0.5)
