"""Attention over packed rows, in the three ways that this package knows, as functions that transformers can call.

Dataflow: ``choose_attention`` picks a name for a device and dtype; ``register_attention`` hands the functions to
transformers; a model whose configs carry ``hf_name(name)`` then calls them with ``cu_seq_lens_q`` and ``segments``.
Invariants: no token sees another segment's; no T x T mask is ever built; text is causal, vision is not.

- ``sdpa``: torch's scaled dot product attention over dense batches of like-long segments; any device and dtype, exact.
- ``varlen``: torch.nn.attention.varlen; CUDA with bf16 or fp16.
- ``flash_attention_2``: the flash_attn package; CUDA with bf16 or fp16.

Not here: rotary embedding, projections, and padded rows (a model that cannot pack uses transformers' own attention).
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from rlinf_vlm.models.segments import Grouping, SegmentBook
from rlinf_vlm.types import UserError

HF_NAMES = {
    "sdpa": "rlinf_flash_sdpa",
    "varlen": "rlinf_flash_varlen",
    "flash_attention_2": "rlinf_flash_package",
}
"""Names under which transformers knows the functions; "flash" in them selects its cu_seqlens path for vision towers."""

_HALF = (torch.bfloat16, torch.float16)


def hf_name(name: str) -> str:
    """The name in transformers' tables; UserError for a name that ``choose_attention`` does not give."""
    if name not in HF_NAMES:
        raise UserError(f"attention {name!r} is unknown; use one of {', '.join(HF_NAMES)}")
    return HF_NAMES[name]


def choose_attention(requested: str, *, device: torch.device | str, dtype: torch.dtype) -> tuple[str, str]:
    """(name, reason) for ``requested``: "auto", "sdpa", "varlen" or "flash_attention_2".

    ``dtype`` is the dtype of the computation, not of the stored weights. UserError when a request cannot work.
    """
    place = f"{torch.device(device).type} with {str(dtype).removeprefix('torch.')}"
    kernels = torch.device(device).type == "cuda" and dtype in _HALF
    available = {"varlen": _has_module("torch.nn.attention.varlen"), "flash_attention_2": _has_module("flash_attn")}
    if requested == "auto":
        if not kernels:
            return "sdpa", f"{place}: the variable-length kernels need CUDA with bfloat16 or float16"
        for name, present in available.items():
            if present:
                return name, f"{place}: variable-length kernel"
        return "sdpa", f"{place}: neither torch.nn.attention.varlen nor flash_attn is installed"
    if requested not in HF_NAMES:
        raise UserError(f"attention {requested!r} is unknown; use one of auto, {', '.join(HF_NAMES)}")
    if requested != "sdpa":
        if not kernels:
            raise UserError(
                f"attention {requested!r} needs CUDA with bfloat16 or float16, not {place}; use auto or sdpa"
            )
        if not available[requested]:
            raise UserError(f"attention {requested!r} is not installed here; use auto or sdpa")
    return requested, f"{place}: requested"


def register_attention() -> None:
    """Makes the functions known to transformers under ``HF_NAMES``, with masks that are never built. Repeatable."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    functions: dict[str, Callable[..., Any]] = {
        # Its dense batches have other shapes each time: compiled code goes around it.
        "sdpa": torch.compiler.disable(packed_sdpa),
        "varlen": partial(packed_varlen, kernel=None),
        "flash_attention_2": packed_flash_attention,
    }
    if _has_module("torch.nn.attention.varlen"):
        functions["varlen"] = partial(packed_varlen, kernel=_varlen_kernel())
    for name, function in functions.items():
        ALL_ATTENTION_FUNCTIONS.register(HF_NAMES[name], function)
        ALL_MASK_ATTENTION_FUNCTIONS.register(HF_NAMES[name], no_mask)


def no_mask(*_args: Any, **_kwargs: Any) -> None:
    """The mask of a packed row: segments come from cu_seqlens instead."""


def packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,
    segments: SegmentBook,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a packed row: query [1, heads, T, dim], key, value [1, kv heads, T, dim] -> [1, T, heads, dim]."""
    assert attention_mask is None, "packed attention takes its segments from cu_seqlens, not from a mask"
    causal = bool(module.is_causal) if is_causal is None else is_causal
    grouping = segments.find(cu_seq_lens_q).grouping
    assert grouping is not None, "segments were built without a grouping"
    heads = query.shape[1]
    q, k, v = (_to_layout(_repeat_heads(x[0].transpose(0, 1), heads), grouping) for x in (query, key, value))
    sizes = [count * rows for count, rows in grouping.batches]
    outputs = []
    for (count, rows), *parts in zip(grouping.batches, q.split(sizes), k.split(sizes), v.split(sizes), strict=True):
        dq, dk, dv = (part.unflatten(0, (count, rows)).transpose(1, 2) for part in parts)
        band = _band(rows, sliding_window, causal, query.device)
        out = F.scaled_dot_product_attention(
            dq, dk, dv, attn_mask=band, dropout_p=dropout, is_causal=causal and band is None, scale=scaling
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    joined = torch.cat(outputs) if len(outputs) != 1 else outputs[0]
    return _from_layout(joined, grouping).unsqueeze(0), None


def packed_varlen(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    kernel: Any,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As ``packed_sdpa``, by torch.nn.attention.varlen (``kernel``); CUDA, bf16 or fp16."""
    assert attention_mask is None and dropout == 0.0, "the varlen kernel has neither masks nor dropout"
    causal = bool(module.is_causal) if is_causal is None else is_causal
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    window = (-1 if sliding_window is None else sliding_window - 1, 0) if causal else (-1, -1)
    out = kernel(q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling, window_size=window)
    return out.unsqueeze(0), None


def packed_flash_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As ``packed_sdpa``, by the flash_attn package; CUDA, bf16 or fp16."""
    from flash_attn import flash_attn_varlen_func

    assert attention_mask is None, "packed attention takes its segments from cu_seqlens, not from a mask"
    causal = bool(module.is_causal) if is_causal is None else is_causal
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    window = (-1, -1) if sliding_window is None else (sliding_window - 1, sliding_window - 1)
    out = flash_attn_varlen_func(
        q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q,
        dropout_p=dropout, softmax_scale=scaling, causal=causal, window_size=window,
    )  # fmt: skip
    return out.unsqueeze(0), None


class _Pad(torch.autograd.Function):
    """Tokens [T, ...] -> layout [P, ...]. Rows that pad get gradient exactly 0 from causal attention, so that the
    gradient of a token is that of its one real row; a gather both ways, where autograd's own would scatter-add."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, gather: torch.Tensor, scatter: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(scatter)
        return tokens.index_select(0, gather)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class _Unpad(torch.autograd.Function):
    """Layout [P, ...] -> tokens [T, ...]; the inverse of ``_Pad``, with gradient 0 for rows that pad."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, gather: torch.Tensor, scatter: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gather, scatter)
        return rows.index_select(0, scatter)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gather, scatter = ctx.saved_tensors
        if gather.shape[0] == scatter.shape[0]:
            return grad.index_select(0, gather), None, None
        rows = grad.new_zeros(gather.shape[0], *grad.shape[1:])
        return rows.index_copy_(0, scatter, grad), None, None


def _to_layout(tokens: torch.Tensor, grouping: Grouping) -> torch.Tensor:
    return tokens if grouping.gather is None else _Pad.apply(tokens, grouping.gather, grouping.scatter)


def _from_layout(rows: torch.Tensor, grouping: Grouping) -> torch.Tensor:
    return rows if grouping.gather is None else _Unpad.apply(rows, grouping.gather, grouping.scatter)


def _repeat_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[T, kv heads, dim] -> [T, heads, dim]; each kv head serves the ``heads / kv heads`` query heads that follow."""
    repeats = heads // x.shape[1]
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=1)


def _band(rows: int, sliding_window: int | None, causal: bool, device: torch.device) -> torch.Tensor | None:
    """The mask [rows, rows] of sliding-window attention where the window is shorter than the segment, else None."""
    if sliding_window is None or rows <= sliding_window:
        return None
    assert causal, "a sliding window over vision tokens is not supported"
    distance = torch.arange(rows, device=device)[:, None] - torch.arange(rows, device=device)[None, :]
    return (distance >= 0) & (distance < sliding_window)


def _varlen_kernel() -> Any:
    from torch.nn.attention.varlen import varlen_attn

    # Grouped-query heads are implied in one torch release and an error without this argument in the next.
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        return partial(varlen_attn, enable_gqa=True)
    return varlen_attn


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
