"""Every family, in the hub's names and in transformers': the folder holds the checkpoint as the base held it."""

from __future__ import annotations

import pytest
import torch

from tests.convert_inputs import (
    OLD,
    assert_equal,
    convert,
    moe_text,
    old_name,
    one_by_one,
    stored,
    trained,
    write_base,
    write_weights,
    written,
)
from tests.tiny_models import GENERIC, QWEN_FAMILIES

ALL = (*QWEN_FAMILIES, GENERIC)


@pytest.mark.parametrize("old", [True, False], ids=["hub names", "new names"])
@pytest.mark.parametrize("family", ALL)
def test_the_folder_holds_the_checkpoint_as_the_base_held_it(family, old, tmp_path):
    weights = trained(write_base(tmp_path / "base", family, old=old, shards=2 if old else 1))
    torch.save(weights, tmp_path / "full_weights.pt")
    report = convert(
        tmp_path / "full_weights.pt",
        tmp_path / "base",
        tmp_path / "out",
        model_type="auto" if family == GENERIC else family,
        max_shard_size="40KB",
    )
    assert_equal(written(tmp_path / "out"), stored(family, weights, old=old))
    assert report.checks is not None and report.checks[0].difference <= report.checks[0].tolerance < 1e-3
    assert report.shards > 1 and report.copied == 0 and report.tensors == len(weights)


@pytest.mark.parametrize("lm_head", [False, True], ids=["head absent", "head stored"])
@pytest.mark.parametrize("given", ["once", "twice"])
@pytest.mark.parametrize("family", ["qwen2.5_vl", "qwen3_vl", GENERIC])
def test_tied_head(family, given, lm_head, tmp_path):
    """The head is written if and only if the base has it, whether the checkpoint has it or not."""
    weights = trained(write_base(tmp_path / "base", family, tied=True, lm_head=lm_head))
    assert "lm_head.weight" not in weights
    embedding = weights["model.language_model.embed_tokens.weight"]
    saved = {**weights, "lm_head.weight": embedding} if given == "twice" else weights
    torch.save(saved, tmp_path / "w.pt")
    convert(tmp_path / "w.pt", tmp_path / "base", tmp_path / "out")
    head = {old_name(family, "lm_head.weight"): embedding} if lm_head else {}
    assert_equal(written(tmp_path / "out"), {**stored(family, weights), **head})


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@pytest.mark.parametrize("family", ["qwen2.5_vl", "qwen3_vl_moe", GENERIC])
def test_names_on_disk_in_the_checkpoint(family, prefix, tmp_path):
    """A file from elsewhere: the hub's names and layouts, perhaps behind a wrapper's prefix."""
    wanted = stored(family, trained(write_base(tmp_path / "base", family)))
    torch.save({prefix + name: tensor for name, tensor in wanted.items()}, tmp_path / "w.pt")
    convert(tmp_path / "w.pt", tmp_path / "base", tmp_path / "out")
    assert_equal(written(tmp_path / "out"), wanted)


@pytest.mark.parametrize("family", sorted(OLD))
def test_a_checkpoint_in_the_hubs_names_for_a_base_in_new_ones(family, tmp_path):
    weights = trained(write_base(tmp_path / "base", family, old=False))
    torch.save(stored(family, weights), tmp_path / "w.pt")
    convert(tmp_path / "w.pt", tmp_path / "base", tmp_path / "out")
    assert_equal(written(tmp_path / "out"), weights)


def test_experts_that_the_folder_stores_one_by_one(tmp_path):
    """A language model whose experts transformers stacks and joins when it loads them."""
    base = tmp_path / "base"
    weights = write_base(base, GENERIC, text_config=moe_text)
    write_weights(base, {old_name(GENERIC, name): tensor for name, tensor in one_by_one(weights).items()})
    weights = trained(weights)
    wanted = {old_name(GENERIC, name): tensor for name, tensor in one_by_one(weights).items()}
    assert len(wanted) > len(weights)
    for number, state in enumerate((weights, one_by_one(weights), wanted)):
        torch.save(state, tmp_path / f"{number}.pt")
        convert(tmp_path / f"{number}.pt", base, tmp_path / f"out{number}", max_shard_size="3KB")
        assert_equal(written(tmp_path / f"out{number}"), wanted)
