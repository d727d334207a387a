"""How the tensors of a model folder correspond to the parameters of the model that transformers makes of it.

Dataflow: config.json -> the model without weights (parameters on the meta device) -> transformers' own rules for
loading -> ``Unit``: tensors on disk that belong to parameters in memory, and the way from one to the other.
Invariants: no weight is allocated; the rules are those that ``from_pretrained`` applies, so old names (``visual.*``),
new names (``model.visual.*``) and layouts that differ on disk (experts) need no table here. Tied parameters have one
name, the first. Adapters in the model are passed over, and the layers beside them named as without them.
Not here: reading (weight_files.py), and putting into a model what was read (filling.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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

from rlinf_vlm.models.lora import is_adapter
from rlinf_vlm.models.policy import VisionLanguageModel
from rlinf_vlm.models.weight_files import TensorInfo
from rlinf_vlm.types import UserError

_SHOWN = 5
_MISSING = "the folder lacks {count} tensors that its config.json needs ({names})"
_EXTRA = "its config.json has no place for the tensor {names}"
_MISSHAPEN = "{names}"


class _Misfit(Exception):
    """Tensors that a converter cannot take, or makes something else of than the model has."""


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
    """The rules of one model. ``model``: transformers', its parameters on the meta device; not yet sharded."""

    def __init__(self, model: Any) -> None:
        def plain(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
            return ((VisionLanguageModel.hf_state_name(name), value) for name, value in tensors if not is_adapter(name))

        rules: Any = get_model_conversion_mapping(model)
        self._model = model
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self._state: dict[str, torch.Tensor] = dict(plain(model.state_dict().items()))
        # What from_pretrained passes over: the model's own list, and buffers that were once saved and are no more.
        buffers = [name for name, _ in model.named_buffers()]
        once_saved = {"rotary_emb.inv_freq": r"rotary_emb\.inv_freq", "position_ids": r"(^|\.)position_ids$"}
        self._ignored = set(model._keys_to_ignore_on_load_unexpected or ())
        self._ignored |= {pattern for end, pattern in once_saved.items() if any(name.endswith(end) for name in buffers)}
        first: dict[int, str] = {}
        tied = plain(model.named_parameters(remove_duplicate=False))
        self._canonical = {name: first.setdefault(id(parameter), name) for name, parameter in tied}
        self._names: dict[str, list[str]] = {}
        for name, own in self._canonical.items():
            self._names.setdefault(own, []).append(name)

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every parameter, tied ones once."""
        return {name: self.shape(name) for name in self._names}

    def aliases(self, name: str) -> list[str]:
        """All names of a parameter or saved buffer, its own first."""
        return self._names.get(name, [name])

    def is_known(self, memory_name: str) -> bool:
        """Whether the model has a parameter or saved buffer of this name."""
        return memory_name in self._state

    def shape(self, memory_name: str) -> tuple[int, ...]:
        """Shape of a parameter or saved buffer."""
        return tuple(self._state[memory_name].shape)

    def is_floating(self, memory_name: str) -> bool:
        """Whether a parameter or saved buffer holds floating-point numbers."""
        return self._state[memory_name].is_floating_point()

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

    def units(self, stored: Mapping[str, TensorInfo], *, key: str) -> list[Unit]:
        """The model folder's tensors as units, in the order of the model folder.

        Raises UserError, beginning with ``key`` (the setting that names the folder), when a tensor has no place in the
        model or another shape, or a parameter or saved buffer of the model no tensor.
        """
        groups: dict[str, list[str]] = {}
        found: dict[str, Unit | None] = {}
        problems: dict[str, list[str]] = {}
        for name in sorted(stored, key=dot_natural_key):
            target, pattern = self._rename(name)
            if pattern is not None:
                groups.setdefault(target, []).append(name)
                found[target] = None
            elif target in self._state:
                problems.setdefault(_MISSHAPEN, []).extend(self._misfit(name, stored[name].shape, target))
                found[name] = Unit(disk=(name,), memory=(self._canonical.get(target, target),))
            elif self.is_ignored(name) or self.is_ignored(target):
                found[name] = Unit(disk=(name,), memory=())
            else:
                problems.setdefault(_EXTRA, []).append(name)
        for target, names in groups.items():
            try:
                found[target] = self._group(target, names, stored)
            except _Misfit as error:
                problems.setdefault(_MISSHAPEN, []).append(str(error))
        units = [unit for unit in found.values() if unit is not None]
        taken = {name for unit in units for name in unit.memory}
        if not problems.get(_MISSHAPEN):
            problems[_MISSING] = [
                name for name in dict.fromkeys(map(self.own, self._state)) if self._lacks(name, taken)
            ]
        self._complain(problems, key)
        return units

    def rows_to_memory(self, unit: Unit, stored: Mapping[str, TensorInfo]) -> tuple[int, int] | None:
        """The two dimensions to exchange in rows (parts along the first dimension) of the unit's one tensor on disk to
        have the same rows in memory; (0, 0) to leave them, None where rows do not correspond to rows."""
        if unit.converter is None:
            return 0, 0
        steps = unit.converter.operations
        if len(unit.disk) != 1 or len(unit.memory) != 1 or len(steps) != 1 or not isinstance(steps[0], Transpose):
            return None
        shape = stored[unit.disk[0]].shape
        if steps[0].check_dims and shape == self.shape(unit.memory[0]):
            return 0, 0
        first, second = steps[0].dim0 % len(shape), steps[0].dim1 % len(shape)
        return (first, second) if first and second else None

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
            raise _Misfit(
                f"the tensors for {target} ({len(names)}, {names[0]}) do not fit its config.json "
                f"({type(error).__name__}: {' '.join(str(error).split())[:160]})"
            ) from error
        wrong = [text for name, tensor in made.items() for text in self._misfit(name, tensor.shape, name)]
        wrong += [
            f"{name} has the shape {list(stored[name].shape)}, its config.json says {list(tensor.shape)}"
            for name, tensor in back.items()
            if tuple(tensor.shape) != stored[name].shape
        ]
        if wrong:
            raise _Misfit(wrong[0])
        return unit

    def _misfit(self, name: str, shape: Iterable[int], target: str) -> list[str]:
        """What is wrong with a tensor of ``shape`` in the place of ``target``; empty when nothing is."""
        wanted = self.shape(target) if target in self._state else None
        if tuple(shape) == wanted:
            return []
        there = "no such tensor" if wanted is None else str(list(wanted))
        return [f"{name} has the shape {list(shape)}, its config.json says {there}"]

    def _lacks(self, name: str, taken: Collection[str]) -> bool:
        """Whether nothing was found for a parameter or a saved buffer, which may not be passed over."""
        may_lack = self._model._keys_to_ignore_on_load_missing or ()
        return name not in taken and (name in self._names or not any(re.search(pattern, name) for pattern in may_lack))

    def _complain(self, problems: Mapping[str, Sequence[str]], key: str) -> None:
        texts = []
        for template, names in problems.items():
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                texts.append(template.format(count=len(names), names=", ".join(names[:_SHOWN]) + more))
        if texts:
            raise UserError(
                f"{key}: {'; '.join(texts)}; the weights belong to another config.json than this one of a "
                f"{type(self._model).__name__}: copy the folder again"
            )

    def _convert(self, rule: Any, target: str) -> dict[str, torch.Tensor]:
        """Runs a converter that was given its tensors."""
        made = rule.convert(target, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
