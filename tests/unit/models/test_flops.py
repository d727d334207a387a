"""Floating-point operations, worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlinf_vlm.models.flops import ModelShape, Trained, Work, feature_weight, model_shape, step_flops
from tests.tiny_models import make_tiny, tiny_config

SHAPE = ModelShape(
    language_weights=10, language_width=4, head_weights=6, embed_weights=3, vision_weights=5, full_width=2,
    window_width=1, merger_weights=7,
)  # fmt: skip
TEXT = Work(tokens=2, supervised=1, squared_lengths=4)
WORK = Work(tokens=2, supervised=1, squared_lengths=4, patches=4, squared_patches=16, squared_windows=8)


def test_text_only_by_hand() -> None:
    flops = step_flops(SHAPE, TEXT)
    # linear 2*10*2 = 40, attention 2*4*4 = 32, head 2*6*1 = 12
    assert (flops.forward, flops.backward, flops.total) == (84, 168, 252)


def test_with_images_by_hand() -> None:
    # patch embedding 2*3*4 = 24 (weights only in the backward), blocks 2*5*4 = 40,
    # attention 4*(2*16 + 1*8) = 160, merger 2*7*4 = 56, language 84
    flops = step_flops(SHAPE, WORK)
    assert flops.forward == 24 + 40 + 160 + 56 + 84
    assert flops.backward == 24 + 2 * (40 + 160 + 56 + 84)


def test_frozen_parts_by_hand() -> None:
    flops = step_flops(SHAPE, WORK, Trained(vision_tower=False, merger=True, language_model=False))
    # the merger: weights and inputs; the language model and the head pass the gradient on only
    assert flops.backward == 2 * 56 + (40 + 2 * 32 + 12)
    frozen_vision = step_flops(SHAPE, WORK, Trained(vision_tower=False, merger=False))
    assert frozen_vision.backward == 168 and frozen_vision.forward == flops.forward
    nothing_flows = step_flops(SHAPE, TEXT, Trained(language_model=False))
    assert nothing_flows.backward == 0


def test_adapters_by_hand() -> None:
    none = {"vision_tower": False, "merger": False, "language_model": False}
    text = step_flops(SHAPE, TEXT, Trained(**none, language_model_adapters=3))
    # adapters 2*3*2 = 12, forward once and backward twice; the frozen weights pass the gradient on: 40 + 2*32 + 12
    assert (text.forward, text.backward) == (84 + 12, 116 + 24)
    shape = replace(SHAPE, patches_per_feature=4)
    everywhere = Trained(**none, vision_tower_adapters=2, merger_adapters=8, language_model_adapters=3)
    flops = step_flops(shape, WORK, everywhere)
    # vision 2*2*4 = 16; the merger meets one feature for 4 patches: 2*8*1 = 16
    assert flops.forward == 24 + 40 + 160 + 56 + 84 + 16 + 16 + 12
    assert flops.backward == 40 + 2 * 160 + 56 + 116 + 2 * (16 + 16 + 12)
    vision_only = step_flops(shape, WORK, Trained(**none, vision_tower_adapters=2))
    assert vision_only.backward == 40 + 2 * 160 + 56 + 116 + 2 * 16


def test_shape_of_a_dense_model_by_hand() -> None:
    shape = model_shape(tiny_config("qwen2.5_vl"))
    # a layer: q and o 2*32*32, k and v 2*32*16, three of 32*48
    assert shape.language_weights == 2 * (2048 + 1024 + 4608)
    assert shape.language_width == 2 * 4 * 8 and shape.head_weights == 32 * 128
    assert shape.embed_weights == 3 * 2 * 16 * 32
    assert shape.vision_weights == 2 * (4 * 32 * 32 + 3 * 32 * 40)
    assert (shape.full_width, shape.window_width) == (32, 32)
    assert shape.merger_weights == (128 * 128 + 128 * 32) / 4 and shape.patches_per_feature == 4


def test_shape_counts_active_experts_and_deepstack() -> None:
    shape = model_shape(tiny_config("qwen3_vl_moe"))
    # two of four experts of width 24, and the router
    assert shape.language_weights == 2 * (2048 + 1024 + 3 * 32 * 2 * 24 + 32 * 4)
    assert shape.merger_weights == 3 * (128 * 128 + 128 * 32) / 4
    assert shape.window_width == 0 and shape.full_width == 64


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2.5_vl", "qwen3_vl"])
def test_weights_are_those_of_the_model(family: str) -> None:
    model, config = make_tiny(family)
    shape = model_shape(config)
    language = model.model.language_model
    matrices = sum(p.numel() for n, p in language.named_parameters() if p.ndim == 2 and "embed_tokens" not in n)
    assert shape.language_weights == matrices
    visual = model.model.visual
    assert shape.vision_weights == sum(p.numel() for p in visual.blocks.parameters() if p.ndim == 2)
    assert shape.embed_weights == visual.patch_embed.proj.weight.numel()
    mergers = sum(p.numel() for n, p in visual.named_parameters() if "merger" in n and p.ndim == 2)
    assert shape.merger_weights * 4 == mergers
    assert model_shape(config.to_dict()) == shape


def test_generic_model_is_counted() -> None:
    shape = model_shape(tiny_config("llava"))
    assert shape.vision_weights == 3 * (4 * 32 * 32 + 2 * 32 * 40)
    with pytest.raises(ValueError, match="no 'hidden_size'"):
        model_shape({"text_config": {"num_hidden_layers": 2}})


def test_what_an_image_token_costs_by_hand() -> None:
    shape = ModelShape(
        language_weights=40,
        language_width=7,
        head_weights=9,
        embed_weights=1,
        vision_weights=5,
        full_width=3,
        window_width=3,
        merger_weights=2.0,
        patches_per_feature=4,
    )
    # Of 4 patches forward: 4 x (1 + 5 + 2) = 32, of a token 40. Backward twice that, but for the embedding, which hands
    # no gradient down: (3 x 32 - 4) / (3 x 40).
    assert feature_weight(shape) == pytest.approx(92 / 120)
    # Frozen, the tower runs forward alone: 32 / 120; with a frozen language model, that still hands gradients down.
    frozen = Trained(vision_tower=False, merger=False)
    assert feature_weight(shape, frozen) == pytest.approx(32 / 120)
