"""The model that the trainer holds: a transformers vision-language model that scores packed micro-batches.

Dataflow: MicroBatch -> backbone (vision tower, image features into embeddings, language model) -> last hidden states
[T, H] -> supervised places only -> TokenScores.
Invariants: in fp32 the scores are those of transformers' own forward of each sample alone; a micro-batch without images
or without labels still runs, forwards and backwards, through every parameter that one with them would.
The module calls the parts of the transformers model itself, and is meant to be the FSDP2 root.
Not here: losses, optimizers, sharding, building (loading.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from rlinf_vlm.models.families import FamilySpec
from rlinf_vlm.models.token_scores import CHUNK, pick_labels, pick_viewed, score_labels
from rlinf_vlm.types import LogitView, MicroBatch, TokenScores, UserError

_PREFIX = "hf."
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "base_layer.")
"""Pieces that compilation, recomputation and adapters put into names."""


class Backbone(Protocol):
    """What a family implements. Made as ``Backbone(hf_model, attention_name, passes)``, with ``ModelPasses``."""

    def hidden_states(self, batch: MicroBatch) -> torch.Tensor:
        """The last hidden states [T, H] of a micro-batch, after the final norm."""
        ...

    def blocks(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """(vision blocks, decoder layers), each in the order in which they run."""
        ...


class VisionLanguageModel(nn.Module):
    """``model(batch) -> TokenScores``. ``hf`` is the transformers model, whose parameters are all there are."""

    hf: Any

    def __init__(
        self,
        hf: nn.Module,
        spec: FamilySpec,
        backbone: Backbone,
        *,
        chunk: int | None = CHUNK,
        pick: Callable[..., tuple[torch.Tensor, ...]] = pick_labels,
        pick_view: Callable[..., tuple[torch.Tensor, ...]] = pick_viewed,
    ) -> None:
        """chunk, pick, pick_view (what ``pick`` is under a ``LogitView``): see ``score_labels``."""
        super().__init__()
        self.hf = hf
        self.spec = spec
        self.chunk = chunk
        self._pick = pick
        self._pick_view = pick_view
        self._backbone = backbone
        check_head(hf)

    def forward(self, batch: MicroBatch, view: LogitView | None = None) -> TokenScores:
        """Scores of the supervised tokens, of the plain distribution or of ``view``; all tensors on the model's device.

        ValueError for an inconsistent batch.
        """
        hidden = self._backbone.hidden_states(batch)
        head = self.hf.get_output_embeddings()
        pick = self._pick
        if view is not None:
            pick = partial(self._pick_view, temperature=view.temperature, banned=view.banned, entropy=view.entropy)
        return score_labels(hidden, batch.labels, batch.num_supervised, head, chunk=self.chunk, pick=pick)

    def blocks(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """(vision blocks, decoder layers), each in the order in which they run."""
        return self._backbone.blocks()

    @staticmethod
    def hf_state_name(name: str) -> str:
        """The name in the transformers model of a parameter or buffer of this module.

        Example: ``hf_state_name("hf.model.visual.patch_embed.proj.weight") == "model.visual.patch_embed.proj.weight"``
        """
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        return name.removeprefix(_PREFIX)

    @staticmethod
    def state_name(hf_name: str) -> str:
        """The inverse of ``hf_state_name`` for a module without wrappers and adapters."""
        return _PREFIX + hf_name

    def tied_names(self) -> dict[str, str]:
        """{name of a tied parameter: name of the parameter that it is}, as transformers names; empty when none is."""
        first: dict[int, str] = {}
        tied: dict[str, str] = {}
        for name, parameter in self.hf.named_parameters(remove_duplicate=False):
            other = first.setdefault(id(parameter), self.hf_state_name(name))
            if other != self.hf_state_name(name):
                tied[self.hf_state_name(name)] = other
        return tied

    def set_gradient_checkpointing(self, part: float) -> None:
        """Which part (0 to 1) of each tower's layers is computed again in backward instead of kept (in training mode).

        The first ones: what they keep is there longest.
        """
        if not part:
            self.hf.gradient_checkpointing_disable()
            return
        self.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for blocks in self.blocks():
            for block in blocks[math.ceil(part * len(blocks)) :]:
                block.gradient_checkpointing = False  # type: ignore[assignment]


def check_head(hf: Any) -> None:
    """UserError when logits are anything but a linear function of the last hidden states."""
    head = hf.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise UserError(f"{type(hf).__name__} has no linear output projection but {type(head).__name__}; not supported")
    for config in (hf.config, hf.config.get_text_config()):
        for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            value = getattr(config, key, None)
            if value is not None and value != 1.0:
                raise UserError(f"{type(hf).__name__} changes its logits ({key}: {value}); not supported")


def check_features(num_features: int, batch: MicroBatch) -> None:
    """ValueError when the images do not give as many features as the micro-batch announces."""
    if batch.num_features != num_features:
        raise ValueError(f"images give {num_features} features, but the micro-batch announces {batch.num_features}")


def place_features(
    embeddings: torch.Tensor, features: torch.Tensor, batch: MicroBatch, positions: torch.Tensor | None = None
) -> torch.Tensor:
    """``embeddings`` [T, H] with the images' features at ``batch.image_positions`` (or ``positions``).

    Without image tokens the result equals ``embeddings``, and ``features`` still get a gradient, of zeros.
    """
    chosen = features.index_select(0, batch.image_feature_index).to(embeddings.dtype)
    return embeddings.index_copy(0, batch.image_positions if positions is None else positions, chosen)
