"""Safetensors files: what their headers say, whole tensors, and runs of elements read straight into memory.

Dataflow: files -> ``infos`` (shape and type by name) -> ``read`` (tensors mapped from the file) or ``read_into`` (bytes
copied from the file to memory that the caller gives).
Invariants: opening reads headers only; nothing of a file is kept; several threads may call ``read_into`` at once.
Not here: what the names mean (naming.py), and which tensors are wanted (filling.py).

A safetensors file is the header's length (8 bytes, little endian), the header (JSON: name -> dtype, shape, place) and
the tensors' bytes in row-major order (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from rlinf_vlm.types import UserError

SAFETENSORS_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Data types as a safetensors header names them."""
_TYPES = {name: dtype for dtype, name in SAFETENSORS_NAMES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """What a header says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize


def weight_files(path: Path) -> list[Path]:
    """The safetensors files that transformers reads of a model folder: the one file, or those of the index.

    Empty when the folder has weights of other kinds or none. UserError when the index or a file of it cannot be used.
    """
    one, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if one.is_file() or not index.is_file():
        return [one] if one.is_file() else []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is cut or no index of weights ({error!r}); copy it again") from error
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(names)} weight files are missing ({missing[0]}); copy the folder again"
        )
    return [path / name for name in names]


class SafetensorsFiles:
    """Tensors of safetensors files, each in exactly one of them. UserError when one is cut or a name stands twice."""

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        """``path``: what the files belong to, for messages."""
        self.path = path
        infos: dict[str, TensorInfo] = {}
        self.infos: Mapping[str, TensorInfo] = infos
        self._place: dict[str, tuple[Path, int]] = {}
        for file in files:
            for key, (info, start) in _header(file).items():
                if key in self._place:
                    there = self._place[key][0].name
                    raise UserError(f"{path}: {key} is in {there} and in {file.name}; remove one of them")
                infos[key] = info
                self._place[key] = file, start

    def place(self, key: str) -> tuple[Path, int]:
        """The file of a tensor, and at which byte of it the tensor begins."""
        return self._place[key]

    def read(self, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        """The tensors of ``keys``, on the CPU, mapped from the files; they belong to the caller."""
        found: dict[str, torch.Tensor] = {}
        for file in dict.fromkeys(self._place[key][0] for key in keys):
            with safe_open(file, framework="pt") as opened:
                found.update({key: opened.get_tensor(key) for key in keys if self._place[key][0] == file})
        return found

    def read_into(self, key: str, start: int, out: torch.Tensor) -> None:
        """Fills ``out`` with the elements of ``key`` from number ``start`` on, as they stand in the file.

        ``out`` is contiguous, on the CPU and of the stored type. UserError when the file has become shorter.
        """
        info, (file, first) = self.infos[key], self._place[key]
        end = start + out.numel()
        assert out.dtype == info.dtype and out.is_contiguous() and end * info.dtype.itemsize <= info.nbytes, key
        left = out.detach().reshape(-1).view(torch.uint8).numpy().data
        with file.open("rb", buffering=0) as stream:
            at = first + start * info.dtype.itemsize
            while left:
                count = os.preadv(stream.fileno(), [left], at)
                if not count:
                    raise UserError(f"{file} ends inside {key}: it was cut while it was read; copy it again")
                left, at = left[count:], at + count


def _header(file: Path) -> dict[str, tuple[TensorInfo, int]]:
    """Name -> (shape and type, first byte in the file)."""
    try:
        # Opening checks what is read below: the header is whole and its places fill the file.
        with safe_open(file, framework="pt"), file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            entries = json.loads(stream.read(length))
    except (OSError, SafetensorError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{file} is cut or no safetensors file ({reason}); copy it again") from error
    entries.pop("__metadata__", None)
    for key, entry in entries.items():
        if entry["dtype"] not in _TYPES:
            raise UserError(
                f"{file}: {key} is stored as {entry['dtype']}, which is quantized or too new; "
                "give the model before quantization"
            )
    return {
        key: (
            TensorInfo(shape=tuple(entry["shape"]), dtype=_TYPES[entry["dtype"]]),
            8 + length + entry["data_offsets"][0],
        )
        for key, entry in entries.items()
    }
