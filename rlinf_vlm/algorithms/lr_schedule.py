"""The learning rate of an optimizer step. Pure Python.

Shapes after Loshchilov and Hutter, "SGDR" (arXiv:1608.03983), without restarts.
"""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, minimum: float, shape: str, warmup_steps: int, horizon: int) -> float:
    """Learning rate of the optimizer step with index ``step`` (0 is the first).

    Warm-up: ``peak * (step + 1) / warmup_steps`` for step < warmup_steps, so the first step already learns. After it,
    with progress p = (step - warmup_steps) / (horizon - warmup_steps) clamped to [0, 1]: ``constant`` gives peak;
    ``linear`` minimum + (peak - minimum) * (1 - p); ``cosine`` minimum + (peak - minimum) * (1 + cos(pi p)) / 2.
    Beyond the horizon p stays 1: the rate never rises again. Degenerate: horizon == warmup_steps gives p = 1.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if shape == "constant":
        return peak
    progress = min(1.0, (step - warmup_steps) / (horizon - warmup_steps)) if horizon > warmup_steps else 1.0
    if shape == "linear":
        return minimum + (peak - minimum) * (1.0 - progress)
    if shape == "cosine":
        return minimum + (peak - minimum) * 0.5 * (1.0 + math.cos(math.pi * progress))
    raise ValueError(f"unknown shape of the learning rate {shape!r} (known: constant, linear, cosine)")
