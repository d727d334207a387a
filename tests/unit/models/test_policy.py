"""The packed policy against transformers' own forward of each sample alone, in fp32."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlinf_vlm.config.passes import ModelPasses
from rlinf_vlm.models.families import FamilySpec, resolve_family
from rlinf_vlm.models.loading import freeze, wrap_model
from rlinf_vlm.models.policy import VisionLanguageModel
from rlinf_vlm.types import IGNORE_INDEX, UserError
from tests.packing_by_hand import Row, alone, make_row, mixed_rows, pack, random_image
from tests.tiny_models import GENERIC, QWEN_FAMILIES, make_tiny

FAMILIES = (*QWEN_FAMILIES, GENERIC)


def assert_scores(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-6)


def spec_of(family: str) -> FamilySpec:
    return resolve_family("auto" if family == GENERIC else family)


def build(family: str, *, tied: bool = False) -> tuple[VisionLanguageModel, Any]:
    """The policy, and the untouched transformers model with the same weights."""
    hf, _ = make_tiny(family, seed=1, tied=tied)
    return wrap_model(copy.deepcopy(hf), spec_of(family), attention="sdpa"), hf


def weights_of(rows: list[Row]) -> torch.Tensor:
    """Different weights for the logprobs, so that no gradient cancels by symmetry."""
    count = sum(int((row.labels != IGNORE_INDEX).sum()) for row in rows)
    return torch.linspace(0.5, 2.0, count)


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    out = {}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        out[VisionLanguageModel.hf_state_name(name)] = parameter.grad
    return out


def assert_same_gradients(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max())
        error = float((got[name] - gradient).abs().max())
        assert error <= 1e-4 * scale + 1e-7, f"{name}: differs by {error}, its largest element is {scale}"


def reference(hf: Any, rows: list[Row], family: str) -> tuple[torch.Tensor, torch.Tensor]:
    scores = [alone(hf, row, family=family) for row in rows]
    return torch.cat([logprobs for logprobs, _ in scores]), torch.cat([argmax for _, argmax in scores])


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_scores_and_gradients_equal_those_of_each_sample_alone(family: str) -> None:
    model, hf = build(family)
    rows = mixed_rows(family)
    scores = model(pack(rows, family=family))
    logprobs, argmax = reference(hf, rows, family)
    assert scores.logprobs.dtype == torch.float32 and scores.logprobs.shape == (15,)
    assert_scores(scores.logprobs, logprobs)
    assert torch.equal(scores.argmax, argmax)
    (scores.logprobs * weights_of(rows)).sum().backward()
    (logprobs * weights_of(rows)).sum().backward()
    wanted = {name: p.grad for name, p in hf.named_parameters() if p.grad is not None}
    got = gradients_present(model)
    assert_same_gradients(got, wanted)
    assert len(wanted) > 30


def gradients_present(model: VisionLanguageModel) -> dict[str, torch.Tensor]:
    """Gradients by transformers name; Llava's tower has layers after the one whose output is taken."""
    return {model.hf_state_name(n): p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", QWEN_FAMILIES)
def test_one_dimensional_positions_give_other_scores(family: str) -> None:
    model, hf = build(family)
    rows = mixed_rows(family)
    scores = model(pack(rows, family=family, one_dimensional=True))
    logprobs, _ = reference(hf, rows, family)
    difference = (scores.logprobs - logprobs).detach().abs()
    assert_scores(scores.logprobs[:4], logprobs[:4])
    assert float(difference[4:13].max()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_sample_leaves_the_others_alone(family: str) -> None:
    model, _ = build(family)
    rows = mixed_rows(family)
    changed = list(rows)
    ids = rows[1].input_ids.clone()
    ids[0] = (ids[0] + 1) % 90 + 3
    changed[1] = replace(rows[1], input_ids=ids)
    with torch.no_grad():
        before = model(pack(rows, family=family)).logprobs
        after = model(pack(changed, family=family)).logprobs
    assert torch.equal(before[:4], after[:4]) and torch.equal(before[7:], after[7:])
    assert not torch.allclose(before[4:7], after[4:7], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_used_twice_is_computed_once_with_the_same_result(family: str) -> None:
    model, _ = build(family)
    generator = torch.Generator().manual_seed(3)
    image = random_image(family, (1, 4, 6), generator)
    rows = [make_row([2, image, 5], 3, generator), make_row([4, image, 4], 2, generator), make_row([5], 2, generator)]
    once, twice = pack(rows, family=family), pack(rows, family=family, share=False)
    assert (once.num_images, twice.num_images) == (1, 2)
    results = []
    for batch in (once, twice):
        model.zero_grad(set_to_none=True)
        scores = model(batch)
        (scores.logprobs * weights_of(rows)).sum().backward()
        results.append((scores.logprobs.detach(), {n: g.clone() for n, g in gradients_present(model).items()}))
    assert_scores(results[0][0], results[1][0])
    assert_same_gradients(results[0][1], results[1][1])


@pytest.mark.parametrize("family", FAMILIES)
def test_text_only_batch_equals_transformers_and_gives_the_tower_zeros(family: str) -> None:
    model, hf = build(family)
    rows = [mixed_rows(family)[i] for i in (0, 4)]
    scores = model(pack(rows, family=family))
    logprobs, _ = reference(hf, rows, family)
    assert_scores(scores.logprobs, logprobs)
    scores.logprobs.sum().backward()
    got = gradients_present(model)
    tower = [g for n, g in got.items() if n.startswith(("model.visual.", "model.vision_tower.", "model.multi_modal"))]
    assert len(tower) > 10 and all(float(g.abs().max()) == 0.0 for g in tower)
    if family in QWEN_FAMILIES:
        assert got.keys() == {name for name, _ in hf.named_parameters()}
    assert float(got["model.language_model.embed_tokens.weight"].abs().max()) > 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_without_labels_gives_an_empty_result_with_a_backward_pass(family: str) -> None:
    model, _ = build(family)
    rows = [replace(row, labels=torch.full_like(row.labels, IGNORE_INDEX)) for row in mixed_rows(family)]
    with_labels = pack(mixed_rows(family), family=family)
    model(with_labels).logprobs.sum().backward()
    trained = gradients_present(model).keys()
    model.zero_grad(set_to_none=True)
    scores = model(pack(rows, family=family))
    assert scores.logprobs.shape == (0,) and scores.argmax.shape == (0,)
    scores.logprobs.sum().backward()
    got = gradients_present(model)
    assert got.keys() == trained and all(float(g.abs().max()) == 0.0 for g in got.values())


@pytest.mark.parametrize("family", ["qwen2.5_vl", "qwen3_vl"])
def test_chunks_and_checkpointing_change_nothing(family: str) -> None:
    model, _ = build(family)
    batch = pack(mixed_rows(family), family=family)
    results = []
    for chunk, checkpointing in ((1024, False), (4, False), (4, True)):
        model.chunk = chunk
        model.set_gradient_checkpointing(checkpointing)
        model.zero_grad(set_to_none=True)
        scores = model(batch)
        scores.logprobs.sum().backward()
        results.append((scores, {n: g.clone() for n, g in gradients(model).items()}))
    for scores, got in results[1:]:
        torch.testing.assert_close(scores.logprobs, results[0][0].logprobs, rtol=1e-6, atol=1e-6)
        assert torch.equal(scores.argmax, results[0][0].argmax)
        assert_same_gradients(got, results[0][1])


@pytest.mark.parametrize("family", QWEN_FAMILIES)
def test_computation_in_bfloat16_takes_fp32_pixels(family: str) -> None:
    model, hf = build(family)
    rows = mixed_rows(family)
    logprobs, _ = reference(hf, rows, family)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    scores = model(pack(rows, family=family))
    assert scores.logprobs.dtype == torch.float32
    assert model.hf.model.language_model.rotary_emb.inv_freq.dtype == torch.float32
    assert float((scores.logprobs - logprobs).detach().abs().max()) < 0.3
    scores.logprobs.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in model.parameters())


@pytest.mark.parametrize("family", QWEN_FAMILIES)
@pytest.mark.parametrize("linear", [True, False], ids=["linear", "convolution"])
def test_pixels_may_come_in_the_dtype_that_computes(family: str, linear: bool) -> None:
    """Rounded before they are sent or by the tower: the same bits. ``FamilySpec.rounds_pixels`` says so."""
    hf, _ = make_tiny(family, seed=1)
    model = wrap_model(hf, spec_of(family), attention="sdpa", passes=ModelPasses(linear_patch_embed=linear))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    batch = pack(mixed_rows(family), family=family)
    pixels = batch.image_inputs["pixel_values"]
    rounded = replace(batch, image_inputs={**batch.image_inputs, "pixel_values": pixels.bfloat16()})
    assert spec_of(family).rounds_pixels and not torch.equal(pixels, pixels.bfloat16().float())
    ours, theirs = model(rounded), model(batch)
    assert torch.equal(ours.logprobs, theirs.logprobs)


def test_frozen_vision_runs_without_gradients_and_keeps_the_scores() -> None:
    model, hf = build("qwen3_vl")
    rows = mixed_rows("qwen3_vl")
    freeze(model, model.spec, vision_tower=True, merger=True)
    recorded: list[bool] = []
    model.hf.model.visual.merger.register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    scores = model(pack(rows, family="qwen3_vl"))
    assert recorded == [False]
    assert_scores(scores.logprobs, reference(hf, rows, "qwen3_vl")[0])
    scores.logprobs.sum().backward()
    assert all((p.grad is None) == n.startswith("hf.model.visual.") for n, p in model.named_parameters())


def test_images_that_give_other_features_than_announced_are_refused() -> None:
    model, _ = build("qwen2.5_vl")
    batch = pack(mixed_rows("qwen2.5_vl"), family="qwen2.5_vl")
    with pytest.raises(ValueError, match="images give 17 features, but the micro-batch announces 16"):
        model(replace(batch, num_features=16))


def test_softcapped_logits_are_refused() -> None:
    hf, config = make_tiny("qwen2_vl")
    config.get_text_config().final_logit_softcapping = 30.0
    with pytest.raises(UserError, match=r"final_logit_softcapping: 30\.0"):
        wrap_model(hf, resolve_family("qwen2_vl"), attention="sdpa")
