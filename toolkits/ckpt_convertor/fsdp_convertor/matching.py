"""Every tensor of the checkpoint to its place in the model folder, each exactly once, before any is read.

Dataflow: (units of the model folder, keys of the checkpoint) -> ``Plan``: for each unit where its tensors come from ->
tensors with the model folder's names, or the model's own, a few at a time.
Invariants: a checkpoint may use the model's names in memory, the folder's names on disk, or either behind a wrapper's
prefix; a key without a place, a place without a key and a shape that differs are errors, reported together. What no
parameter stands for (buffers of older versions) is copied from the model folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlinf_vlm.models.naming import Naming, Unit
from rlinf_vlm.models.weight_files import TensorInfo
from rlinf_vlm.types import UserError
from toolkits.ckpt_convertor.fsdp_convertor.tensors import TensorSource

PREFIXES = ("", "module.", "model.", "module.model.", "_orig_mod.")
"""What wrappers put in front of every name."""
BATCH_BYTES = 32 * 2**20
"""Tensors read at once, unless one is larger."""
_SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A unit and where its tensors come from.

    keys: the unit's names (in memory, or on disk when ``on_disk``) -> keys of ``source``.
    """

    unit: Unit
    source: TensorSource
    on_disk: bool
    keys: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes that reading it takes."""
        return sum(self.source.infos[key].nbytes for key in self.keys.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is written. ``pieces`` in the order of writing; ``stored``: the model folder's tensors."""

    naming: Naming
    stored: Mapping[str, TensorInfo]
    pieces: tuple[Piece, ...]
    dtype: torch.dtype | None
    """Of what is written; None keeps the checkpoint's."""

    def infos(self) -> dict[str, TensorInfo]:
        """Name on disk -> shape and type of every tensor to write, in the order of writing."""
        return {
            name: TensorInfo(shape=self.stored[name].shape, dtype=self._written_type(piece))
            for piece in self.pieces
            for name in piece.unit.disk
        }

    @property
    def copied(self) -> int:
        """Tensors that come from the model folder because the model has no parameter for them."""
        return sum(not piece.unit.memory for piece in self.pieces)

    def disk_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name on disk and tensor, in the type to write, in the order of ``infos``. Raises UserError on overflow."""
        for piece, found in self._read(self.pieces):
            own = found if piece.on_disk else self.naming.to_disk(piece.unit, found, self.stored)
            dtype = self._written_type(piece)
            for name in piece.unit.disk:
                yield name, _cast(own[name], dtype, name)

    def memory_tensors(self, *, cast: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
        """The model's name and tensor of every parameter and saved buffer, in the type to write or as it was read."""
        pieces = [piece for piece in self.pieces if piece.unit.memory]
        for piece, found in self._read(pieces):
            own = self.naming.to_memory(piece.unit, found) if piece.on_disk else found
            dtype = self._written_type(piece)
            for name in piece.unit.memory:
                yield name, _cast(own[name], dtype, name) if cast else own[name]

    def _written_type(self, piece: Piece) -> torch.dtype:
        stored = piece.source.infos[next(iter(piece.keys.values()))].dtype
        return self.dtype if self.dtype is not None and stored.is_floating_point else stored

    def _read(self, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, dict[str, torch.Tensor]]]:
        for batch in _batches(pieces):
            tensors = batch[0].source.read([key for piece in batch for key in piece.keys.values()])
            for piece in batch:
                yield piece, {name: tensors[key] for name, key in piece.keys.items()}
            del tensors


def match(
    naming: Naming, units: Sequence[Unit], base: TensorSource, weights: TensorSource, dtype: torch.dtype | None
) -> Plan:
    """Where each unit's tensors come from. Raises UserError unless every key of ``weights`` is used exactly once."""
    keys = _Keys(naming, base, weights)
    used: set[str] = set()
    pieces: list[Piece] = []
    missing: list[str] = []
    misshapen: dict[str, str] = {}
    for unit in units:
        piece, problems = _piece(naming, unit, base, weights, keys)
        if piece is not None:
            pieces.append(piece)
            used |= set(piece.keys.values()) if piece.source is weights else set()
        else:
            misshapen |= problems
            missing += [] if problems else unit.memory
    used |= _second_names(naming, weights, keys, used)
    extra = [key for key in weights.infos if not (key in used or key in misshapen or naming.is_ignored(keys.name(key)))]
    _complain(weights, missing, extra, list(misshapen.values()))
    return Plan(naming=naming, stored=base.infos, pieces=tuple(pieces), dtype=dtype)


class _Keys:
    """The checkpoint's keys by what they mean."""

    def __init__(self, naming: Naming, base: TensorSource, weights: TensorSource) -> None:
        def known(prefix: str) -> int:
            names = [key.removeprefix(prefix) for key in weights.infos if key.startswith(prefix)]
            return sum(name in base.infos or naming.is_known(naming.stem(name)) for name in names)

        self._prefix = max(PREFIXES, key=known)
        if not known(self._prefix):
            raise UserError(
                f"convertor.ckpt_path: none of the {len(weights.infos)} names in {weights.path} is one of this model "
                f"({_listed(weights.infos, 3)}); set model.model_path to the model that was trained"
            )
        self.by_name = {self.name(key): key for key in weights.infos}
        self.by_stem: dict[str, str] = {}
        for name, key in self.by_name.items():
            self.by_stem.setdefault(naming.stem(name), key)

    def name(self, key: str) -> str:
        """A key without what a wrapper put in front of it."""
        return key.removeprefix(self._prefix)


def _piece(
    naming: Naming, unit: Unit, base: TensorSource, weights: TensorSource, keys: _Keys
) -> tuple[Piece | None, dict[str, str]]:
    """The unit's piece; or None and the keys of another shape (with what is wrong), empty when keys are missing."""
    in_memory: dict[str, str] = {}
    for name in unit.memory:
        found = [keys.by_stem[alias] for alias in naming.aliases(name) if alias in keys.by_stem]
        in_memory |= {name: found[0]} if found else {}
    on_disk = {name: keys.by_name[name] for name in unit.disk if name in keys.by_name}
    if unit.converter is not None:
        stems = {name: naming.stem(name) for name in unit.disk}
        on_disk |= {name: keys.by_stem[stem] for name, stem in stems.items() if stem in keys.by_stem}
    problems: dict[str, str] = {}
    if unit.memory and len(in_memory) == len(unit.memory):
        problems = _wrong_shapes(weights, {key: naming.shape(name) for name, key in in_memory.items()})
        if not problems:
            return Piece(unit=unit, source=weights, on_disk=False, keys=in_memory), {}
    if len(on_disk) == len(unit.disk):
        others = _wrong_shapes(weights, {key: base.infos[name].shape for name, key in on_disk.items()})
        if not others:
            return Piece(unit=unit, source=weights, on_disk=True, keys=on_disk), {}
        problems = problems or others
    if not unit.memory:
        return Piece(unit=unit, source=base, on_disk=True, keys={name: name for name in unit.disk}), {}
    return None, problems


def _wrong_shapes(weights: TensorSource, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    return {
        key: f"{key} is {list(weights.infos[key].shape)}, not {list(shape)}"
        for key, shape in wanted.items()
        if weights.infos[key].shape != shape
    }


def _second_names(naming: Naming, weights: TensorSource, keys: _Keys, used: set[str]) -> set[str]:
    """Unused keys of other names of tied parameters. Raises UserError when one differs from what is used."""
    found: set[str] = set()
    for stem, key in keys.by_stem.items():
        own = naming.own(stem)
        twins = [keys.by_stem[alias] for alias in naming.aliases(own) if keys.by_stem.get(alias) in used]
        if key in used or not naming.is_known(stem) or not twins:
            continue
        pair = weights.read([key, twins[0]])
        if not torch.equal(pair[key], pair[twins[0]]):
            raise UserError(
                f"convertor.ckpt_path: {key} and {twins[0]} differ, but the config.json in model.model_path ties them "
                "(tie_word_embeddings); set model.model_path to the model that was trained"
            )
        found.add(key)
    return found


def _complain(weights: TensorSource, missing: list[str], extra: list[str], misshapen: list[str]) -> None:
    problems = []
    if missing:
        problems.append(f"{len(missing)} of the model's tensors are missing ({_listed(missing)})")
    if extra:
        problems.append(f"{len(extra)} tensors have no place in the model ({_listed(extra)})")
    if misshapen:
        problems.append(f"{len(misshapen)} have another shape ({_listed(misshapen)})")
    if problems:
        raise UserError(
            f"convertor.ckpt_path: {weights.path} does not fit the model in model.model_path: {'; '.join(problems)}; "
            "set model.model_path to the model that was trained"
        )


def _listed(names: Iterable[str], shown: int = _SHOWN) -> str:
    listed = list(dict.fromkeys(names))
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Neighbours of one source, together at most BATCH_BYTES unless one alone is more."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        if batch and (piece.source is not batch[0].source or size + piece.nbytes > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += piece.nbytes
    if batch:
        yield batch


def _cast(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    cast: Any = tensor.to(dtype)
    if dtype is not tensor.dtype and dtype.is_floating_point and not bool(torch.isfinite(cast).all()):
        lost = int((torch.isfinite(tensor) & ~torch.isfinite(cast)).sum())
        if lost:
            raise UserError(
                f"convertor.torch_dtype={str(dtype).removeprefix('torch.')!r}: {lost} values of {name} do not fit (the "
                f"largest is {float(tensor.abs().max()):.3g}, the type ends at {torch.finfo(dtype).max:.3g}); "
                "take bfloat16 or float32"
            )
    return cast
