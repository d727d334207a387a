"""The converter's config: what is converted, how it is written, and which model it belongs to.

Dataflow: config/fsdp_model_convertor.yaml and overrides -> plain dict -> ``Settings``.
Invariants: frozen; sizes are in bytes and data types have torch's names once read; no path is looked at here.
"""

from __future__ import annotations

import os
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rlinf_vlm.config.base import Block, merge_alias

FloatType = Literal["float32", "bfloat16", "float16"]
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def _expanded(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty; give a path")
    return os.path.expanduser(value)


class ConvertorConfig(Block):
    """What is converted, and how it is written."""

    ckpt_path: str
    """Weights to convert: a global_step_N folder, its actor folder, its dcp_checkpoint, its lora_adapter, or a
    full_weights.pt. ~ is the home folder."""
    save_path: str
    """Folder to write; must not exist, or be empty. ~ is the home folder."""
    torch_dtype: FloatType | None = "bfloat16"
    """Type of the weights written: fp32 or float32, bf16 or bfloat16, fp16 or float16. null keeps the stored one."""
    merge_lora_weights: bool = True
    """For a LoRA checkpoint: true adds the adapter to the base weights and writes a whole model, false writes a peft
    adapter folder. Without effect on other checkpoints. RLinf's spelling merge_lora_weighs is read too."""
    max_shard_size: int = Field(default=5 * 10**9, ge=1)
    """Largest weight file: bytes, or a number with KB, MB, GB, KiB, MiB or GiB. At least 1 byte; a larger tensor has a
    file of its own."""
    verify: bool = True
    """Load what was written with transformers and compare its logits on an image prompt. Needs memory for the model."""

    @model_validator(mode="before")
    @classmethod
    def _spelling(cls, values: Any) -> Any:
        return merge_alias(values, "merge_lora_weighs", "merge_lora_weights")

    @field_validator("torch_dtype", mode="before")
    @classmethod
    def _long_name(cls, value: Any) -> Any:
        return _SHORT.get(value, value) if isinstance(value, str) else value

    @field_validator("max_shard_size", mode="before")
    @classmethod
    def _bytes(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?B|)\s*", value, re.IGNORECASE)
        if match is None:
            raise ValueError("is no size")
        return int(float(match[1]) * _UNITS[match[2].upper()])

    @field_validator("ckpt_path", "save_path")
    @classmethod
    def _paths(cls, value: str) -> str:
        return _expanded(value)


class BaseModelConfig(Block):
    """The model that was trained, as it was before."""

    model_path: str
    """Folder of the model that the training started from: its config.json, its tensors' names, its tokenizer and its
    processor are taken over. ~ is the home folder."""
    model_type: str | None = None
    """Model family: qwen2_vl, qwen2.5_vl, qwen3_vl, qwen3_vl_moe, auto (other image-text-to-text models of
    transformers) or package.module:SPEC. Must fit the folder's config.json; null takes what that says."""
    trust_remote_code: bool = False
    """Run Python code that the model folder brings along."""

    @field_validator("model_path")
    @classmethod
    def _path(cls, value: str) -> str:
        return _expanded(value)


class Settings(Block):
    """The whole tree."""

    convertor: ConvertorConfig
    """What is converted, and how it is written."""
    model: BaseModelConfig
    """The model that was trained, as it was before."""
