"""Puts a model folder's weights into memory that exists already: of every tensor the part that this process holds.

Dataflow: folder + model on the meta device -> ``open_stored`` (headers; every tensor has its place) -> ``StoredModel``
-> ``fill``: runs of rows, a few threads -> page-locked memory -> the device, cast there -> the process's parts.
Invariants: no collective, so no process waits for another; what is read is what the parts need, but for tensors that
are fused on the way (those are read whole, one parameter's at a time); on the way are a few runs of ``RUN_BYTES``;
afterwards every element of every part was written once.
Not here: which part a process holds (distributed), names on disk (naming.py), and folders without safetensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlinf_vlm.models.naming import Naming, Unit
from rlinf_vlm.models.transfer import copy_to
from rlinf_vlm.models.weight_files import SafetensorsFiles, weight_files
from rlinf_vlm.types import UserError

Part = tuple[torch.Tensor, tuple[slice, ...]]
"""This process's memory of a tensor (contiguous), and which box of the whole it is: a range a dimension."""
RUN_BYTES = 4 * 2**20
"""Bytes that are read and copied at once, unless one row is larger."""
THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model folder whose tensors all have a place in the model. key: the setting that named it, for messages."""

    key: str
    files: SafetensorsFiles
    naming: Naming
    units: Sequence[Unit]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Neighbouring rows of a stored tensor.

    disk: its name; first: number of the first row; target: what they become, in memory; swap: dimensions to exchange;
    like: the stored tensor that filled ``target``, which this one has to equal; None when this one fills it.
    """

    disk: str
    first: int
    target: torch.Tensor
    swap: tuple[int, int]
    like: str | None


def open_stored(path: Path, hf: Any) -> StoredModel | None:
    """The weights in the folder ``path`` for ``hf``, a transformers model on the meta device; None without safetensors.

    Reads headers only. UserError when a file is missing or cut, and unless the tensors are exactly those of ``hf``.
    """
    key = f"actor.model.model_path={str(path)!r}"
    try:
        files = SafetensorsFiles(path, weight_files(path))
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    if not files.infos:
        return None
    naming = Naming(hf)
    units = naming.units(files.infos, key=key)
    for unit in units:
        whole = [name for name in unit.disk if not files.infos[name].dtype.is_floating_point]
        if whole and any(naming.is_floating(name) for name in unit.memory):
            raise UserError(
                f"{key}: {whole[0]} is stored as {files.infos[whole[0]].dtype}, which is quantized; give the model "
                "before quantization"
            )
    return StoredModel(key=key, files=files, naming=naming, units=units)


@torch.no_grad()
def fill(
    parts: Mapping[str, Part],
    stored: StoredModel,
    others: Iterable[tuple[str, torch.Tensor]] = (),
    *,
    threads: int = THREADS,
    run_bytes: int = RUN_BYTES,
) -> None:
    """Fills ``parts`` (by name in the transformers model, tied parameters once) from ``stored`` and, by name, from
    ``others``: whole tensors on the CPU.

    UserError when a file cannot be read to its end, or two stored tensors that the model ties differ. ValueError unless
    the two sources give every part exactly once.
    """
    for name, (target, box) in parts.items():
        if tuple(cut.stop - cut.start for cut in box) != tuple(target.shape):
            raise ValueError(f"{name}: {box} is no box of the shape {list(target.shape)}")
    runs: list[_Run] = []
    fused: list[Unit] = []
    filled: dict[str, str] = {}
    for unit in stored.units:
        if not _is_by_rows(unit, stored, parts):
            fused.append(unit)
        elif unit.memory:
            runs += _runs(unit, stored, parts[unit.memory[0]], run_bytes, filled.get(unit.memory[0]))
        filled = dict.fromkeys(unit.memory, unit.disk[0]) | filled
    # In the order of the files: a disk that is read for the first time is read ahead.
    runs.sort(key=lambda run: (stored.files.place(run.disk), run.first))
    with ThreadPoolExecutor(threads, thread_name_prefix="weights") as pool:
        _finish(pool.map(lambda run: _read(run, stored), [run for run in runs if run.like is None]))
        for unit in fused:
            _convert(unit, stored, parts)
        _finish(pool.map(lambda run: _read(run, stored), [run for run in runs if run.like is not None]))
    for name, value in others:
        if name in filled:
            raise ValueError(f"{name} is filled twice")
        target, box = parts[name]
        target.copy_(copy_to(value[box], target.device))
        filled[name] = name
    if filled.keys() != parts.keys():
        raise ValueError(f"not filled, or not there: {sorted(filled.keys() ^ parts.keys())[:3]}")


def _finish(results: Iterator[None]) -> None:
    """Waits; raises what a thread raised, and lets those that have not begun be."""
    for _ in results:
        pass


def _is_by_rows(unit: Unit, stored: StoredModel, parts: Mapping[str, Part]) -> bool:
    """Whether a range of rows of the stored tensor is a part (or the unit is none of the model's)."""
    if stored.naming.rows_to_memory(unit, stored.files.infos) is None:
        return False
    boxes = [(parts[name][1][1:], stored.naming.shape(name)[1:]) for name in unit.memory]
    return all(cut == slice(0, size) for box, shape in boxes for cut, size in zip(box, shape, strict=True))


def _runs(unit: Unit, stored: StoredModel, part: Part, run_bytes: int, like: str | None) -> Iterator[_Run]:
    """The rows of a unit's one part, in runs of about ``run_bytes`` on disk."""
    target, box = part
    swap = stored.naming.rows_to_memory(unit, stored.files.infos)
    assert swap is not None
    if not box:  # a single number
        target, box = target.reshape(1), (slice(0, 1),)
    info = stored.files.infos[unit.disk[0]]
    rows = max(1, run_bytes * (box[0].stop - box[0].start) // max(1, target.numel() * info.dtype.itemsize))
    for piece in range(0, len(target), rows):
        own = target[piece : piece + rows]
        yield _Run(disk=unit.disk[0], first=box[0].start + piece, target=own, swap=swap, like=like)


@torch.no_grad()  # of each thread's own
def _read(run: _Run, stored: StoredModel) -> None:
    """Reads a run to its place."""
    target, dtype = run.target, stored.files.infos[run.disk].dtype
    start = run.first * (target.numel() // len(target))
    if target.device.type == "cpu" and target.dtype == dtype and run.swap == (0, 0) and run.like is None:
        stored.files.read_into(run.disk, start, target)
        return
    shape = target.transpose(*run.swap).shape
    rows = torch.empty(shape, dtype=dtype, pin_memory=target.device.type == "cuda")
    stored.files.read_into(run.disk, start, rows)
    # Page-locked memory goes as it is and is free for others once it has gone; cast on the device.
    found = copy_to(rows, target.device).transpose(*run.swap)
    if run.like is None:
        target.copy_(found)
    elif not torch.equal(target, found.to(target.dtype)):
        raise UserError(
            f"{stored.key}: its tensors {run.like} and {run.disk} are one parameter by its config.json "
            "(tie_word_embeddings), but they differ; set tie_word_embeddings there to false, or copy the folder again"
        )


def _convert(unit: Unit, stored: StoredModel, parts: Mapping[str, Part]) -> None:
    """Makes a unit's parameters whole and takes the parts of them."""
    if not any(parts[name][0].numel() for name in unit.memory):
        return
    made = stored.naming.to_memory(unit, stored.files.read(unit.disk))
    for name in unit.memory:
        target, box = parts[name]
        target.copy_(copy_to(made[name][box].contiguous(), target.device))
