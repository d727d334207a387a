"""Places that tensors are read from a few at a time: a full_weights.pt, a dcp_checkpoint, safetensors files.

Dataflow: file or folder -> ``TensorSource``: ``infos`` from headers alone, ``read(keys)`` for the tensors.
Invariants: what ``read`` returns is all that a source keeps in memory: files are mapped anew at
each call, so the pages read are given back; keys are those of the file (a dcp_checkpoint's without ``model.``).
Not here: what the names mean (naming.py), and which of them are wanted (matching.py).
"""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from rlinf_vlm.distributed.checkpoint import WEIGHTS, open_weights
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
RLINF_WEIGHTS = "fsdp_checkpoint.model."
"""What RLinf puts in front of a weight's name in a dcp_checkpoint."""
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


class TensorSource(Protocol):
    """Tensors by key. ``path`` is for messages."""

    path: Path
    infos: Mapping[str, TensorInfo]

    def read(self, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        """The tensors of ``keys``, on the CPU; they belong to the caller."""
        ...


class TorchFile:
    """A file of ``torch.save`` that holds a flat dict of tensors. UserError when it is cut or something else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            weights = open_weights(path)
        except UserError as error:
            raise UserError(f"convertor.ckpt_path: {error}; copy it again") from error
        strange = [key for key in weights if not isinstance(key, str)]
        if strange:
            raise UserError(f"convertor.ckpt_path: {path} has the key {strange[0]!r}, no name; give a full_weights.pt")
        self.infos: Mapping[str, TensorInfo] = {
            key: TensorInfo(shape=tuple(tensor.shape), dtype=tensor.dtype) for key, tensor in weights.items()
        }

    def read(self, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        """See ``TensorSource``; the tensors are mapped from the file, and the map ends with them."""
        weights = open_weights(self.path)
        return {key: weights[key] for key in keys}


class ShardedFolder:
    """The weights in a folder of torch.distributed.checkpoint; optimizer and schedule are passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = _CachedReader(path)
            entries = self._reader.read_metadata().state_dict_metadata
        except (OSError, EOFError, ValueError, AttributeError, pickle.UnpicklingError) as error:
            raise UserError(
                f"convertor.ckpt_path: {path / '.metadata'} cannot be read ({_short(error)}); copy the checkpoint again"
            ) from error
        tensors = {key: entry for key, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
        self._prefix = WEIGHTS if any(key.startswith(WEIGHTS) for key in tensors) else RLINF_WEIGHTS
        self.infos: Mapping[str, TensorInfo] = {
            key.removeprefix(self._prefix): TensorInfo(shape=tuple(entry.size), dtype=entry.properties.dtype)
            for key, entry in tensors.items()
            if key.startswith(self._prefix)
        }
        if not self.infos:
            raise UserError(
                f"convertor.ckpt_path: {path} holds no tensor named {WEIGHTS}... (its {len(entries)} keys begin with "
                f"{', '.join(sorted({key.partition('.')[0] for key in entries})[:8]) or 'nothing'}); "
                "give the dcp_checkpoint of a trained model"
            )

    def read(self, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        """See ``TensorSource``. Raises UserError when a file is missing or cut."""
        wanted = {
            self._prefix + key: torch.empty(self.infos[key].shape, dtype=self.infos[key].dtype) for key in set(keys)
        }
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is")  # one process reads, as is meant
                dcp.load(wanted, storage_reader=self._reader, no_dist=True)
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            raise UserError(
                f"convertor.ckpt_path: {self.path} is cut or incomplete ({_short(causes[0])}); "
                "copy the checkpoint again"
            ) from error
        return {key.removeprefix(self._prefix): tensor for key, tensor in wanted.items()}


class _CachedReader(dcp.FileSystemReader):
    """Reads the folder's table of contents once, not at every load."""

    _kept: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self._kept is None:
            self._kept = super().read_metadata(*args, **kwargs)
        return self._kept


class SafetensorsFiles:
    """Tensors of safetensors files, each in exactly one of them. UserError when one is cut or a name stands twice."""

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path = path
        infos: dict[str, TensorInfo] = {}
        self.infos: Mapping[str, TensorInfo] = infos
        self._file: dict[str, Path] = {}
        for file in files:
            for key, info in _header(file).items():
                if key in self._file:
                    raise UserError(
                        f"{path}: {key} is in {self._file[key].name} and in {file.name}; remove one of them"
                    )
                infos[key] = info
                self._file[key] = file

    def read(self, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        """See ``TensorSource``."""
        found: dict[str, torch.Tensor] = {}
        for file in dict.fromkeys(self._file[key] for key in keys):
            with safe_open(file, framework="pt") as opened:
                found.update({key: opened.get_tensor(key) for key in keys if self._file[key] == file})
        return found


def _header(file: Path) -> dict[str, TensorInfo]:
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 (no mapping)
            named = {key: (tuple(part.get_shape()), str(part.get_dtype())) for key, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is cut or no safetensors file ({_short(error)}); copy it again") from error
    for key, (_, name) in named.items():
        if name not in _TYPES:
            raise UserError(
                f"{file}: {key} is stored as {name}, which is quantized or too new; give the model before quantization"
            )
    return {key: TensorInfo(shape=shape, dtype=_TYPES[name]) for key, (shape, name) in named.items()}


def _short(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
