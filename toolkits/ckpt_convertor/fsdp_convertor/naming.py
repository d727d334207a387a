"""How the tensors of a model folder correspond to the parameters of the model that transformers makes of it.

Dataflow: config.json -> the model without weights (parameters on the meta device) -> transformers' own rules for
loading -> ``Unit``: tensors on disk that belong to parameters in memory, and the way from one to the other.
Invariants: no weight is allocated; the rules are those that ``from_pretrained`` applies, so old names (``visual.*``),
new names (``model.visual.*``) and layouts that differ on disk (experts) need no table here. Tied parameters have one
name, the first.
Not here: which tensors a checkpoint has (matching.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from rlinf_vlm.types import UserError
from toolkits.ckpt_convertor.fsdp_convertor.tensors import TensorInfo


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unit:
    """Tensors that are converted together: mostly one on disk and one in memory.

    disk: names in the model folder; memory: names of parameters (of a tied one the first name), empty for a tensor that
    the model does not take; converter: transformers' operation from disk to memory, None where only names differ.
    """

    disk: tuple[str, ...]
    memory: tuple[str, ...]
    converter: Any = None


class Naming:
    """The rules of one model. ``model``: transformers', its parameters on the meta device."""

    def __init__(self, model: Any) -> None:
        rules: Any = get_model_conversion_mapping(model)
        self._model = model
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self._state: dict[str, torch.Tensor] = model.state_dict()
        # What from_pretrained passes over: the model's own list, and buffers that were once saved and are no more.
        buffers = [name for name, _ in model.named_buffers()]
        once_saved = {"rotary_emb.inv_freq": r"rotary_emb\.inv_freq", "position_ids": r"(^|\.)position_ids$"}
        self._ignored = set(model._keys_to_ignore_on_load_unexpected or ())
        self._ignored |= {pattern for end, pattern in once_saved.items() if any(name.endswith(end) for name in buffers)}
        first: dict[int, str] = {}
        tied = model.named_parameters(remove_duplicate=False)
        self._canonical = {name: first.setdefault(id(parameter), name) for name, parameter in tied}
        self._names: dict[str, list[str]] = {}
        for name, own in self._canonical.items():
            self._names.setdefault(own, []).append(name)

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every parameter, tied ones once."""
        own = {name: tuple(tensor.shape) for name, tensor in self._model.named_parameters()}
        assert set(own) == set(self._canonical.values())
        return own

    def aliases(self, name: str) -> list[str]:
        """All names of a parameter or saved buffer, its own first."""
        return self._names.get(name, [name])

    def is_known(self, memory_name: str) -> bool:
        """Whether the model has a parameter or saved buffer of this name."""
        return memory_name in self._state

    def shape(self, memory_name: str) -> tuple[int, ...]:
        """Shape of a parameter or saved buffer."""
        return tuple(self._state[memory_name].shape)

    def own(self, memory_name: str) -> str:
        """The first name of a tied parameter; any other name as it is."""
        return self._canonical.get(memory_name, memory_name)

    def stem(self, name: str) -> str:
        """What the old and the new name of a tensor, and its name in memory, have in common: the latter if it has one.

        Of tensors that a converter takes together, the beginning is as in memory and the end as on disk.
        """
        if name in self._state:
            return name
        renamed, pattern = self._rename(name)
        if pattern is None:
            return renamed
        for rule in self._renamings:
            name, _ = rule.rename_source_key(name)
        return name

    def is_ignored(self, name: str) -> bool:
        """Whether the model passes over a stored tensor of this name (buffers that older versions saved)."""
        return name not in self._state and any(re.search(pattern, name) for pattern in self._ignored)

    def units(self, stored: Mapping[str, TensorInfo]) -> list[Unit]:
        """The model folder's tensors as units, in the order of the model folder.

        Raises UserError when a tensor has no place in the model, or a parameter of the model no tensor.
        """
        groups: dict[str, list[str]] = {}
        found: dict[str, Unit | None] = {}
        for name in sorted(stored, key=dot_natural_key):
            target, pattern = self._rename(name)
            if pattern is not None:
                groups.setdefault(target, []).append(name)
                found[target] = None
            elif target in self._state:
                self._check_shape(name, stored[name].shape, self._state[target].shape)
                found[name] = Unit(disk=(name,), memory=(self._canonical.get(target, target),))
            elif self.is_ignored(name) or self.is_ignored(target):
                found[name] = Unit(disk=(name,), memory=())
            else:
                raise UserError(
                    f"model.model_path: its config.json has no place for the tensor {name}; copy the folder again"
                )
        for target, names in groups.items():
            found[target] = self._group(target, names, stored)
        units = [unit for unit in found.values() if unit is not None]
        missing = sorted(set(self.parameters) - {name for unit in units for name in unit.memory})
        if missing:
            raise UserError(
                f"model.model_path: the folder lacks {len(missing)} tensors that its config.json needs "
                f"({', '.join(missing[:5])}); copy the folder again"
            )
        return units

    def to_memory(self, unit: Unit, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Disk name -> tensor, all of the unit's, as memory name -> tensor."""
        if unit.converter is None:
            return {name: tensors[unit.disk[0]] for name in unit.memory}
        rule = deepcopy(unit.converter)
        target = ""
        for name in unit.disk:
            target, pattern = self._rename(name)
            rule.add_tensor(target, name, str(pattern), tensors[name])
        return self._convert(rule, target)

    def to_disk(
        self, unit: Unit, tensors: Mapping[str, torch.Tensor], stored: Mapping[str, TensorInfo]
    ) -> dict[str, torch.Tensor]:
        """Memory name -> tensor, all of the unit's, as disk name -> tensor in the shapes of ``stored``."""
        if unit.converter is None:
            return {unit.disk[0]: tensors[unit.memory[0]]}
        if all(isinstance(step, Transpose) for step in unit.converter.operations):
            # Reversed, transformers leaves it as it is in memory; what reads the base reads the base's layout.
            tensor, wanted = tensors[unit.memory[0]], stored[unit.disk[0]].shape
            for step in unit.converter.operations:
                tensor = tensor if tuple(tensor.shape) == wanted else tensor.transpose(step.dim0, step.dim1)
            return {unit.disk[0]: tensor.contiguous()}
        rule = deepcopy(unit.converter).reverse_transform()
        target = ""
        for name in unit.memory:
            target, pattern = rule.rename_source_key(name)
            rule.add_tensor(target, name, str(pattern), tensors[name])
        made = self._convert(rule, target)
        # What comes out has the parameters' beginnings; the folder's may be older.
        return {name: made[self.stem(name)] for name in unit.disk}

    def _rename(self, name: str) -> tuple[str, str | None]:
        """Name in memory, and the pattern of the converter that it goes through. As from_pretrained does it."""
        prefix = self._model.base_model_prefix
        renamed, pattern = rename_source_key(name, self._renamings, self._converters, prefix, self._state)
        if renamed not in self._state and name in self._state:
            return rename_source_key(name, [], [], prefix, self._state)
        return renamed, pattern

    def _group(self, target: str, names: list[str], stored: Mapping[str, TensorInfo]) -> Unit:
        """The unit of tensors that a converter takes together; tried without weights."""
        _, pattern = self._rename(names[0])
        rules = {pattern: rule for rule in self._converters for pattern in rule.source_patterns}
        unit = Unit(disk=tuple(names), memory=(), converter=rules[str(pattern)])
        empty = {name: torch.empty(stored[name].shape, device="meta") for name in names}
        try:
            made = self.to_memory(unit, empty)
            unit = Unit(disk=unit.disk, memory=tuple(made), converter=unit.converter)
            back = self.to_disk(unit, made, stored)
        except (KeyError, ValueError, RuntimeError, AttributeError) as error:
            raise UserError(
                f"model.model_path: the tensors for {target} ({len(names)}, {names[0]}) do not fit its config.json "
                f"({type(error).__name__}: {' '.join(str(error).split())[:160]}); copy the folder again"
            ) from error
        for name, tensor in made.items():
            self._check_shape(name, tensor.shape, self._state[name].shape if name in self._state else None)
        for name, tensor in back.items():
            self._check_shape(name, tensor.shape, stored[name].shape)
        return unit

    def _check_shape(self, name: str, shape: Iterable[int], wanted: Iterable[int] | None) -> None:
        if wanted is None or tuple(shape) != tuple(wanted):
            there = "no such tensor" if wanted is None else str(list(wanted))
            raise UserError(
                f"model.model_path: {name} has the shape {list(shape)}, its config.json says {there}; "
                "copy the folder again"
            )

    def _convert(self, rule: Any, target: str) -> dict[str, torch.Tensor]:
        """Runs a converter that was given its tensors."""
        made = rule.convert(target, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
