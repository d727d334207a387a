"""The evaluation with blank images: the same questions, nothing to see."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from rlinf_vlm.config.load import load_config
from rlinf_vlm.evaluation.answers import EvalRecord, summarise, with_blank
from tests.small_run import choice_rows, run_ranks, train, tree, write_parquet

SAME = ("input_ids", "labels", "position_ids", "cu_seqlens", "image_positions")


def compare_batches(actor: Any, config: Any) -> int:
    """Both passes' batches side by side. Returns the number of rows that were read."""
    actor.load()
    pairs = list(zip(actor.feed.evaluation(), actor.feed.evaluation(blank_images=True), strict=True))
    pictures = [row["image"] for row in choice_rows(101, seed=1)]
    for seeing, blank in pairs:
        for name in SAME:
            assert torch.equal(getattr(seeing.micro_batch, name), getattr(blank.micro_batch, name)), name
        assert [sample.row for sample in seeing.samples] == [sample.row for sample in blank.samples]
        assert seeing.bad_rows == blank.bad_rows
        inputs = blank.micro_batch.image_inputs
        if not seeing.micro_batch.image_inputs:
            assert inputs == {}
            continue
        shown = [pictures[sample.row] for sample in blank.samples]
        sizes = {Image.open(io.BytesIO(picture["bytes"])).size for picture in shown if picture is not None}
        assert blank.micro_batch.num_images == len(sizes), "a blank of one size is in a batch once"
        pixels = inputs["pixel_values"]
        assert all(len(channel.unique()) == 1 for channel in pixels.unflatten(1, (3, -1)).unbind(1)), "even"
        seen = seeing.micro_batch.image_inputs["pixel_values"]
        assert seen.min() < pixels.min() and pixels.max() < seen.max(), f"grey: {pixels.min()} to {pixels.max()}"
    return sum(len({sample.row for sample in seeing.samples}) for seeing, _ in pairs)


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 1), (2, 0)])
def test_the_same_tokens_at_the_same_positions(small_run, world_size, num_workers):
    config = load_config(tree(small_run, data__num_workers=num_workers))
    assert sum(run_ranks(config, world_size, compare_batches)) == 101


def learn_and_evaluate(actor: Any, config: Any) -> tuple[list[EvalRecord], list[EvalRecord], list[EvalRecord]]:
    """What a model that has learnt to look says of the images, of blanks, and again of the images."""
    train(actor, config)
    return actor.evaluate(), actor.evaluate(blank_images=True), actor.evaluate()


def test_a_model_that_looks_is_at_chance_when_there_is_nothing_to_see(small_run):
    config = load_config(tree(small_run, runner__max_steps=20, actor__optim__lr=3e-3, actor__global_batch_size=32))
    by_rank = run_ranks(config, 2, learn_and_evaluate)
    seeing, blank, again = ([record for rank in by_rank for record in rank[part]] for part in range(3))
    assert seeing == again, "the pass with blanks leaves no trace"
    records = with_blank(seeing, blank)
    assert [record.row for record in records] == list(range(101))
    metrics = summarise(records)
    assert {**metrics, **summarise(seeing)} == metrics, "what is said of the images is as without the ablation"
    rows = choice_rows(101, seed=1)
    chance = sum(1 / len(record.choices) for record in records) / len(records)
    assert metrics["eval/choice_accuracy"] > 0.8
    assert abs(metrics["eval/choice_accuracy_blank_image"] - chance) < 0.12
    assert metrics["eval/accuracy"] > metrics["eval/accuracy_blank_image"] + 0.1
    for record, row, blind in zip(records, rows, sorted(blank, key=lambda record: record.row), strict=True):
        assert record.choice_correct_blank_image == (record.choice_prediction_blank_image == record.answer)
        if row["image"] is None:
            assert blind.choice_logprobs == pytest.approx(record.choice_logprobs, abs=1e-4)
            assert record.choice_prediction_blank_image == record.choice_prediction


def evaluate_both(actor: Any, config: Any) -> tuple[list[EvalRecord], list[EvalRecord]]:
    actor.load()
    return actor.evaluate(), actor.evaluate(blank_images=True)


def test_an_image_that_does_not_decode_is_a_bad_row_in_both_passes(small_run, tmp_path):
    rows = choice_rows(12, seed=5)
    rows[4]["image"] = {"bytes": rows[4]["image"]["bytes"][:60], "path": None}
    write_parquet(rows, tmp_path / "rows.parquet")
    config = load_config(tree(small_run, data__eval_data_paths=str(tmp_path), data__on_bad_row="drop"))
    ((seeing, blank),) = run_ranks(config, 1, evaluate_both)
    assert [record.row for record in seeing if record.error is not None] == [4]
    assert [(record.row, record.error) for record in seeing] == [(record.row, record.error) for record in blank]
    records = with_blank(seeing, blank)
    (bad,) = [record for record in records if record.error is not None]
    assert list(bad.as_json()) == ["row", "error"]
    assert summarise(records)["eval/dropped_rows"] == 1
    assert all("correct_blank_image" in record.as_json() for record in records if record.error is None)
    # a reading error in one pass alone leaves that row out of what is said of blanks
    flaky = [replace(record, error="gone") if record.row == 0 else record for record in blank]
    assert summarise(with_blank(seeing, flaky))["eval/samples"] == 11
