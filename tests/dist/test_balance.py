"""Ranks that share a step by what its rows cost: the same step as by count, every row once, whatever the ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlinf_vlm.checkpoints import open_checkpoint
from rlinf_vlm.config.load import load_config
from rlinf_vlm.config.resolve import Start, resolve_schedule
from rlinf_vlm.types import UserError
from tests.small_run import choice_rows, run_ranks, train, tree, write_model, write_parquet

BATCH = 12
PACKED = {"actor__packing": True, "actor__max_tokens_per_micro_batch": 192, "actor__global_batch_size": BATCH}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """36 rows; of rows 5 and 20 the first shows that it is bad before it is decoded, the other does not."""
    folder = tmp_path_factory.mktemp("balance")
    write_model(folder / "model")
    rows = choice_rows(36)
    write_parquet(rows, folder / "train" / "part.parquet")
    whole = rows[20]["image"]["bytes"]
    bad = [dict(row) for row in rows]
    bad[5]["correct_answer"] = 99
    bad[20]["image"] = {"bytes": whole[: len(whole) // 2], "path": None}
    write_parquet(bad, folder / "bad" / "part.parquet")
    return folder


def config_of(folder: Path, **changes: Any) -> Any:
    return load_config(tree(folder, **{"data__eval_data_paths": None, **PACKED, **changes}))


def numbers(steps: list[dict[str, float]]) -> list[tuple[float, float]]:
    return [(step["train/loss"], step["train/grad_norm"]) for step in steps]


@pytest.fixture(scope="module")
def reference(folder) -> list[dict[str, float]]:
    """One rank."""
    return run_ranks(config_of(folder), 1, train)[0]


@pytest.mark.parametrize(("world", "balance"), [(2, "auto"), (2, False), (3, True)])
def test_the_division_among_ranks_does_not_matter(folder, reference, world, balance):
    found = run_ranks(config_of(folder, actor__balance_tokens=balance), world, train)[0]
    assert [step["train/samples"] for step in found] == [BATCH] * 3
    assert [step["train/tokens"] for step in found] == [step["train/tokens"] for step in reference]
    for (loss, norm), (expected_loss, expected_norm) in zip(numbers(found), numbers(reference), strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert norm == pytest.approx(expected_norm, rel=1e-5)


def read(actor: Any, config: Any) -> list[dict[str, Any]] | str:
    """What a rank reads of each step, or what it says of a row that cannot be used."""
    schedule = resolve_schedule(config, actor.load().train_rows)
    try:
        return [
            {
                "rows": step.num_samples,
                "bad": [bad.row for bad in step.bad_rows],
                "tokens": sum(sum(batch.lengths) for batch in step.micro_batches),
                "division": step.division,
            }
            for step in actor.feed.train(schedule, actor.policy.feature_weight)
        ]
    except UserError as error:
        return str(error)


def test_bad_rows_are_counted_once(folder):
    changes = {"data__train_data_paths": str(folder / "bad"), "data__on_bad_row": "drop", "data__num_workers": 1}
    one, *_ = run_ranks(config_of(folder, **changes), 1, read)
    parts = run_ranks(config_of(folder, **changes), 2, read)
    assert sorted(row for step in one for row in step["bad"]) == [5, 20]
    for whole, left, right in zip(one, *parts, strict=True):
        assert left["rows"] + right["rows"] == whole["rows"] and left["tokens"] + right["tokens"] == whole["tokens"]
        assert sorted(left["bad"] + right["bad"]) == sorted(whole["bad"])
        assert left["division"] == right["division"] != 0 == whole["division"]


def test_a_bad_row_stops_the_one_rank_that_reads_it(folder):
    changes = {"data__train_data_paths": str(folder / "bad"), "data__shuffle": False}
    said = run_ranks(config_of(folder, **changes), 2, read)
    named = [text for text in said if isinstance(text, str)]
    assert "part.parquet row 5" in named[0], "in the first step"
    assert all("row 5" in text or "row 20" in text for text in named) and len({*named}) == len(named)


def differ(actor: Any, config: Any) -> str:
    """What is said when the second rank has other files: its first rows are bad, and cost nothing."""
    if actor.context.rank:
        other = Path(config.data.train_data_paths).parent / "other"
        actor.config = config.model_copy(
            update={"data": config.data.model_copy(update={"train_data_paths": str(other)})}
        )
    schedule = resolve_schedule(config, actor.load().train_rows)
    actor.start_training(schedule)
    try:
        actor.train_step(0)
    except UserError as error:
        return str(error)
    return "trained"


def test_ranks_that_divide_differently_notice(folder):
    rows = [{**row, "correct_answer": 99} if index < 5 else row for index, row in enumerate(choice_rows(36))]
    write_parquet(rows, folder / "other" / "part.parquet")
    for said in run_ranks(config_of(folder, data__shuffle=False, data__on_bad_row="drop"), 2, differ):
        assert said.startswith("step 1: the ranks divide the step's rows differently")


def save(actor: Any, config: Any) -> list[dict[str, float]]:
    """Three steps, with a checkpoint after the first."""
    schedule = resolve_schedule(config, actor.load().train_rows)
    actor.start_training(schedule)
    metrics = [actor.train_step(0)]
    folder = saved(config)
    actor.begin_save(str(folder), f"{folder}.partial-1", {"step": 1, "samples": BATCH, "saved_at": 1.0})
    metrics += [actor.train_step(step) for step in (1, 2)]
    assert actor.finished_save(wait=True) is not None
    return metrics


def go_on(actor: Any, config: Any) -> list[dict[str, float]]:
    """The two steps that are left."""
    facts = actor.load(str(open_checkpoint(saved(config)).dcp))
    actor.start_training(resolve_schedule(config, facts.train_rows, Start(step=1, samples=BATCH)), str(saved(config)))
    return [actor.train_step(step) for step in (1, 2)]


def saved(config: Any) -> Path:
    return Path(config.runner.logger.log_path) / "sft" / "checkpoints" / "global_step_1"


def test_a_run_goes_on_with_fewer_ranks(folder, reference, tmp_path):
    config = config_of(folder, runner__logger={"log_path": str(tmp_path), "logger_backends": []})
    metrics = run_ranks(config, 2, save)[0]
    resumed = run_ranks(config, 1, go_on)[0]
    assert [step["train/tokens"] for step in resumed] == [step["train/tokens"] for step in metrics[1:]]
    for found, expected in ((metrics, reference), (resumed, reference[1:])):
        for one, two in zip(found, expected, strict=True):
            assert one["train/loss"] == pytest.approx(two["train/loss"], rel=1e-5)
