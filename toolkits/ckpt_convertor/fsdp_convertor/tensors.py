"""Places that tensors are read from a few at a time: a full_weights.pt, a dcp_checkpoint; or safetensors files.

Dataflow: file or folder -> ``TensorSource``: ``infos`` from headers alone, ``read(keys)`` for the tensors.
Invariants: what ``read`` returns is all that a source keeps in memory: files are mapped anew at
each call, so the pages read are given back; keys are those of the file (a dcp_checkpoint's without ``model.``).
Not here: safetensors files (rlinf_vlm/models/weight_files.py), what the names mean (naming.py there), and which of them
are wanted (matching.py).
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from rlinf_vlm.distributed.checkpoint import WEIGHTS, open_weights
from rlinf_vlm.models.weight_files import TensorInfo
from rlinf_vlm.types import UserError

RLINF_WEIGHTS = "fsdp_checkpoint.model."
"""What RLinf puts in front of a weight's name in a dcp_checkpoint."""


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


def _short(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
