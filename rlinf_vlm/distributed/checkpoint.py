"""Writes and reads the tensors of a checkpoint: sharded, in the background, whole or not at all.

    {key: sharded tensor} --copied to the CPU--> global_step_N.partial-x/ --fsync, mark, rename--> global_step_N/

Training waits only for the copy; the files are written by threads (torch's asynchronous distributed checkpoint, with a
process group of its own, so that its messages do not meet those of the training). Rank 0 then completes the folder.
Keys: ``model.<name>`` for weights, ``optimizer.<name>.<moment>`` for AdamW's state, ``scheduler.finished_steps``; names
are those of the transformers model. Which tensors there are is the caller's business.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from rlinf_vlm.checkpoints import MARK, dcp_folder, list_files, state_file
from rlinf_vlm.distributed.host_copy import HostCopy
from rlinf_vlm.distributed.rng import random_state
from rlinf_vlm.types import UserError

WEIGHTS, OPTIMIZER = "model.", "optimizer."
"""Prefixes of keys."""
FINISHED_STEPS = "scheduler.finished_steps"
_ZIP_TROUBLE = re.compile(r"PytorchStreamWriter|unexpected pos|iostream error|No space left")
Complete = Callable[[Path], None]
"""Adds to the folder what is made of the sharded files; runs on rank 0, in the background."""


class CheckpointWriter:
    """Writes one checkpoint at a time. Every rank makes one and calls its methods in the same order."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo")
        self._copy = HostCopy()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[float] | None = None

    def begin(
        self, folder: Path, partial: Path, tensors: Mapping[str, Any], state: Mapping[str, Any], complete: Complete
    ) -> None:
        """Copies ``tensors`` and starts to write them to ``partial``, to become ``folder``.

        ``state`` and every rank's random state go to state.json. An earlier checkpoint must have been waited for.
        """
        assert self._pending is None, "the earlier checkpoint is still being written"
        states: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(random_state(), states, group=self._group)
        started = time.perf_counter()
        writer = dcp.FileSystemWriter(dcp_folder(partial), sync_files=True)
        written: Any = dcp.async_save(
            dict(tensors), storage_writer=writer, process_group=self._group, async_stager=self._copy
        )
        whole = {**state, "world_size": dist.get_world_size(), "random_states": states}

        def finish() -> float:
            try:
                written.result()
                if dist.get_rank() == 0:
                    complete(partial)
                    _write_json(state_file(partial), whole)
                    publish(partial, folder)
            except BaseException as error:  # torch's CheckpointException is no Exception
                shutil.rmtree(partial, ignore_errors=True)
                raise _told(error, folder) from error
            return time.perf_counter() - started

        self._pending = self._thread.submit(finish)

    def finished(self, *, wait: bool) -> float | None:
        """Seconds that the last checkpoint took to write, once; None while it is being written or when there is none.

        Raises UserError when the disk did not take it.
        """
        if self._pending is None or not (wait or self._pending.done()):
            return None
        pending, self._pending = self._pending, None
        return pending.result()


def publish(partial: Path, folder: Path) -> None:
    """Makes the finished ``partial`` the checkpoint ``folder``, on disk before it has its name."""
    _write_json(partial / MARK, {"files": list_files(partial)})
    for path in [*partial.rglob("*"), partial]:
        _sync(path)
    if folder.exists():
        replaced = partial.with_name(partial.name + "-replaced")
        folder.rename(replaced)
        partial.rename(folder)
        shutil.rmtree(replaced)
    else:
        partial.rename(folder)
    for place in folder.parents[:3]:  # up to the run folder, whose own name is older
        _sync(place)


def read_shapes(folder: Path, prefix: str) -> dict[str, torch.Size]:
    """Key without ``prefix`` -> shape of the tensors in the sharded files of ``folder`` (a dcp_checkpoint)."""
    metadata = _metadata(folder)
    return {
        key.removeprefix(prefix): entry.size
        for key, entry in metadata.items()
        if key.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }


def read_tensors(folder: Path, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Fills ``tensors`` in place, each rank its own part, from a dcp_checkpoint of any number of ranks.

    Raises UserError for files that do not parse.
    """
    state = dict(tensors)
    try:
        dcp.load(state, storage_reader=dcp.FileSystemReader(folder))
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise UserError(f"{folder} cannot be read ({_read_trouble(cause)}); give another one") from error
    return state


def read_whole(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors under ``prefix`` on this process's CPU, whole; without talking to other ranks."""
    metadata = _metadata(folder)
    wanted = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in metadata.items()
        if key.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(wanted, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    return {key.removeprefix(prefix): tensor for key, tensor in wanted.items()}


def open_weights(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a full_weights.pt, mapped from the file. Raises UserError when it is cut or something else."""
    if not zipfile.is_zipfile(file):  # the index stands at the end
        raise UserError(f"{file} cannot be read as weights (cut, or not written by torch.save); give a full_weights.pt")
    try:
        weights = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{file} cannot be read as weights ({_read_trouble(error)}); give another one") from error
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise UserError(f"{file} does not hold weights by name; give a full_weights.pt")
    return weights


def write_weights(file: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """``torch.save`` to a new file in a new folder."""
    file.parent.mkdir(parents=True)
    torch.save(dict(weights), file)


def _metadata(folder: Path) -> Mapping[str, Any]:
    try:
        return dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    except (OSError, ValueError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        raise UserError(f"{folder} is no readable dcp_checkpoint ({error}); give another one") from error


def _read_trouble(error: BaseException) -> str:
    """What torch says, in one line; of damaged bytes it would say that they are safe to load without its check."""
    return "damaged" if isinstance(error, pickle.UnpicklingError) else " ".join(str(error).split())[:200]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _sync(path: Path) -> None:
    """Puts a file's content, or the names in a folder, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        if path.is_file():
            os.fsync(handle)
        else:
            with suppress(OSError):  # some network file systems refuse to sync a folder
                os.fsync(handle)
    finally:
        os.close(handle)


def _told(error: BaseException, folder: Path) -> BaseException:
    """A disk's trouble as one line; anything else as it is."""
    causes = [cause for cause, _ in getattr(error, "failures", {}).values()] or [error]
    # torch's zip writer reports a full disk as RuntimeError, distributed checkpointing inside CheckpointException.
    disk: Any = next((cause for cause in causes if isinstance(cause, OSError) or _ZIP_TROUBLE.search(str(cause))), None)
    if disk is None:
        return error
    free = shutil.disk_usage(folder.parent).free / 2**20
    reason = os.strerror(disk.errno or errno.EIO) if isinstance(disk, OSError) else "a file was taken only in part"
    return UserError(
        f"the checkpoint {folder} could not be written ({reason}; {free:.0f} MiB are free there); make room, or write "
        "less: runner.keep_last, runner.save_full_weights=false"
    )
