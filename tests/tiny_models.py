"""Random models of every family, small enough to run in milliseconds: vocabulary 128, width 32, two layers.

``make_tiny(family, seed)`` gives (transformers model in fp32 and eval mode, its config). Token 100 is the image token,
101 the video token, 102 and 103 stand around an image.
"""

from __future__ import annotations

from typing import Any

import torch

IMAGE, VIDEO, VISION_START, VISION_END = 100, 101, 102, 103
QWEN_FAMILIES = ("qwen2_vl", "qwen2.5_vl", "qwen3_vl", "qwen3_vl_moe")
GENERIC = "llava"
PATCH, MERGE = 4, 2

_TOKENS: dict[str, Any] = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}


def make_tiny(family: str, seed: int = 0, *, tied: bool = False) -> tuple[Any, Any]:
    """A random model of ``family`` (one of QWEN_FAMILIES, or GENERIC) and its config."""
    from transformers import AutoModelForImageTextToText

    config = tiny_config(family, tied=tied)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norm weights of 1 and biases of 0 would hide what is not multiplied and not added.
            parameter.add_(torch.randn_like(parameter) * 0.08)
    return model, config


def tiny_config(family: str, *, tied: bool = False) -> Any:
    """The config of ``make_tiny``."""
    if family == GENERIC:
        return _llava(tied)
    return {
        "qwen2_vl": _qwen2,
        "qwen2.5_vl": _qwen2_5,
        "qwen3_vl": _qwen3,
        "qwen3_vl_moe": _qwen3_moe,
    }[family](tied)


def _text(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        **more,
    }


def _rope(interleaved: bool = False) -> dict[str, Any]:
    extra = {"mrope_interleaved": True} if interleaved else {}
    return {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1], **extra}


def _qwen2(tied: bool) -> Any:
    from transformers import Qwen2VLConfig

    vision = {
        "depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
        "patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2, "in_channels": 3,
    }  # fmt: skip
    text = _text(rope_parameters=_rope())
    return Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **_TOKENS)


def _qwen2_5(tied: bool) -> Any:
    from transformers import Qwen2_5_VLConfig

    vision = {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 40, "out_hidden_size": 32,
        "patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2, "in_channels": 3,
        "window_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    text = _text(rope_parameters=_rope())
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **_TOKENS)


def _qwen3_vision() -> dict[str, Any]:
    return {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 40, "out_hidden_size": 32,
        "patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2, "in_channels": 3,
        "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip


def _qwen3(tied: bool) -> Any:
    from transformers import Qwen3VLConfig

    text = _text(head_dim=8, rope_parameters=_rope(interleaved=True))
    return Qwen3VLConfig(text_config=text, vision_config=_qwen3_vision(), tie_word_embeddings=tied, **_TOKENS)


def _qwen3_moe(tied: bool) -> Any:
    from transformers import Qwen3VLMoeConfig

    # With an expert width of 16, gate_up_proj would be square and a wrong layout not be seen.
    text = _text(
        head_dim=8, rope_parameters=_rope(interleaved=True), num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=24, decoder_sparse_step=1, mlp_only_layers=[],
    )  # fmt: skip
    return Qwen3VLMoeConfig(text_config=text, vision_config=_qwen3_vision(), tie_word_embeddings=tied, **_TOKENS)


def _llava(tied: bool) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2, image_size=8,
        patch_size=PATCH, projection_dim=32,
    )  # fmt: skip
    text = LlamaConfig(**_text(tie_word_embeddings=tied))
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=4,
        vision_feature_layer=-2, vision_feature_select_strategy="default", tie_word_embeddings=tied,
    )  # fmt: skip
