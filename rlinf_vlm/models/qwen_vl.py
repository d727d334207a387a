"""The packed forward of the Qwen-VL families: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, dense and MoE.

Dataflow: the distinct images of a micro-batch through the vision tower, once each -> features gathered to the image
tokens -> language model on one row [1, T] of all samples -> hidden states [T, H]. Deepstack features (Qwen3-VL) go the
same way into the first decoder layers.
Invariants: attention sees segments through cu_seqlens only; a micro-batch without images runs the tower on a smallest
image whose features no token uses, so that ranks run the same collectives and the tower's gradients are zeros.
Not here: videos; the router's auxiliary loss of the MoE family.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rlinf_vlm.config.passes import ModelPasses
from rlinf_vlm.models.attention import hf_name, register_attention
from rlinf_vlm.models.compiled import compile_blocks
from rlinf_vlm.models.mlp_padding import pad_mlps
from rlinf_vlm.models.policy import check_features, place_features
from rlinf_vlm.models.segments import LengthBound, SegmentBook, build_segments
from rlinf_vlm.models.transfer import copy_to
from rlinf_vlm.models.vision_tables import VisionGeometry, VisionPlanner
from rlinf_vlm.types import MicroBatch

FIRST_SAMPLE_BOUND = 4096
"""Tokens of a sample that are expected."""


class LinearPatchEmbed(nn.Module):
    """A patch embedding whose convolution's stride is its kernel, computed as the matrix product that it is.

    Takes over the convolution of the module that it replaces, so that parameter names stay.
    """

    def __init__(self, proj: nn.Module) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """patches [P, channels * frames * rows * columns] of any float type -> [P, width] of the weight's."""
        weight: Any = self.proj.weight
        bias: Any = self.proj.bias
        return F.linear(patches.to(weight.dtype), weight.flatten(1), bias)


class QwenBackbone:
    """``Backbone`` of a Qwen-VL model; changes the model it is given: attention, patch embedding, deepstack sum, and
    what ``passes`` says."""

    def __init__(self, hf: Any, attention: str, passes: ModelPasses) -> None:
        register_attention()
        self._visual = hf.model.visual
        self._language = hf.model.language_model
        self._grouped = attention == "sdpa"
        name = hf_name(attention)
        # Set after construction: at construction, transformers would look the name up among downloadable kernels.
        self._visual.config._attn_implementation = name
        self._language.config._attn_implementation = name
        # Each tower hands its config on to its layers; a layer with a config of its own would keep its attention.
        for tower in (self._visual, self._language):
            for module in tower.modules():
                config = getattr(module, "config", None)
                assert config is None or config._attn_implementation == name, f"{type(module).__name__} has own config"
        patches = self._visual.patch_embed
        if passes.linear_patch_embed and not isinstance(patches, LinearPatchEmbed):
            assert tuple(patches.proj.kernel_size) == tuple(patches.proj.stride), "patches overlap"
            self._visual.patch_embed = LinearPatchEmbed(patches.proj)
        self._deepstack = hasattr(self._visual, "deepstack_merger_list")
        if self._deepstack:
            assert hasattr(self._language, "_deepstack_process"), "this transformers adds deepstack features elsewhere"
            self._language._deepstack_process = add_at_positions
        self._planner = VisionPlanner(VisionGeometry.of(self._visual), grouped=self._grouped)
        self._longest = LengthBound(FIRST_SAMPLE_BOUND)
        self._no_grad_when_frozen = passes.frozen_vision_no_grad
        if any(hasattr(module, "experts") for module in self._language.modules()):
            hf.set_experts_implementation("grouped_mm" if passes.grouped_experts else "eager")
        if passes.pad_vision_mlp:
            pad_mlps(list(self._visual.blocks))
        if passes.compile:
            for blocks in self.blocks():
                compile_blocks(blocks, whole=attention == "varlen")

    def hidden_states(self, batch: MicroBatch) -> torch.Tensor:
        """See ``Backbone``."""
        features, deepstack = self._image_features(batch)
        embeddings = place_features(self._language.embed_tokens(batch.input_ids), features, batch)
        segments = build_segments(
            batch.lengths,
            device=batch.input_ids.device,
            causal=True,
            grouped=self._grouped,
            bound=self._longest,
            cu_seqlens=batch.cu_seqlens,
        )
        extra: dict[str, Any] = {}
        if self._grouped:
            extra["segments"] = SegmentBook(entries=(segments,))
        if self._deepstack:
            extra["visual_pos_masks"] = batch.image_positions
            extra["deepstack_visual_embeds"] = [layer.index_select(0, batch.image_feature_index) for layer in deepstack]
        output = self._language(
            inputs_embeds=embeddings.unsqueeze(0),
            position_ids=batch.position_ids.unsqueeze(1),
            attention_mask=None,
            use_cache=False,
            cu_seq_lens_q=segments.cu_seqlens,
            cu_seq_lens_k=segments.cu_seqlens,
            max_length_q=segments.kernel_max_length,
            max_length_k=segments.kernel_max_length,
            **extra,
        )
        return output.last_hidden_state[0]

    def blocks(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """See ``Backbone``."""
        return list(self._visual.blocks), list(self._language.layers)

    def _image_features(self, batch: MicroBatch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Features [F, H] of the distinct images, and the deepstack features, [F, H] a layer."""
        grids = batch.image_grids
        if len(grids) != batch.num_images:
            raise ValueError(f"micro-batch announces {batch.num_images} images, but has {len(grids)} grids")
        device = batch.input_ids.device
        if grids:
            pixels, thw = batch.image_inputs["pixel_values"], batch.image_inputs["image_grid_thw"]
            rows = sum(t * h * w for t, h, w in grids)
            if rows != pixels.shape[0]:
                raise ValueError(f"image grids stand for {rows} patches, but pixel_values has {pixels.shape[0]}")
        else:
            merge = self._planner.geometry.spatial_merge_size
            grids = ((1, merge, merge),)
            width = self._visual.patch_embed.proj.weight.shape[1:].numel()
            pixels = torch.zeros(merge * merge, width, device=device)
            thw = copy_to(torch.tensor(grids), device)
        inputs = self._planner.plan(grids, device)
        if batch.image_grids:
            check_features(inputs.num_features, batch)
        trained = any(parameter.requires_grad for parameter in self._visual.parameters())
        with torch.no_grad() if self._no_grad_when_frozen and not trained else nullcontext():
            output = self._visual(pixels, grid_thw=thw, **inputs.kwargs)
        return output.pooler_output, list(output.deepstack_features) if self._deepstack else []


def add_at_positions(hidden: torch.Tensor, positions: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """``hidden`` [1, T, H] plus ``features`` [I, H] at ``positions`` [I] (distinct)."""
    return hidden.index_add(1, positions, features.unsqueeze(0).to(hidden.dtype))
