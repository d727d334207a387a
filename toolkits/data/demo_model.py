"""A small Qwen2.5-VL with random weights, its tokenizer and its processor, as a Hugging Face folder.

Dataflow: texts -> byte-level BPE tokenizer with Qwen's special tokens -> processor (image processor, video processor,
chat template) -> config -> seeded weights -> ``save_pretrained``. The folder loads with AutoModelForImageTextToText,
AutoProcessor and vLLM.

Invariants: any UTF-8 text encodes and decodes to itself (NFC); each of easy-VQA's answers is one token where a turn
starts; a 64x64 image becomes ``DemoShape.image_tokens`` tokens; the same texts, shape and seed give the same weights.
Does not: train. The weights are worth nothing before SFT.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' or 'video' in part -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
"""Qwen2.5-VL's turns without its default system prompt: for a model of this size those tokens are a third of a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoShape:
    """Sizes of the demo model; lengths in pixels are sides of a square image.

    head_dim is 32 (text), the smallest that vLLM's attention kernels take on a CPU. ``image_mean`` is near the
    drawings' background and the two ``std`` are about 1 / sqrt(hidden): with the released models' mean and 0.02, shapes
    are learned several times later.
    """

    vocab_size: int = 448
    image_side: int = 84
    image_mean: float = 0.95
    image_std: float = 0.27
    max_image_side: int = 224
    vision_depth: int = 2
    vision_hidden: int = 128
    vision_heads: int = 4
    vision_ffn: int = 256
    text_depth: int = 2
    text_hidden: int = 128
    text_heads: int = 4
    text_kv_heads: int = 2
    text_ffn: int = 384
    vision_std: float = 0.08
    text_std: float = 0.08
    max_positions: int = 4096

    @property
    def image_tokens(self) -> int:
        """Tokens of an image that the processor brings to ``image_side`` (28 pixels a token and side)."""
        return (self.image_side // 28) ** 2


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of at most ``vocab_size`` entries, SPECIAL_TOKENS included (they come last).

    Repeat a text in ``texts`` to make it count more. Raises ValueError if the bytes and special tokens do not fit.
    """
    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size={vocab_size} is below {smallest} (256 bytes and {len(SPECIAL_TOKENS)} special)")
    # The pre-tokenizer of Qwen2Tokenizer itself: merges learned under another one would never be used.
    reference = Qwen2Tokenizer(vocab={"<|endoftext|>": 0}, merges=[]).backend_tokenizer
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.NFC()
    learner.pre_tokenizer = reference.pre_tokenizer
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    state = json.loads(learner.to_str())["model"]
    # Annotated as strings, yet the backend takes pairs.
    merges: Any = [tuple(merge) for merge in state["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab={**state["vocab"], **{token: len(state["vocab"]) + i for i, token in enumerate(SPECIAL_TOKENS)}},
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=4096,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_processor(tokenizer: PreTrainedTokenizerBase, shape: DemoShape) -> Qwen2_5_VLProcessor:
    """Processor of patches of 14 pixels merged 2x2, images brought to at least ``image_side`` squared pixels."""
    settings: dict[str, Any] = {
        "size": {"shortest_edge": shape.image_side**2, "longest_edge": shape.max_image_side**2},
        "image_mean": [shape.image_mean] * 3,
        "image_std": [shape.image_std] * 3,
    }
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**copy.deepcopy(settings)),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**copy.deepcopy(settings)),
        chat_template=CHAT_TEMPLATE,
    )


def build_config(tokenizer: PreTrainedTokenizerBase, shape: DemoShape) -> Qwen2_5_VLConfig:
    """The model's config; every id in it is looked up in ``tokenizer``."""
    ids = tokenizer.get_vocab()
    head_dim = shape.text_hidden // shape.text_heads
    # Time, height and width get 1/4, 3/8 and 3/8 of the rotary pairs, as in the released models.
    time_pairs = head_dim // 8
    side_pairs = (head_dim // 2 - time_pairs) // 2
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": shape.text_hidden,
            "intermediate_size": shape.text_ffn,
            "num_hidden_layers": shape.text_depth,
            "num_attention_heads": shape.text_heads,
            "num_key_value_heads": shape.text_kv_heads,
            "max_position_embeddings": shape.max_positions,
            "initializer_range": shape.text_std,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [head_dim // 2 - 2 * side_pairs, side_pairs, side_pairs],
            },
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": shape.vision_depth,
            "hidden_size": shape.vision_hidden,
            "intermediate_size": shape.vision_ffn,
            "num_heads": shape.vision_heads,
            "out_hidden_size": shape.text_hidden,
            "fullatt_block_indexes": [shape.vision_depth - 1],
            "initializer_range": shape.vision_std,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def build_model(config: Qwen2_5_VLConfig, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A float32 model with the weights of ``seed``; torch's own random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    return model.float()


def write_model(folder: Path, texts: Iterable[str], shape: DemoShape, seed: int) -> int:
    """Writes model, tokenizer, processor and generation config into ``folder``; returns the number of parameters."""
    tokenizer = build_tokenizer(texts, shape.vocab_size)
    config = build_config(tokenizer, shape)
    text: Any = config.text_config
    model = build_model(config, seed)
    model.generation_config = GenerationConfig(
        eos_token_id=[text.eos_token_id, text.pad_token_id],
        pad_token_id=text.pad_token_id,
        do_sample=False,
        max_new_tokens=64,
    )
    model.save_pretrained(folder)
    build_processor(tokenizer, shape).save_pretrained(folder)
    loaded = len(AutoTokenizer.from_pretrained(folder))
    assert loaded == text.vocab_size, f"tokenizer reads back with {loaded} entries, {text.vocab_size} were written"
    return model.num_parameters()
