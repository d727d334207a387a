"""What an engine is sent of a model: its weights by the names and in the shapes that the model folder has them.

Dataflow: model folder's headers + the model without weights -> ``EngineWeights``: units of tensors, what each is made
of in memory, and which of them training changes.
Invariants: every parameter is sent once, tied ones under their first name; what an engine may join into one tensor
(query, key and value; gate and up) is one block, and a block is sent whole or not at all.
Not here: gathering shards, and sending.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from rlinf_vlm.models.families import FamilySpec
from rlinf_vlm.models.filling import StoredModel, open_stored
from rlinf_vlm.models.loading import build_model
from rlinf_vlm.models.naming import Unit
from rlinf_vlm.types import UserError, WeightSpec

_BLOCK = re.compile(r"^.*?\.\d+\.")
"""The beginning of a name up to its first number: ``model.language_model.layers.3.``"""


class EngineWeights:
    """The units of one model, in the order of the model folder."""

    def __init__(self, stored: StoredModel) -> None:
        self._stored = stored
        naming = stored.naming
        chosen: dict[tuple[str, ...], Unit] = {}
        for unit in stored.units:
            first = chosen.get(unit.memory)
            # Some folders hold a tied parameter twice; the engine reads it by its first name.
            if unit.memory and (first is None or naming.stem(unit.disk[0]) == unit.memory[0]):
                chosen[unit.memory] = unit
        self.units = tuple(chosen.values())

    def specs(self, unit: Unit, dtype: torch.dtype) -> tuple[WeightSpec, ...]:
        """The unit's tensors as they are sent, floating-point numbers in ``dtype``."""
        found = []
        for name in unit.disk:
            info = self._stored.files.infos[name]
            sent = dtype if info.dtype.is_floating_point else info.dtype
            found.append(WeightSpec(name=name, dtype=str(sent).removeprefix("torch."), shape=info.shape))
        return tuple(found)

    def changed(self, trained: Collection[str]) -> tuple[Unit, ...]:
        """The units of blocks that hold a parameter of ``trained`` (names in the transformers model, adapters too)."""
        blocks = {_block(name) for name in trained}
        return tuple(unit for unit in self.units if any(_block(name) in blocks for name in unit.memory))

    def to_folder(self, unit: Unit, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The unit's parameters, whole, by name in memory -> its tensors by name in the model folder."""
        return self._stored.naming.to_disk(unit, tensors, self._stored.files.infos)


def open_engine_weights(model_path: str | Path, spec: FamilySpec, *, trust_remote_code: bool = False) -> EngineWeights:
    """Of the model folder ``model_path``; reads headers only. UserError for a folder without safetensors files."""
    model = build_model(
        model_path, spec, dtype=torch.float32, attention="sdpa", on_meta=True, trust_remote_code=trust_remote_code
    )
    stored = open_stored(Path(model_path), model.hf)
    if stored is None:
        raise UserError(
            f"actor.model.model_path={str(model_path)!r} has no safetensors files, whose names an engine needs to be "
            "sent weights; save the model in that form (save_pretrained)"
        )
    return EngineWeights(stored)


def _block(name: str) -> str:
    """What ``name`` is in: a layer with a number, else the module."""
    found = _BLOCK.match(name)
    return found[0] if found else name.rpartition(".")[0]
