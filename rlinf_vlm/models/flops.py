"""Floating-point operations of a training step, counted from a model's config: for MFU.

Dataflow: config (object or dict) -> ``ModelShape`` -> ``step_flops(shape, work)``.

Counted, two operations a multiply-add: every matrix product, attention's two products included.
Linear part, forward: 2 x (weights used by a token) x tokens. Attention, forward, of a segment of L tokens and a layer
of width w = heads x head size: 4 w L^2, half of it for causal attention. Head: 2 x hidden x vocabulary x supervised
tokens.
Backward: as much again for the gradient of the weights where they are trained, and as much again for the gradient of
the inputs where the part or something before it is trained; attention has twice its forward in the latter case.
Adapters (LoRA): their own products, forward and backward, beside weights that are frozen and pass the gradient on.
MoE: the router and the experts that a token goes to, not all experts.
Not counted: norms, activations, softmax, embeddings look-ups, optimizer, and anything computed a second time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one optimizer step went through, summed over its micro-batches.

    tokens; supervised: tokens with a label; squared_lengths: sum of L^2 over samples; patches: of distinct images;
    squared_patches: sum of P^2 over images (frames); squared_windows: the same over windows, for towers with them.
    """

    tokens: int
    supervised: int
    squared_lengths: int
    patches: int = 0
    squared_patches: int = 0
    squared_windows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Weights that one unit of work meets. language_weights: a token's, without the head; language_width: heads x head
    size x layers; head_weights; embed_weights and vision_weights: a patch's; merger_weights: a patch's share, one in
    ``patches_per_feature``; full_width, window_width: vision width x layers with full and with window attention."""

    language_weights: int
    language_width: int
    head_weights: int
    embed_weights: int
    vision_weights: int
    full_width: int
    window_width: int
    merger_weights: float
    patches_per_feature: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Which parts' weights are trained, and how many weights of adapters stand beside them (all of a part's, whatever
    a patch's share of the merger)."""

    vision_tower: bool = True
    merger: bool = True
    language_model: bool = True
    vision_tower_adapters: int = 0
    merger_adapters: int = 0
    language_model_adapters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFlops:
    """Floating-point operations of one step."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


def step_flops(shape: ModelShape, work: Work, trained: Trained | None = None) -> StepFlops:
    """Forward and backward of ``work``. Multiply ``forward`` alone for a pass without gradients.

    Example: 2 tokens of one sample, one of them supervised, in a model with 10 weights a token, width 4 and 6 head
    weights: linear 2 x 10 x 2 = 40, attention 2 x 4 x 4 = 32, head 2 x 6 x 1 = 12; forward 84, backward 168.
    """
    trained = trained or Trained()
    vision_attention = 4 * (shape.full_width * work.squared_patches + shape.window_width * work.squared_windows)
    features = work.patches / shape.patches_per_feature
    # (forward of the linear part, of attention, of adapters, trained, gets a gradient for its inputs if trained itself)
    parts = [
        (2 * shape.embed_weights * work.patches, 0, 0, trained.vision_tower, False),
        (2 * shape.vision_weights * work.patches, vision_attention, 2 * trained.vision_tower_adapters * work.patches,
         trained.vision_tower, True),
        (2 * shape.merger_weights * work.patches, 0, 2 * trained.merger_adapters * features, trained.merger, True),
        (2 * shape.language_weights * work.tokens, 2 * shape.language_width * work.squared_lengths,
         2 * trained.language_model_adapters * work.tokens, trained.language_model, True),
        (2 * shape.head_weights * work.supervised, 0, 0, trained.language_model, True),
    ]  # fmt: skip
    forward = backward = 0.0
    upstream = False
    for linear, attention, adapters, is_trained, has_input_gradient in parts:
        forward += linear + attention + adapters
        learns = is_trained or adapters > 0
        flows = has_input_gradient and (learns or upstream)
        backward += linear * (is_trained + flows) + 2 * attention * flows + 2 * adapters
        upstream = upstream or (learns and work_reaches(linear))
    return StepFlops(forward=forward, backward=backward)


def feature_weight(shape: ModelShape, trained: Trained | None = None) -> float:
    """What the vision tower costs of one image token, in units of what the language model costs of a token.

    Linear parts alone, forward and backward. Example: 2.7 M weights a patch, 4 patches a token and 10.8 M weights a
    token, all trained, give about 1.
    """
    image = Work(tokens=0, supervised=0, squared_lengths=0, patches=shape.patches_per_feature)
    text = Work(tokens=1, supervised=0, squared_lengths=0)
    token = step_flops(shape, text, trained).total
    return step_flops(shape, image, trained).total / token if token else 0.0


def work_reaches(linear: float) -> bool:
    """Whether a part did anything: without images, the vision tower asks for no gradient downstream."""
    return linear > 0


def model_shape(config: Any) -> ModelShape:
    """The shape of a model from its config: an object of transformers or the dict of config.json."""
    text = _get(config, "text_config", default=None) or config
    vision = _get(config, "vision_config", default=None)
    hidden = int(_get(text, "hidden_size"))
    layers = int(_get(text, "num_hidden_layers"))
    heads = int(_get(text, "num_attention_heads"))
    kv_heads = int(_get(text, "num_key_value_heads", default=None) or heads)
    head_dim = int(_get(text, "head_dim", default=None) or hidden // heads)
    attention = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim
    mlps = sum(_mlp_weights(text, hidden, layer) for layer in range(layers))
    embed, blocks, full, window, merger = _vision_shape(vision, hidden) if vision is not None else (0, 0, 0, 0, 0.0)
    side = int(_get(vision, "spatial_merge_size", default=1)) if vision is not None else 1
    return ModelShape(
        language_weights=layers * attention + mlps,
        language_width=layers * heads * head_dim,
        head_weights=hidden * int(_get(text, "vocab_size")),
        embed_weights=embed,
        vision_weights=blocks,
        full_width=full,
        window_width=window,
        merger_weights=merger,
        patches_per_feature=side**2,
    )


def _mlp_weights(text: Any, hidden: int, layer: int) -> int:
    """Weights of one decoder layer's gated MLP, or router and active experts, that a token meets."""
    experts = int(_get(text, "num_experts", default=0) or 0)
    step = int(_get(text, "decoder_sparse_step", default=1) or 1)
    dense_layers = _get(text, "mlp_only_layers", default=None) or ()
    if experts and layer not in dense_layers and (layer + 1) % step == 0:
        active = int(_get(text, "num_experts_per_tok")) * int(_get(text, "moe_intermediate_size"))
        return 3 * hidden * active + hidden * experts
    return 3 * hidden * int(_get(text, "intermediate_size"))


def _vision_shape(vision: Any, hidden: int) -> tuple[int, int, int, int, float]:
    """(patch embedding, blocks, width x full layers, width x window layers, merger's share) of a vision tower."""
    # Qwen2-VL calls the tower's width embed_dim, and hidden_size what comes out of its merger.
    width = int(_get(vision, "embed_dim", default=None) or _get(vision, "hidden_size"))
    depth = int(_get(vision, "depth", default=None) or _get(vision, "num_hidden_layers"))
    out = int(_get(vision, "out_hidden_size", default=None) or hidden)
    patch = _get(vision, "patch_size")
    area = patch * patch if isinstance(patch, int) else patch[0] * patch[1]
    channels = int(_get(vision, "in_channels", default=None) or _get(vision, "num_channels", default=3))
    frames = int(_get(vision, "temporal_patch_size", default=1))
    ratio = _get(vision, "mlp_ratio", default=None)
    inner = int(_get(vision, "intermediate_size", default=None) or (ratio or 4) * width)
    full_layers = _get(vision, "fullatt_block_indexes", default=None)
    gated = full_layers is not None
    block = 4 * width * width + (3 if gated else 2) * width * inner
    num_full = len(full_layers) if full_layers is not None else depth
    merge = int(_get(vision, "spatial_merge_size", default=1)) ** 2
    deepstack = _get(vision, "deepstack_visual_indexes", default=None) or ()
    merged = width * merge
    merger = (1 + len(deepstack)) * (merged * merged + merged * out) / merge
    return channels * frames * area * width, depth * block, num_full * width, (depth - num_full) * width, merger


_REQUIRED = object()


def _get(config: Any, name: str, *, default: Any = _REQUIRED) -> Any:
    value = config.get(name, default) if isinstance(config, Mapping) else getattr(config, name, default)
    if value is _REQUIRED:
        raise ValueError(f"the model's config has no {name!r}: its floating-point operations cannot be counted")
    return value
