"""Even shares of work: which rows of a step a rank takes, and which samples one micro-batch takes.

    costs of a step's rows -> ``cut_by_cost`` -> contiguous parts, one a rank
    lengths of a rank's samples -> ``pack_evenly`` -> micro-batches within the token budget

Pure functions of plain numbers, without randomness: every rank that is given the same numbers finds the same answer
alone. Cutting keeps the order, so that neighbours that share an image stay together; packing keeps together what it is
told to. Not here: where costs come from (``loader``, ``rendering``).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable, Sequence
from heapq import heapreplace
from itertools import accumulate

NEAR = 4
"""Numbers of bins that are tried one after the other, fewest first."""


def cut_by_cost(costs: Sequence[float], parts: int) -> list[int]:
    """Bounds [parts + 1] of contiguous parts of about equal cost: part p is ``costs[bounds[p]:bounds[p + 1]]``.

    A row goes to the part in whose share of the total its middle lies. Costs of 0 only: parts of about equal count.
    Example: ``cut_by_cost([1, 1, 1, 1, 4], 2) == [0, 4, 5]``; the middles are 0.5, 1.5, 2.5, 3.5 and 6 of 8.
    """
    total = sum(costs)
    if not total:
        return [len(costs) * part // parts for part in range(parts + 1)]
    ends = accumulate(costs)
    owned = [0] * parts
    for end, cost in zip(ends, costs, strict=True):
        owned[min(parts - 1, int((end - cost / 2) * parts / total))] += 1
    return list(accumulate(owned, initial=0))


def pack_evenly(
    lengths: Sequence[int], budget: int, groups: Sequence[int] | None = None, *, at_least: int = 1
) -> list[list[int]]:
    """Indices in bins of at most ``budget`` tokens: few bins, filled about equally, in the order of their first index.

    groups: a label for each index; indices of one label share a bin where they fit into one, else follow each other.
    at_least: bins that are wanted even where fewer would do, as far as there are items for them.
    Ranks that gather parameters pass by pass wait for the longest of each pass, hence equal bins rather than full ones.
    Example: lengths 5, 4, 3, 2 with budget 8 give [[0, 3], [1, 2]]. A length above the budget is a ValueError.
    """
    for length in lengths:
        if length > budget:
            raise ValueError(f"a sample of {length} tokens does not fit in a budget of {budget} tokens")
    items = _items(lengths, budget, range(len(lengths)) if groups is None else groups)
    sizes = [sum(lengths[index] for index in item) for item in items]
    # Largest first; of equal ones, the earlier.
    order = sorted(range(len(items)), key=lambda place: -sizes[place])
    bins = _best_fit(order, sizes, budget)
    fewest, enough = max(at_least, _fewest(sizes, budget)), max(at_least, len(bins))
    while fewest <= enough:
        # By halves: a try takes milliseconds, and items of a third of a budget may need hundreds of bins more.
        count = fewest if enough - fewest < NEAR else (fewest + enough) // 2
        even = _spread(order, sizes, count, budget)
        if even is None:
            fewest = count + 1
        else:
            bins, enough = even, count - 1
    return sorted(sorted(index for place in places for index in items[place]) for places in bins)


def link(keys: Iterable[Sequence[Hashable]]) -> list[int]:
    """A label for each member: that of the first member it shares a key with, directly or through one in between.

    Example: keys "ab", "c", "b", "bd", "d" give 0, 1, 0, 0, 0.
    """
    first: dict[Hashable, int] = {}
    labels: list[int] = []
    for number, own in enumerate(keys):
        label = next((first[key] for key in own if key in first), number)
        for key in own:
            first.setdefault(key, label)
        labels.append(label)
    return labels


def _items(lengths: Sequence[int], budget: int, groups: Sequence[int]) -> list[list[int]]:
    """The indices of each group, in pieces of at most ``budget`` tokens."""
    items: list[list[int]] = []
    room: list[int] = []
    latest: dict[int, int] = {}
    for index, (length, group) in enumerate(zip(lengths, groups, strict=True)):
        place = latest.get(group)
        if place is None or room[place] < length:
            latest[group] = place = len(items)
            items.append([])
            room.append(budget)
        items[place].append(index)
        room[place] -= length
    return items


def _fewest(sizes: Sequence[int], budget: int) -> int:
    """A number of bins that is needed at least: of items above a half, a third ... of the budget, one, two ... fit."""
    by_size = (-(-sum(size * (fit + 1) > budget for size in sizes) // fit) for fit in (1, 2, 3))
    return max(-(-sum(sizes) // budget), *by_size)


def _best_fit(order: Sequence[int], sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Each item into the fullest bin that has room for it; of equal ones, the first."""
    bins: list[list[int]] = []
    by_room: list[tuple[int, int]] = []
    """(room, number of the bin), ascending."""
    for place in order:
        found = bisect_left(by_room, (sizes[place], 0))
        room, number = by_room.pop(found) if found < len(by_room) else (budget, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(place)
        insort(by_room, (room - sizes[place], number))
    return bins


def _spread(order: Sequence[int], sizes: Sequence[int], count: int, budget: int) -> list[list[int]] | None:
    """Each item into the emptiest of ``count`` bins, of equal ones the first; None where one has no room for it. Bins
    without an item are left out."""
    bins: list[list[int]] = [[] for _ in range(count)]
    by_load = [(0, number) for number in range(count)]
    """(tokens, number of the bin), a heap."""
    for place in order:
        held, number = by_load[0]
        if held + sizes[place] > budget:
            return None
        bins[number].append(place)
        heapreplace(by_load, (held + sizes[place], number))
    return [places for places in bins if places]
