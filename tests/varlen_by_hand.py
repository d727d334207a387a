"""A variable-length attention kernel for the CPU: opaque to compilation, as the GPU's kernels are, and slow.

Registered with torch under a name of the tests' own when ``cpu_kernel`` is first called.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch


@lru_cache
def cpu_kernel() -> Any:
    """What ``torch.nn.attention.varlen.varlen_attn`` is on a GPU, any dtype: q, k, v [T, heads, dim], cu_seqlens."""

    @torch.library.custom_op("rlinf_vlm_tests::varlen", mutates_args=())
    def forward(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu: torch.Tensor, scale: float, causal: bool
    ) -> torch.Tensor:
        out = torch.empty_like(q)
        for span, head, other in _places(q, k, cu):
            out[span, head] = _weights(q[span, head], k[span, other], scale, causal) @ v[span, other]
        return out

    @torch.library.custom_op("rlinf_vlm_tests::varlen_backward", mutates_args=())
    def backward(
        grad: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu: torch.Tensor,
        scale: float,
        causal: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for span, head, other in _places(q, k, cu):
            weights = _weights(q[span, head], k[span, other], scale, causal)
            dweights = grad[span, head] @ v[span, other].T
            dscores = weights * (dweights - (dweights * weights).sum(-1, keepdim=True)) * scale
            dq[span, head] += dscores @ k[span, other]
            dk[span, other] += dscores.T @ q[span, head]
            dv[span, other] += weights.T @ grad[span, head]
        return dq, dk, dv

    forward.register_fake(lambda q, k, v, cu, scale, causal: torch.empty_like(q))
    backward.register_fake(
        lambda grad, q, k, v, cu, scale, causal: (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v))
    )

    def keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.settings = inputs[4:]

    def differentiate(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        return (*backward(grad.contiguous(), *ctx.saved_tensors, *ctx.settings), None, None, None)

    forward.register_autograd(differentiate, setup_context=keep)

    def kernel(
        q: Any, k: Any, v: Any, cu: Any, _cu: Any, longest: int, _longest: int, *, scale: float, window_size: Any
    ) -> Any:
        assert longest >= 1
        return forward(q.contiguous(), k.contiguous(), v.contiguous(), cu, scale, window_size[1] == 0)

    return kernel


def _places(q: torch.Tensor, k: torch.Tensor, cu: torch.Tensor) -> Any:
    """(tokens of a segment, query head, its key head)."""
    for start, stop in pairwise(cu.tolist()):
        for head in range(q.shape[1]):
            yield slice(start, stop), head, head * k.shape[1] // q.shape[1]


def _weights(q: torch.Tensor, k: torch.Tensor, scale: float, causal: bool) -> torch.Tensor:
    scores = q @ k.T * scale
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
    return scores.softmax(-1)
