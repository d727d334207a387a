"""The generic forward, for image-text-to-text models of transformers without a packed one: one padded row a sample.

Dataflow: the distinct images through the model's own ``get_image_features``, once each -> features put at the image
tokens of the padded embeddings [S, Lmax, H] -> the base model with an attention mask -> hidden states without padding,
[T, H].
Invariants: as of every backbone (policy.py); padding is on the right, where causal attention does not see it.
Not here: models with 3-D positions, models that read images in more than one layer, and models whose attention mask or
further inputs depend on the ids (they are refused where that shows). A micro-batch without images runs the vision tower
on a black image where the config tells its size (``vision_config.image_size``), so that sharded ranks stay in step;
where it does not, the tower is not run, and every rank has to have images or none.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rlinf_vlm.config.passes import ModelPasses
from rlinf_vlm.models.policy import check_features, place_features
from rlinf_vlm.models.transfer import copy_to
from rlinf_vlm.types import MicroBatch, UserError


class PaddedBackbone:
    """``Backbone`` of any model with ``model.get_image_features``; keeps the attention that transformers chose."""

    def __init__(self, hf: Any, attention: str, passes: ModelPasses) -> None:
        self._hf = hf
        self._no_grad_when_frozen = passes.frozen_vision_no_grad
        self._base = hf.model
        if not hasattr(self._base, "get_image_features"):
            raise UserError(f"{type(hf).__name__} has no get_image_features; the generic model_type cannot run it")
        rope = getattr(hf.config.get_text_config(), "rope_parameters", None) or {}
        if "mrope_section" in rope:
            raise UserError(f"{type(hf).__name__} has 3-D positions (mrope_section); the generic model_type has not")
        if "token_type_ids" in inspect.signature(self._base.forward).parameters:
            raise UserError(
                f"{type(hf).__name__} attends to image tokens in both directions (token_type_ids); the generic "
                "model_type does not"
            )
        _first(hf.config, "image_token_id", "image_token_index")

    def hidden_states(self, batch: MicroBatch) -> torch.Tensor:
        """See ``Backbone``."""
        rows, columns = len(batch.lengths), max(batch.lengths)
        device = batch.input_ids.device
        lengths = torch.tensor(batch.lengths)
        mask = copy_to(torch.arange(columns)[None, :] < lengths[:, None], device)
        # Where a token of the packed row stands in the flattened padded rows.
        starts = torch.repeat_interleave(torch.arange(rows) * columns - (torch.cumsum(lengths, 0) - lengths), lengths)
        places = copy_to(torch.arange(int(lengths.sum())) + starts, device)
        ids = batch.input_ids.new_zeros(rows * columns).index_copy(0, places, batch.input_ids)
        embeddings = self._base.get_input_embeddings()(ids)
        features = self._image_features(batch)
        if features is not None:
            if batch.num_images:
                check_features(features.shape[0], batch)
            positions = places.index_select(0, batch.image_positions)
            embeddings = place_features(embeddings, features, batch, positions)
        output = self._base(
            inputs_embeds=embeddings.unflatten(0, (rows, columns)), attention_mask=mask.long(), use_cache=False
        )
        return output.last_hidden_state.flatten(0, 1).index_select(0, places)

    def blocks(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """See ``Backbone``; blocks are the members of module lists that transformers treats as layers."""
        text: Any = _first_module(self._base, "language_model", "text_model")
        inside = {id(module) for module in text.modules()} if text is not None else set()
        names = set(_no_split_names(self._hf))
        vision: list[nn.Module] = []
        decoder: list[nn.Module] = []
        for group in self._base.modules():
            for module in group if isinstance(group, nn.ModuleList) else ():
                if isinstance(module, GradientCheckpointingLayer) or type(module).__name__ in names:
                    (decoder if id(module) in inside else vision).append(module)
        return vision, decoder

    def _image_features(self, batch: MicroBatch) -> torch.Tensor | None:
        """Features [F, H] of the distinct images, or None where there is nothing to run."""
        inputs: dict[str, Any] = dict(batch.image_inputs)
        if not batch.num_images:
            pixels = self._black_image(batch.input_ids.device)
            if pixels is None:
                return None
            inputs = {"pixel_values": pixels}
        tower: Any = _first_module(self._base, "vision_tower", "vision_model", "visual", "image_encoder") or self._base
        tower_parameter = next(tower.parameters())
        inputs["pixel_values"] = inputs["pixel_values"].to(tower_parameter.dtype)
        text: Any = _first_module(self._base, "language_model", "text_model") or tower
        inside = {id(parameter) for parameter in text.parameters()}
        trained = any(p.requires_grad for p in self._base.parameters() if id(p) not in inside)
        with torch.no_grad() if self._no_grad_when_frozen and not trained else nullcontext():
            output = self._base.get_image_features(**inputs)
        features = getattr(output, "pooler_output", output)
        if isinstance(features, (list, tuple)):
            features = torch.cat([feature.flatten(0, -2) for feature in features])
        return features.flatten(0, -2)

    def _black_image(self, device: torch.device) -> torch.Tensor | None:
        vision = getattr(self._hf.config, "vision_config", None)
        size = getattr(vision, "image_size", None)
        if size is None:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        return torch.zeros(1, getattr(vision, "num_channels", 3), height, width, device=device)


def _first(config: Any, *names: str) -> Any:
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return value
    raise UserError(f"the model's config has none of {', '.join(names)}; the generic model_type needs one")


def _first_module(base: Any, *names: str) -> nn.Module | None:
    return next((getattr(base, name) for name in names if isinstance(getattr(base, name, None), nn.Module)), None)


def _no_split_names(hf: Any) -> list[str]:
    return [name for module in hf.modules() for name in (getattr(module, "_no_split_modules", None) or [])]
