from __future__ import annotations

import random
import statistics
import time
from itertools import pairwise

import pytest

from rlinf_vlm.data.balance import cut_by_cost, link, pack_evenly
from rlinf_vlm.data.reading import most_passes, row_costs
from rlinf_vlm.data.rendering import RowSize

BUDGET = 8192


def mix(count: int, seed: int) -> list[tuple[int, int]]:
    """(tokens, image tokens of them): 150 to 800 tokens, about 450 in the mean, as of questions about photographs."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        image = rng.randint(64, 400)
        rows.append((image + rng.randint(60, 200) + rng.randint(5, 200), image))
    return rows


def parts(costs: list[float], number: int) -> list[list[float]]:
    bounds = cut_by_cost(costs, number)
    assert bounds[0] == 0 and bounds[-1] == len(costs) and bounds == sorted(bounds)
    return [costs[start:end] for start, end in pairwise(bounds)]


def test_cut_by_hand():
    # middles 0.5, 1.5, 2.5, 3.5, 6 of 8: all but the last lie in the first half
    assert cut_by_cost([1, 1, 1, 1, 4], 2) == [0, 4, 5]
    # middles 2, 4.5, 5.5, 6.5, 7.5 of 8, shares of 2: 2 already lies in the second share
    assert cut_by_cost([4, 1, 1, 1, 1], 4) == [0, 0, 1, 3, 5]
    assert cut_by_cost([3, 3, 3, 3], 2) == [0, 2, 4]
    assert cut_by_cost([5], 3) == [0, 0, 1, 1]


def test_cut_of_nothing_is_by_count():
    assert cut_by_cost([0, 0, 0, 0], 2) == [0, 2, 4]
    assert cut_by_cost([], 3) == [0, 0, 0, 0]


def test_rows_without_cost_belong_to_exactly_one_rank():
    costs = [0.0, 0.0, 7.0, 0.0, 0.0, 7.0, 0.0]
    assert sum(parts(costs, 2), []) == costs


@pytest.mark.parametrize("world", [2, 3, 4, 7])
def test_every_row_has_one_rank_whatever_the_costs(world):
    rng = random.Random(world)
    for _ in range(200):
        costs = [rng.choice([0.0, rng.random(), 1e9 * rng.random()]) for _ in range(rng.randint(0, 30))]
        assert sum(parts(costs, world), []) == costs


@pytest.mark.parametrize("seed", range(5))
def test_four_ranks_of_72_rows_cost_the_same(seed):
    costs = [tokens + 0.87 * image for tokens, image in mix(4 * 72, seed)]
    loads = [sum(part) for part in parts(costs, 4)]
    assert max(loads) / statistics.mean(loads) <= 1.02
    by_count = [sum(costs[start : start + 72]) for start in range(0, 288, 72)]
    assert max(loads) < max(by_count)


def test_costs_by_hand():
    cat, dog = (b"cat", 4), (b"dog", 6)
    sizes = [
        RowSize(tokens=10, images=(cat,)),
        RowSize(tokens=10, images=(cat, dog)),
        None,
        RowSize(tokens=0, images=()),
        RowSize(tokens=8, images=((None, 4), (None, 4))),
    ]
    # The cat counts once; an image without a key is its own; the row that is not known is the mean of 12, 13, 0 and 12.
    assert row_costs(sizes, 0.5) == [12.0, 13.0, 9.25, 0.0, 12.0]
    assert row_costs([None, None], 0.5) == [1.0, 1.0]
    assert row_costs([], 0.5) == []


def test_packing_by_hand():
    assert pack_evenly([5, 4, 3, 2], 8) == [[0, 3], [1, 2]]
    assert pack_evenly([], 8) == []
    assert pack_evenly([8, 1, 7], 8) == [[0], [1, 2]]
    # Even bins where there is room: 4 and 4 rather than 6 and 2.
    assert pack_evenly([2, 2, 2, 2], 7) == [[0, 2], [1, 3]]


def test_groups_stay_together_where_they_fit():
    assert pack_evenly([2, 2, 2, 2], 7, [0, 0, 1, 1]) == [[0, 1], [2, 3]]
    # a group above the budget is cut, its neighbours stay neighbours
    assert pack_evenly([3, 3, 3, 3], 6, [0, 0, 0, 0]) == [[0, 1], [2, 3]]


def test_labels_by_hand():
    assert link(["ab", "c", "b", "bd", "d", ""]) == [0, 1, 0, 0, 0, 5]


def test_packing_loses_nothing_and_keeps_the_budget():
    rng = random.Random(0)
    for _ in range(100):
        lengths = [rng.randint(1, 128) for _ in range(rng.randint(1, 60))]
        groups = [rng.randint(0, 9) for _ in lengths] if rng.random() < 0.5 else None
        bins = pack_evenly(lengths, 128, groups)
        assert sorted(sum(bins, [])) == list(range(len(lengths)))
        assert all(0 < sum(lengths[index] for index in group) <= 128 for group in bins)


def test_packing_refuses_what_cannot_fit():
    with pytest.raises(ValueError, match="9 tokens does not fit in a budget of 8"):
        pack_evenly([9], 8)


@pytest.mark.parametrize("count", [72, 288])
def test_few_and_even_micro_batches_of_the_mix(count):
    extra, spread = 0, []
    for seed in range(20):
        lengths = [tokens for tokens, _ in mix(count, seed)]
        loads = [sum(lengths[index] for index in group) for group in pack_evenly(lengths, BUDGET)]
        extra += len(loads) - -(-sum(lengths) // BUDGET)
        spread.append(max(loads) / statistics.mean(loads))
    assert extra <= 2, "hardly ever more than the tokens need"
    assert max(spread) < 1.03


@pytest.mark.parametrize(("shortest", "longest"), [(60, 800), (4000, 8000), (2000, 4200)])
def test_thousands_of_samples_take_no_time(shortest, longest):
    """Of items above a half or a third of the budget, few fit together: many more bins than their tokens would need."""
    rng = random.Random(0)
    lengths = [rng.randint(shortest, longest) for _ in range(4096)]
    start = time.process_time()
    bins = pack_evenly(lengths, BUDGET)
    assert time.process_time() - start < 3.0, "trying every number of bins takes minutes"
    assert sorted(sum(bins, [])) == list(range(4096))
    assert max(sum(lengths[index] for index in group) for group in bins) <= BUDGET
    halves = sum(length > BUDGET // 2 for length in lengths)
    assert len(bins) <= max(1.1 * sum(lengths) / BUDGET, 1.01 * halves) + 1


def test_more_bins_than_needed_when_asked():
    assert pack_evenly([4, 3, 2, 1], 10, at_least=2) == [[0, 3], [1, 2]]
    assert pack_evenly([4, 3, 2, 1], 10, at_least=3) == [[0], [1], [2, 3]]
    assert pack_evenly([4, 3], 10, at_least=5) == [[0], [1]]
    assert pack_evenly([], 10, at_least=3) == []
    assert len(pack_evenly([9, 9, 9], 10, at_least=2)) == 3


def test_ranks_make_as_many_passes_as_the_one_with_the_most():
    sizes = [RowSize(tokens=tokens, images=()) for tokens in (6, 6, 6, 3, 3, 3)]
    assert most_passes(sizes, [0, 3, 6], 10) == 3
    assert most_passes([*sizes, None], [0, 3, 7], 10) == 3
    assert most_passes([RowSize(tokens=99, images=()), None], [0, 1, 2], 10) == 1
    assert most_passes([], [0, 0, 0], 10) == 1
