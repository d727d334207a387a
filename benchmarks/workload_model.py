"""The workload's model folder: a random Qwen2.5-VL of the 3B's shape or a small one, with a tokenizer of its own; and
what the workload has to know of it.

The tokenizer knows the workload's words as one token each. The 3B's vocabulary is the released model's 151,936 entries,
most of which no token of the tokenizer refers to: the output head costs what it costs in practice.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from benchmarks.workload import FIRST_WORD, IMAGE_TOKENS, PIXELS, WORDS, ModelSize, Template
from rlinf_vlm.config.actor import ModelConfig
from rlinf_vlm.data.kinds import KindOptions
from rlinf_vlm.data.kinds.messages import Messages
from rlinf_vlm.data.processor import load_processor
from rlinf_vlm.data.rendering import Renderer, RenderOptions
from rlinf_vlm.types import Sample
from rlinf_vlm.workers.model import position_builder
from toolkits.data.demo_model import DemoShape, build_config, build_model, build_processor, build_tokenizer

PROCESSOR: dict[str, Any] = {
    "vocab_size": 2048,
    "image_mean": 0.5,
    "image_side": round(IMAGE_TOKENS[0] ** 0.5 * PIXELS),
    "max_image_side": round(IMAGE_TOKENS[1] ** 0.5 * PIXELS),
}
SHAPES = {
    "small": DemoShape(
        vision_hidden=64, vision_ffn=96, text_hidden=64, text_heads=2, text_ffn=96, vision_depth=2, text_depth=2,
        **PROCESSOR,
    ),
    "3b": DemoShape(
        vision_depth=32, vision_hidden=1280, vision_heads=16, vision_ffn=3420,
        text_depth=36, text_hidden=2048, text_heads=16, text_kv_heads=2, text_ffn=11008,
        vision_std=0.02, text_std=0.02, max_positions=32768,
        **PROCESSOR,
    ),
}  # fmt: skip
RELEASED_VOCABULARY = 151_936
RELEASED_FULL_ATTENTION = [7, 15, 23, 31]
RELEASED_ROPE_THETA = 1e6

Render = Callable[[Mapping[str, Any]], Sample]


def write_model(folder: Path, size: ModelSize, seed: int) -> None:
    """Writes config, weights (bf16 for the 3B, fp32 for the small one), tokenizer and processor into ``folder``."""
    shape = SHAPES[size]
    tokenizer = build_tokenizer(
        [f"{FIRST_WORD} {' '.join(WORDS)}", "user", "assistant", "system"] * 20, shape.vocab_size
    )
    config = build_config(tokenizer, shape)
    model = build_model(config, seed) if size == "small" else _large_model(released(config), seed)
    model.save_pretrained(folder)
    build_processor(tokenizer, shape).save_pretrained(folder)


def released(config: Qwen2_5_VLConfig) -> Qwen2_5_VLConfig:
    """``config`` of the shape "3b" with what the released model has besides its sizes."""
    text: Any = config.text_config
    vision: Any = config.vision_config
    text.vocab_size = RELEASED_VOCABULARY
    text.rope_parameters["rope_theta"] = RELEASED_ROPE_THETA
    vision.fullatt_block_indexes = RELEASED_FULL_ATTENTION
    return config


def _large_model(config: Qwen2_5_VLConfig, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Random bf16 weights, made on a GPU where there is one (on a CPU: minutes)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        return Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)


def renderer_of(model: Path) -> Renderer:
    """The renderer that a run on the model folder uses."""
    settings = ModelConfig(model_type="qwen2.5_vl", model_path=str(model))
    return Renderer(load_processor(str(model)), position_builder(settings), RenderOptions())


def row_kind() -> Messages:
    """How a row of the workload is read."""
    return Messages(KindOptions(messages_key="messages", image_keys=("image",)))


def text_renderer(model: Path) -> Render:
    """What makes a sample of a row."""
    renderer, kind = renderer_of(model), row_kind()
    return lambda row: renderer.render(kind.convert(row), row=0)


def measure_template(render: Render) -> Template:
    """What the chat template adds. Raises RuntimeError when the workload's words are not one token each."""
    bare, full = _probe(render, ()), _probe(render, WORDS)
    if full.prompt_length - bare.prompt_length != len(WORDS):
        raise RuntimeError(f"{len(WORDS)} words are {full.prompt_length - bare.prompt_length} tokens, not one each")
    around = bare.prompt_length - bare.images[0].num_features - 1
    return Template(around=around, after=len(bare.input_ids) - 1 - int((bare.labels >= 0).nonzero()[-1]))


def _probe(render: Render, words: Sequence[str]) -> Sample:
    """A sample whose prompt's text is FIRST_WORD and ``words``."""
    turns = [
        {"role": "user", "content": "<image>" + " ".join((FIRST_WORD, *words))},
        {"role": "assistant", "content": FIRST_WORD},
    ]
    return render({"messages": turns, "image": {"bytes": _plain_picture(), "path": None}})


def _plain_picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (PROCESSOR["image_side"],) * 2).save(file, format="PNG")
    return file.getvalue()
