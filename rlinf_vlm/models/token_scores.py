"""Hidden states of the supervised places -> log-probabilities of their labels, without logits of all places.

Dataflow: hidden [T, H], labels [T] -> places t with a label, hidden[t - 1] -> head in chunks -> ``TokenScores``.
Invariants: the softmax is in float32; the result does not depend on the chunk size; with N = 0 the result is empty and
its sum still has a backward pass, that gives zeros. A banned token has probability 0 and no gradient.
Not here: losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from rlinf_vlm.algorithms.entropy import entropy as entropy_of
from rlinf_vlm.types import IGNORE_INDEX, TokenScores

CHUNK = 2048
"""Places whose logits exist at one time: 0.6 GB in bf16 for a vocabulary of 152,000."""


def supervised_positions(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Where ``labels`` [T] holds a label, ascending [count]; ``count`` is known, so that no device is waited for."""
    mask = labels != IGNORE_INDEX
    if labels.device.type == "cpu":
        return torch.nonzero(mask).flatten()
    return torch.nonzero_static(mask, size=count).flatten()


def pick_labels(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probability of each target [N] float32, arg-max [N]) of logits [N, vocabulary]."""
    wide = logits.float()
    return -F.cross_entropy(wide, targets, reduction="none"), wide.detach().argmax(dim=-1)


def pick_viewed(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float,
    banned: torch.Tensor,
    entropy: Literal["off", "value", "gradient"],
) -> tuple[torch.Tensor, ...]:
    """As ``pick_labels``, of the distribution that a ``LogitView`` describes; and the entropies [N] unless ``off``."""
    allowed = logits.index_fill(1, banned, float("-inf")) if banned.numel() else logits
    wide = allowed.float() if temperature == 1.0 else allowed.float() / temperature
    picked = pick_labels(wide, targets)
    if entropy == "off":
        return picked
    return *picked, entropy_of(wide if entropy == "gradient" else wide.detach())


def score_labels(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    count: int,
    head: torch.nn.Module,
    *,
    chunk: int | None = CHUNK,
    pick: Callable[..., tuple[torch.Tensor, ...]] = pick_labels,
) -> TokenScores:
    """Scores of the ``count`` supervised tokens of ``labels`` [T] from the last hidden states [T, H].

    head: the model's output projection, [.., H] -> [.., vocabulary]. With gradients on and more than one chunk, each
    chunk's logits are computed again in the backward pass instead of kept. chunk=None computes the logits of all T
    places in float32 first. pick: ``pick_labels``, ``pick_viewed`` with its settings, or what they were compiled to.
    """
    positions = supervised_positions(labels, count)
    if chunk is None:
        logits = head(hidden).float().index_select(0, positions - 1)
        return _joined([pick(logits, labels.index_select(0, positions))])

    def score(rows: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return pick(head(rows), targets)

    chosen = hidden.index_select(0, positions - 1)
    targets = labels.index_select(0, positions)
    if count <= chunk:
        return _joined([score(chosen, targets)])
    parts = []
    for rows, part in zip(chosen.split(chunk), targets.split(chunk), strict=True):
        wanted = part.clone()  # compiled code would ask where in a larger tensor it begins
        if torch.is_grad_enabled():
            parts.append(checkpoint(score, rows, wanted, use_reentrant=False))
        else:
            parts.append(score(rows, wanted))
    return _joined(parts)


def _joined(parts: Sequence[tuple[torch.Tensor, ...]]) -> TokenScores:
    """What was picked of each chunk, one after the other."""
    columns = parts[0] if len(parts) == 1 else [torch.cat(column) for column in zip(*parts, strict=True)]
    return TokenScores(logprobs=columns[0], argmax=columns[1], entropy=columns[2] if len(columns) > 2 else None)
