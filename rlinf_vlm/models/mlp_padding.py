"""A gated MLP computed with its inner width padded by zeros, for widths that tensor cores dislike.

bf16 matrix products want widths that are multiples of 8 (rows of 16 bytes). Qwen2.5-VL's vision MLP is 3,420 wide, and
cuBLAS runs it at a third of its speed. Invariants: the parameters keep their names, shapes and gradients, so that
checkpoints, optimizer and sharding know nothing of it; the result is that of the unpadded MLP, since act(0) * 0 = 0
meets the padded columns of the last product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rlinf_vlm.config.passes import ALIGNMENT, padded_width

_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class PaddedMLP(nn.Module):
    """Takes over the projections and the activation of a gated MLP. ``extra``: columns of zeros."""

    def __init__(self, mlp: Any, extra: int) -> None:
        super().__init__()
        self.gate_proj = mlp.gate_proj
        self.up_proj = mlp.up_proj
        self.down_proj = mlp.down_proj
        self.act_fn = mlp.act_fn
        self.extra = extra

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[.., width] -> [.., width]."""
        inner = self.act_fn(self._widened(self.gate_proj, hidden)) * self._widened(self.up_proj, hidden)
        return F.linear(inner, F.pad(self.down_proj.weight, (0, self.extra)), self.down_proj.bias)

    def _widened(self, linear: Any, hidden: torch.Tensor) -> torch.Tensor:
        bias = None if linear.bias is None else F.pad(linear.bias, (0, self.extra))
        return F.linear(hidden, F.pad(linear.weight, (0, 0, 0, self.extra)), bias)


def pad_mlps(blocks: list[nn.Module]) -> int:
    """Pads the gated MLPs of ``blocks`` that have an odd inner width; how many. MLPs with adapters stay as they are."""
    padded = 0
    for block in blocks:
        mlp: Any = getattr(block, "mlp", None)
        if mlp is None or not all(type(getattr(mlp, name, None)) is nn.Linear for name in _PROJECTIONS):
            continue
        width = mlp.gate_proj.out_features
        if width % ALIGNMENT:
            block.mlp = PaddedMLP(mlp, padded_width(width) - width)
            padded += 1
    return padded
