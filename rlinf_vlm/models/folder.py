"""What a model folder says of itself, read from its JSON files and safetensors headers: no torch, no weights.

A safetensors file starts with the header's length (8 bytes, little endian) and the header itself, JSON that maps each
tensor's name to its dtype, shape and place (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlinf_vlm.types import UserError

KEY = "actor.model.model_path"
NEEDED = {
    "weights": ("*.safetensors", "pytorch_model*.bin"),
    "tokenizer": ("tokenizer.json", "vocab.json", "tokenizer.model", "tokenization_*.py"),
    "processor": ("preprocessor_config.json", "processor_config.json"),
}
"""What a model folder holds beside config.json: kind -> file names, any of which will do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A model on disk.

    model_type: of its config.json; parameters: their number, None without safetensors; largest_block: parameters of
    its largest layer; hidden_size, num_layers: of the language model; max_positions: tokens of the longest sequence;
    kv_values: numbers that a token has in the KV cache (0 where config.json does not say); shapes: of the weights by
    the names that the files have, empty without safetensors.
    """

    path: Path
    model_type: str
    parameters: int | None
    largest_block: int
    hidden_size: int
    num_layers: int
    max_positions: int
    kv_values: int
    shapes: Mapping[str, tuple[int, ...]]


def read_model_folder(model_path: str) -> ModelFolder:
    """Raises UserError when the folder is missing, has no readable config.json, or a weight file is missing or cut."""
    path = Path(model_path)
    if not path.is_dir():
        raise UserError(f"{KEY}={model_path!r}: no such folder; download the model and set {KEY} to its folder")
    config_file = path / "config.json"
    if not config_file.is_file():
        raise UserError(f"{KEY}={model_path!r}: the folder has no config.json, so it is no Hugging Face model folder")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{KEY}={model_path!r}: its config.json is not JSON ({error}); copy it again") from error
    text = config.get("text_config", config) if isinstance(config, dict) else None
    if not isinstance(text, dict):
        raise UserError(f"{KEY}={model_path!r}: its config.json does not describe a model; copy it again")
    _check_files(path)
    shapes = _shapes(path)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    return ModelFolder(
        path=path,
        model_type=str(config.get("model_type", "")),
        parameters=sum(sizes.values()) if sizes else None,
        largest_block=_largest_block(sizes),
        hidden_size=_number(text, "hidden_size"),
        num_layers=_number(text, "num_hidden_layers"),
        max_positions=_max_positions(text),
        kv_values=_kv_values(text),
        shapes=shapes,
    )


def _check_files(path: Path) -> None:
    """Weights, tokenizer and processor are there, under one of their names."""
    for what, patterns in NEEDED.items():
        if not any(any(path.glob(pattern)) for pattern in patterns):
            raise UserError(f"{KEY}={str(path)!r}: the folder has no {what} ({' or '.join(patterns)}); copy it there")


def _number(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name, 0)
    return value if isinstance(value, int) else 0


def _max_positions(text: Mapping[str, Any]) -> int:
    """0 where rotations are scaled: then there are more positions than the config counts."""
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    scaled = isinstance(rope, dict) and "factor" in rope
    return 0 if scaled else _number(text, "max_position_embeddings")


def _kv_values(text: Mapping[str, Any]) -> int:
    """Keys and values of all layers; 0 where some layers keep less than every token."""
    if set(text.get("layer_types") or ()) - {"full_attention"} or text.get("use_sliding_window"):
        return 0
    heads = _number(text, "num_attention_heads")
    width = _number(text, "head_dim") or (_number(text, "hidden_size") // heads if heads else 0)
    return 2 * _number(text, "num_hidden_layers") * (_number(text, "num_key_value_heads") or heads) * width


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape, over all safetensors files; empty when there are none."""
    index = path / "model.safetensors.index.json"
    files = sorted(path.glob("*.safetensors"))
    if index.is_file():
        try:
            named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{KEY}: {index} is cut or no index of weights ({error!r}); copy it again") from error
        missing = [name for name in named if not (path / name).is_file()]
        if missing:
            raise UserError(
                f"{KEY}={str(path)!r}: {len(missing)} of {len(named)} weight files are missing ({missing[0]}); "
                "copy the folder again"
            )
        files = [path / name for name in named]
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes.update({name: tuple(entry["shape"]) for name, entry in _header(file).items()})
    return shapes


def _header(file: Path) -> Mapping[str, Any]:
    """A safetensors header without its metadata, after checking that the file is as long as it says."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, MemoryError, OverflowError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{KEY}: {file} is cut or no safetensors file ({error!r}); copy it again") from error
    if file.stat().st_size < 8 + length + end:
        raise UserError(
            f"{KEY}: {file} has {file.stat().st_size} bytes of {8 + length + end}: it is cut; copy it again"
        )
    return tensors


def _largest_block(sizes: Mapping[str, int]) -> int:
    """Parameters of the largest numbered layer."""
    blocks: dict[str, int] = {}
    for name, size in sizes.items():
        match = re.match(r"(.*?\.\d+)\.", name)
        if match:
            blocks[match.group(1)] = blocks.get(match.group(1), 0) + size
    return max(blocks.values(), default=0)
