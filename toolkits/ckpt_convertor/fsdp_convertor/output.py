"""Writes the model folder: sharded safetensors with an index, config.json with the type, and the base's other files.

Dataflow: tensors in the order of their plan -> model.safetensors, or model-00001-of-0000N.safetensors and
model.safetensors.index.json, in ``save_path``.partial -> renamed to ``save_path`` when all is done and verified.
Invariants: one tensor is in memory at a time, whatever the size of a file; a folder that is being written is locked,
and removed when writing it fails; one that a killed process left is removed by the next.

A safetensors file is the header's length (8 bytes, little endian), the header (JSON: name -> dtype, shape, place) and
the tensors' bytes in row-major order (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from rlinf_vlm.models.weight_files import SAFETENSORS_NAMES, TensorInfo
from rlinf_vlm.types import UserError

_LOCK = ".converting"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".tflite")
_INDEXES = (".safetensors.index.json", ".bin.index.json")


@contextmanager
def folder_aside(save_path: Path) -> Iterator[Path]:
    """``save_path``.partial, empty; becomes ``save_path`` at the end, or is removed when the block fails.

    Raises UserError when ``save_path`` exists and is not empty, or another process is writing it.
    """
    if save_path.exists() and (not save_path.is_dir() or any(save_path.iterdir())):
        raise UserError(f"convertor.save_path={str(save_path)!r} exists and is not an empty folder; name another one")
    if save_path.is_mount():
        raise UserError(f"convertor.save_path={str(save_path)!r} is a disk's own folder; name a new folder in it")
    aside = save_path.with_name(save_path.name + ".partial")
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(aside, save_path)
        aside.mkdir()
        lock = (aside / _LOCK).open("w")
    except OSError as error:
        raise UserError(
            f"convertor.save_path={str(save_path)!r} cannot be written ({error.strerror or error}); name another folder"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield aside
            (aside / _LOCK).unlink()
            aside.rename(save_path)  # replaces an empty folder
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def _remove_left_over(aside: Path, save_path: Path) -> None:
    if not aside.exists():
        return
    if not (aside / _LOCK).is_file():
        raise UserError(f"convertor.save_path={str(save_path)!r}: {aside} exists and was not made here; remove it")
    with (aside / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"convertor.save_path={str(save_path)!r}: another process is converting to it; wait, or "
                "name another folder"
            ) from error
        shutil.rmtree(aside)


def check_space(folder: Path, needed: int) -> None:
    """Raises UserError when the disk of ``folder`` has less than ``needed`` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"convertor.save_path: {needed / 2**20:,.0f} MiB are needed, and {free / 2**20:,.0f} MiB are free at "
            f"{folder.parent}; make room or name another folder"
        )


def plan_files(infos: Mapping[str, TensorInfo], max_shard_size: int) -> dict[str, dict[str, TensorInfo]]:
    """File name -> its tensors, in the order given; a file ends before it is larger than ``max_shard_size`` bytes."""
    shards: list[dict[str, TensorInfo]] = [{}]
    size = 0
    for name, info in infos.items():
        if shards[-1] and size + info.nbytes > max_shard_size:
            shards.append({})
            size = 0
        shards[-1][name] = info
        size += info.nbytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard for number, shard in enumerate(shards, 1)}


def write_weights(
    folder: Path,
    files: Mapping[str, Mapping[str, TensorInfo]],
    tensors: Iterable[tuple[str, torch.Tensor]],
    tell: Callable[[str], None],
) -> None:
    """Writes ``tensors``, which come in the order of ``files``, and the index of several files."""
    given = iter(tensors)
    for number, (file_name, infos) in enumerate(files.items(), 1):
        with (folder / file_name).open("wb") as file:
            file.write(_header(infos))
            for name, info in infos.items():
                got, tensor = next(given)
                assert (got, tuple(tensor.shape), tensor.dtype) == (name, info.shape, info.dtype), (got, name, info)
                _write_bytes(file, tensor)
                del tensor
            file.flush()
            os.fsync(file.fileno())
        tell(f"written {file_name} ({number} of {len(files)})")
    assert next(given, None) is None, "a tensor without a file"
    if len(files) > 1:
        total = sum(info.nbytes for infos in files.values() for info in infos.values())
        places = {name: file_name for file_name, infos in files.items() for name in infos}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        _write_json(folder / "model.safetensors.index.json", index)


def _header(infos: Mapping[str, TensorInfo]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, info in infos.items():
        place = [end, end + info.nbytes]
        entries[name] = {"dtype": SAFETENSORS_NAMES[info.dtype], "shape": list(info.shape), "data_offsets": place}
        end = place[1]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _write_bytes(file: BinaryIO, tensor: torch.Tensor) -> None:
    if tensor.numel():
        file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def write_config(config: Mapping[str, Any], folder: Path, dtype: torch.dtype) -> None:
    """config.json with ``dtype`` wherever the base's named a type, and at the top."""
    name = str(dtype).removeprefix("torch.")
    written = _with_type(config, name)
    if "dtype" not in written and "torch_dtype" not in written:
        written["dtype"] = name
    _write_json(folder / "config.json", written)


def _with_type(node: Any, name: str) -> Any:
    if not isinstance(node, Mapping):
        return node
    return {
        key: name if key in ("dtype", "torch_dtype") and isinstance(value, str) else _with_type(value, name)
        for key, value in node.items()
    }


def other_files(model_path: Path) -> list[Path]:
    """The folder's files beside config.json and weights, as paths in it: tokenizer, processor, templates, code."""
    found = []
    for root, folders, names in os.walk(model_path, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in sorted(names):
            path = (Path(root) / name).relative_to(model_path)
            if not name.startswith(".") and path != Path("config.json") and not name.endswith((*_WEIGHTS, *_INDEXES)):
                found.append(path)
    return found


def copy_files(model_path: Path, folder: Path, names: Iterable[Path]) -> None:
    """Copies ``names``; what is a link there becomes a file."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model_path / name, folder / name)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
