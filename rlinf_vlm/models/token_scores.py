"""Hidden states of the supervised places -> log-probabilities of their labels, without logits of all places.

Dataflow: hidden [T, H], labels [T] -> places t with a label, hidden[t - 1] -> head in chunks -> ``TokenScores``.
Invariants: the softmax is in float32; the result does not depend on the chunk size; with N = 0 the result is empty and
its sum still has a backward pass, that gives zeros.
Not here: losses, and temperature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from rlinf_vlm.types import IGNORE_INDEX, TokenScores

CHUNK = 1024
"""Places whose logits exist at one time."""


def supervised_positions(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Where ``labels`` [T] holds a label, ascending [count]; ``count`` is known, so that no device is waited for."""
    mask = labels != IGNORE_INDEX
    if labels.device.type == "cpu":
        return torch.nonzero(mask).flatten()
    return torch.nonzero_static(mask, size=count).flatten()


def score_labels(
    hidden: torch.Tensor, labels: torch.Tensor, count: int, head: torch.nn.Module, *, chunk: int = CHUNK
) -> TokenScores:
    """Scores of the ``count`` supervised tokens of ``labels`` [T] from the last hidden states [T, H].

    head: the model's output projection, [.., H] -> [.., vocabulary]. With gradients on and more than one chunk, each
    chunk's logits are computed again in the backward pass instead of kept.
    """
    positions = supervised_positions(labels, count)
    chosen = hidden.index_select(0, positions - 1)
    targets = labels.index_select(0, positions)
    if count <= chunk:
        logprobs, argmax = _score(chosen, targets, head)
        return TokenScores(logprobs=logprobs, argmax=argmax)
    parts = []
    for rows, wanted in zip(chosen.split(chunk), targets.split(chunk), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(_score, rows, wanted, head, use_reentrant=False))
        else:
            parts.append(_score(rows, wanted, head))
    return TokenScores(
        logprobs=torch.cat([logprobs for logprobs, _ in parts]), argmax=torch.cat([argmax for _, argmax in parts])
    )


def _score(rows: torch.Tensor, targets: torch.Tensor, head: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    logits = head(rows).float()
    return -F.cross_entropy(logits, targets, reduction="none"), logits.detach().argmax(dim=-1)
