"""Weights of a folder into given memory: every family and layout, parts of tensors, and folders that do not fit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText

from rlinf_vlm.models.filling import RUN_BYTES, Part, fill, open_stored
from rlinf_vlm.models.loading import empty_model
from rlinf_vlm.models.weight_files import SafetensorsFiles
from rlinf_vlm.types import UserError
from tests.convert_inputs import moe_text, old_name, one_by_one, write_base, write_weights
from tests.tiny_models import GENERIC, QWEN_FAMILIES

FAMILIES = (*QWEN_FAMILIES, GENERIC)
UP = "layers.1.mlp.up_proj.weight"


def empty(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return empty_model(AutoConfig.from_pretrained(folder), dtype=dtype, trust_remote_code=False)


def reference(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Parameters as from_pretrained loads them, tied ones once."""
    return dict(AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).named_parameters())


def parts_of(hf: Any, cut: Callable[[tuple[int, ...]], tuple[slice, ...]]) -> dict[str, Part]:
    """Memory full of NaN for the box of every parameter that ``cut`` chooses."""
    parts: dict[str, Part] = {}
    for name, parameter in hf.named_parameters():
        box = cut(tuple(parameter.shape))
        shape = [chosen.stop - chosen.start for chosen in box]
        parts[name] = torch.full(shape, float("nan"), dtype=parameter.dtype), box
    return parts


def whole(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(0, size) for size in shape)


def rows(first: float, last: float) -> Callable[[tuple[int, ...]], tuple[slice, ...]]:
    """A range of the first dimension, given as fractions."""
    return lambda shape: (slice(int(shape[0] * first), int(shape[0] * last)), *whole(shape)[1:])


def columns(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The second half of the last dimension."""
    return (*whole(shape)[:-1], slice(shape[-1] // 2, shape[-1]))


def load(
    folder: Path, cut: Callable[..., Any], dtype: torch.dtype = torch.float32, run_bytes: int = RUN_BYTES
) -> dict[str, Part]:
    hf = empty(folder, dtype)
    stored = open_stored(folder, hf)
    assert stored is not None
    parts = parts_of(hf, cut)
    fill(parts, stored, run_bytes=run_bytes)
    return parts


def assert_loaded(
    folder: Path, cut: Callable[..., Any], dtype: torch.dtype = torch.float32, run_bytes: int = RUN_BYTES
) -> None:
    wanted = reference(folder, dtype)
    found = load(folder, cut, dtype, run_bytes)
    assert list(found) == list(wanted)
    for name, (tensor, box) in found.items():
        assert tensor.dtype == dtype and torch.equal(tensor, wanted[name][box]), name


@pytest.mark.parametrize("run_bytes", [RUN_BYTES, 300], ids=["a run a tensor", "many runs"])
@pytest.mark.parametrize("old", [True, False], ids=["hub names", "new names"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_is_what_from_pretrained_loads(family, tied, old, run_bytes, tmp_path):
    write_base(
        tmp_path, family, tied=tied, old=old, shards=3 if old else 1, dtype=torch.bfloat16 if old else torch.float32
    )
    for cut in (whole, rows(0, 0.3), rows(0.3, 1), rows(0.5, 0.5), columns):
        assert_loaded(tmp_path, cut, torch.float32, run_bytes)
    assert_loaded(tmp_path, rows(0.3, 1), torch.bfloat16, run_bytes)


@pytest.mark.parametrize("cut", [whole, rows(0.25, 0.75), rows(1, 1), columns])
def test_experts_that_the_folder_stores_one_by_one(cut, tmp_path):
    weights = write_base(tmp_path, GENERIC, text_config=moe_text)
    write_weights(tmp_path, {old_name(GENERIC, name): tensor for name, tensor in one_by_one(weights).items()}, shards=2)
    (tmp_path / "model.safetensors").unlink()
    assert_loaded(tmp_path, cut)


def test_saved_buffers_are_read_and_tensors_of_old_versions_passed_over(tmp_path):
    write_base(tmp_path, "qwen2.5_vl")
    change(tmp_path, lambda w: w.update({"model.rotary_emb.inv_freq": torch.ones(4)}))
    assert_loaded(tmp_path, whole)
    hf = empty(tmp_path)
    hf.model.register_buffer("scale", torch.zeros((), dtype=torch.float32))
    change(tmp_path, lambda w: w.update({"model.scale": torch.tensor(3.5)}))
    stored = open_stored(tmp_path, hf)
    assert stored is not None
    fill({**parts_of(hf, whole), "model.scale": (hf.model.scale, ())}, stored)
    assert float(hf.model.scale) == 3.5
    change(tmp_path, lambda w: w.pop("model.scale"))
    with pytest.raises(UserError, match=r"lacks 1 tensors .*\(model.scale\)"):
        open_stored(tmp_path, hf)


def test_a_tied_head_that_is_stored_too(tmp_path):
    write_base(tmp_path, "qwen2.5_vl", tied=True, lm_head=True)
    assert_loaded(tmp_path, rows(0.5, 1))
    change(tmp_path, lambda w: w["lm_head.weight"][-1].add_(1))
    assert load(tmp_path, rows(0, 0.5))
    with pytest.raises(
        UserError, match=r"lm_head.weight and model.embed_tokens.weight are one parameter .* but they differ"
    ):
        load(tmp_path, rows(0.5, 1))


def test_what_else_is_filled_comes_once_and_completely(tmp_path):
    write_base(tmp_path, "qwen2.5_vl")
    hf = empty(tmp_path)
    stored = open_stored(tmp_path, hf)
    assert stored is not None
    fresh = torch.arange(12.0).reshape(4, 3)
    parts = parts_of(hf, whole)
    more = {**parts, "a": (torch.full((2, 3), float("nan")), (slice(1, 3), slice(0, 3)))}
    fill(more, stored, [("a", fresh)])
    assert torch.equal(more["a"][0], fresh[1:3])
    with pytest.raises(ValueError, match=r"not filled, or not there: \['a'\]"):
        fill(more, stored)
    with pytest.raises(ValueError, match="norm.weight is filled twice"):
        fill(parts, stored, [("model.language_model.norm.weight", torch.zeros(32))])
    lacking = {name: part for name, part in parts.items() if name != "lm_head.weight"}
    with pytest.raises(KeyError, match="lm_head.weight"):
        fill(lacking, stored)
    with pytest.raises(ValueError, match="lm_head.weight: .* is no box of the shape"):
        fill({**parts, "lm_head.weight": (torch.zeros(3, 32), whole((4, 32)))}, stored)


def change(folder: Path, how: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    how(weights)
    write_weights(folder, weights)


def _rename(weights: dict[str, torch.Tensor]) -> None:
    weights["model.nothing"] = weights.pop("model." + UP)


MISFITS = {
    "missing": (lambda w: w.pop("model." + UP), ["lacks 1 tensors", UP]),
    "unexpected": (
        lambda w: w.update({"model.layers.7.x": torch.ones(2)}),
        ["no place for the tensor model.layers.7.x"],
    ),
    "shape": (
        lambda w: w.update({"model." + UP: w["model." + UP][:-1].clone()}),
        [UP + " has the shape [47, 32], its config.json says [48, 32]"],
    ),
    "both": (_rename, ["lacks 1 tensors", UP, "no place for the tensor model.nothing"]),
    "many": (lambda w: [w.pop(name) for name in list(w) if ".mlp." in name], ["lacks 22 tensors", " and 17 more)"]),
    "type": (lambda w: w.update({"model." + UP: w["model." + UP].to(torch.float8_e4m3fn)}), ["F8_E4M3", "quantized"]),
    "whole numbers": (lambda w: w.update({"model." + UP: w["model." + UP].to(torch.int8)}), ["int8", "quantized"]),
}


@pytest.mark.parametrize(("how", "expected"), MISFITS.values(), ids=MISFITS)
def test_weights_that_do_not_fit_are_told_in_one_line(how, expected, tmp_path):
    write_base(tmp_path, "qwen2.5_vl")
    change(tmp_path, how)
    with pytest.raises(UserError) as caught:
        open_stored(tmp_path, empty(tmp_path))
    line = str(caught.value)
    assert line.startswith(f"actor.model.model_path='{tmp_path}': ") and "\n" not in line
    for part in expected:
        assert part in line, line


def test_experts_of_another_size(tmp_path):
    write_base(tmp_path, "qwen3_vl_moe")
    change(tmp_path, lambda w: w.update({n: t[:3].clone() for n, t in w.items() if "layers.1.mlp.experts.down" in n}))
    with pytest.raises(UserError, match=r"layers.1.mlp.experts.down_proj has the shape \[3, .*config.json says \[4, "):
        open_stored(tmp_path, empty(tmp_path))


@pytest.mark.parametrize("size", [0, 5, 3000, -4])
def test_a_file_that_is_cut(size, tmp_path):
    write_base(tmp_path, "qwen2.5_vl")
    file = tmp_path / "model.safetensors"
    os.truncate(file, size if size >= 0 else file.stat().st_size + size)
    with pytest.raises(UserError, match=r"actor.model.model_path=.*: .*model.safetensors is cut .*; copy it again"):
        open_stored(tmp_path, empty(tmp_path))


def test_a_file_that_is_cut_while_it_is_read(tmp_path):
    write_base(tmp_path, "qwen2.5_vl")
    hf = empty(tmp_path)
    stored = open_stored(tmp_path, hf)
    assert stored is not None
    os.truncate(tmp_path / "model.safetensors", (tmp_path / "model.safetensors").stat().st_size - 4)
    with pytest.raises(UserError, match=r"model.safetensors ends inside .*: it was cut while it was read"):
        fill(parts_of(hf, whole), stored)


def test_files_of_an_index(tmp_path):
    write_base(tmp_path, "qwen2.5_vl", shards=3)
    file = next(tmp_path.glob("*00002*.safetensors"))
    aside = file.rename(tmp_path / "aside")
    with pytest.raises(UserError, match=rf"model_path=.*: 1 of 3 weight files are missing \({file.name}\)"):
        open_stored(tmp_path, empty(tmp_path))
    aside.rename(file)
    again = load_file(tmp_path / "model-00001-of-00003.safetensors") | load_file(file)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    write_weights(tmp_path, again)
    (tmp_path / "model.safetensors").rename(file)
    with pytest.raises(UserError, match=r"is in model-00001-of-00003.safetensors and in model-00002-of"):
        open_stored(tmp_path, empty(tmp_path))
    del index["weight_map"]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="is cut or no index of weights"):
        open_stored(tmp_path, empty(tmp_path))


def test_without_safetensors_there_is_nothing_to_open(tmp_path):
    write_base(tmp_path, "qwen2.5_vl")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert open_stored(tmp_path, empty(tmp_path)) is None


def test_a_run_of_elements(tmp_path):
    values = {"a": torch.arange(10.0), "b": torch.arange(12, dtype=torch.int16).reshape(4, 3), "c": torch.zeros(0, 3)}
    write_weights(tmp_path, values)
    files = SafetensorsFiles(tmp_path, [tmp_path / "model.safetensors"])
    out = torch.full((2, 3), -1, dtype=torch.int16)
    files.read_into("b", 3, out)
    assert torch.equal(out, values["b"][1:3])
    files.read_into("c", 0, torch.zeros(0, 3))
    with pytest.raises(AssertionError, match="b"):
        files.read_into("b", 7, out)
    with pytest.raises(AssertionError, match="a"):
        files.read_into("a", 0, torch.zeros(2, dtype=torch.float64))
