"""Chunks of labels: the same scores and gradients, however many labels there are to a chunk."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlinf_vlm.models.token_scores import score_labels
from rlinf_vlm.types import IGNORE_INDEX

CHUNK = 4


def scored(count: int, chunk: int | None) -> tuple[torch.Tensor, ...]:
    """Scores of ``count`` labels among 30 places, and the gradients of hidden states and head."""
    torch.manual_seed(0)
    head, hidden = nn.Linear(8, 11, bias=False), torch.randn(30, 8, requires_grad=True)
    labels = torch.full((30,), IGNORE_INDEX)
    labels[1 + torch.randperm(29)[:count]] = torch.randint(0, 11, (count,))
    scores = score_labels(hidden, labels, count, head, chunk=chunk)
    (scores.logprobs * torch.linspace(1, 2, count)).sum().backward()
    assert hidden.grad is not None and head.weight.grad is not None
    return scores.logprobs.detach(), scores.argmax, hidden.grad, head.weight.grad


@pytest.mark.parametrize("count", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1])
def test_chunks_give_what_all_logits_give(count):
    for found, wanted in zip(scored(count, CHUNK), scored(count, None), strict=True):
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
