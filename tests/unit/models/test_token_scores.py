"""Chunks of labels: the same scores and gradients however many there are to a chunk; distributions as sampled."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from rlinf_vlm.models.token_scores import pick_labels, pick_viewed, score_labels
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


def viewed(chunk: int | None, entropy: str, *, banned: tuple[int, ...] = (3, 7)) -> tuple[torch.Tensor, ...]:
    """Scores of 9 labels at temperature 0.7, and the gradients of hidden states and head through both outputs."""
    torch.manual_seed(0)
    head, hidden = nn.Linear(8, 11, bias=False), torch.randn(30, 8, requires_grad=True)
    labels = torch.full((30,), IGNORE_INDEX)
    labels[1 + torch.randperm(29)[:9]] = torch.tensor([0, 1, 2, 4, 5, 6, 8, 9, 10])
    pick = partial(pick_viewed, temperature=0.7, banned=torch.tensor(banned, dtype=torch.int64), entropy=entropy)
    scores = score_labels(hidden, labels, 9, head, chunk=chunk, pick=pick)
    loss = (scores.logprobs * torch.linspace(1, 2, 9)).sum()
    if entropy == "gradient":
        loss = loss + (scores.entropy * torch.linspace(2, 1, 9)).sum()
    loss.backward()
    places = (labels != IGNORE_INDEX).nonzero().flatten()
    # By hand: the banned columns do not exist.
    kept = [token for token in range(11) if token not in banned]
    other = hidden.detach().clone().requires_grad_()
    logits = (other[places - 1] @ head.weight.detach()[kept].T) / 0.7
    probs = logits.softmax(-1)
    column = torch.tensor([kept.index(token) for token in labels[places].tolist()])
    logprobs = probs.log().gather(1, column[:, None])[:, 0]
    entropies = -(probs * probs.log()).sum(-1)
    by_hand = (logprobs * torch.linspace(1, 2, 9)).sum()
    if entropy == "gradient":
        by_hand = by_hand + (entropies * torch.linspace(2, 1, 9)).sum()
    by_hand.backward()
    torch.testing.assert_close(scores.logprobs, logprobs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(hidden.grad, other.grad, rtol=1e-4, atol=1e-6)
    assert scores.argmax.tolist() == [kept[index] for index in probs.argmax(-1)]
    assert head.weight.grad is not None and not head.weight.grad[list(banned)].any()
    if entropy == "off":
        assert scores.entropy is None
        return ()
    torch.testing.assert_close(scores.entropy, entropies, rtol=1e-5, atol=1e-6)
    return (scores.entropy,)


@pytest.mark.parametrize("chunk", [None, CHUNK, 100])
@pytest.mark.parametrize("entropy", ["off", "value", "gradient"])
def test_a_view_is_the_distribution_without_the_banned_tokens(chunk, entropy):
    viewed(chunk, entropy)
    viewed(chunk, entropy, banned=())


def test_a_value_of_the_entropy_has_no_gradient():
    assert not viewed(CHUNK, "value")[0].requires_grad and viewed(CHUNK, "gradient")[0].requires_grad


def test_a_banned_label_has_no_probability():
    logits, targets = torch.randn(2, 5), torch.tensor([1, 3])
    logprobs, _ = pick_viewed(logits, targets, temperature=1.0, banned=torch.tensor([3]), entropy="off")
    assert logprobs[1] == float("-inf") and logprobs[0].isfinite()


def test_a_view_that_changes_nothing_is_none():
    logits, targets = torch.randn(6, 11), torch.arange(6)
    none = torch.zeros(0, dtype=torch.int64)
    for found, wanted in zip(
        pick_viewed(logits, targets, temperature=1.0, banned=none, entropy="off"),
        pick_labels(logits, targets),
        strict=True,
    ):
        assert torch.equal(found, wanted)
