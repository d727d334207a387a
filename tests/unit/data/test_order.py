from __future__ import annotations

import time

import pytest

from rlinf_vlm.data.order import RankSteps, RowStream, eval_rows


def steps(
    rows: int, batch: int, total: int, rank: int = 0, world: int = 1, start: int = 0, **stream
) -> list[list[int]]:
    settings = {"seed": 7, "shuffle": True, "block": 1, **stream}
    return list(
        RankSteps(
            stream=RowStream(rows=rows, **settings),
            global_batch=batch,
            total=total,
            rank=rank,
            world_size=world,
            first=start * batch,
        )
    )


def test_unshuffled_stream_by_hand():
    # 5 rows, batches of 4, two epochs: the second batch crosses the end of the epoch, the last one is short.
    assert steps(5, 4, 10, shuffle=False) == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4]]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_row_once_an_epoch_whatever_the_ranks(world: int):
    whole = steps(37, 8, 37)
    parts = [steps(37, 8, 37, rank=rank, world=world) for rank in range(world)]
    joined = [sum((part[step] for part in parts), []) for step in range(5)]
    assert joined == whole
    assert sorted(sum(whole, [])) == list(range(37))


def test_epochs_differ_and_repeat_by_seed():
    stream = RowStream(rows=50, seed=1, shuffle=True)
    assert stream.epoch_order(0).tolist() != stream.epoch_order(1).tolist()
    assert stream.epoch_order(3).tolist() == RowStream(rows=50, seed=1, shuffle=True).epoch_order(3).tolist()
    assert stream.epoch_order(0).tolist() != RowStream(rows=50, seed=2, shuffle=True).epoch_order(0).tolist()


def test_blocks_move_as_a_whole():
    order = RowStream(rows=10, seed=3, shuffle=True, block=4).epoch_order(0).tolist()
    assert sorted(order) == list(range(10))
    blocks = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    places = {order.index(block[0]): block for block in blocks}
    assert sum((places[place] for place in sorted(places)), []) == order


def test_a_late_start_gives_the_same_rows_and_takes_no_time():
    assert steps(100, 16, 3000, start=150) == steps(100, 16, 3000)[150:]
    begin = time.perf_counter()
    million = RankSteps(
        stream=RowStream(rows=1000, seed=0, shuffle=True),
        global_batch=10,
        total=10**9,
        rank=0,
        world_size=1,
        first=10**9 - 10,
    )
    assert len(list(million)) == 1
    assert time.perf_counter() - begin < 5  # walking there would take hours


def test_eval_rows_cover_everything_once():
    for rows, world in [(101, 2), (7, 4), (3, 8)]:
        found = sum((list(eval_rows(rows, rank, world)) for rank in range(world)), [])
        assert found == list(range(rows))
