from __future__ import annotations

import math

import pytest
import torch

from rlinf_vlm.algorithms import POLICY_LOSSES
from rlinf_vlm.algorithms.policy_loss import ClipSettings, PolicyTokens, cispo, clipped, gspo
from rlinf_vlm.registry import resolve

CLIP = ClipSettings(low=0.2, high=0.28)


def tokens(ratios, advantages, lengths=None) -> PolicyTokens:
    """Old log-probabilities are -1; the new ones are such that the ratios are ``ratios``."""
    new = torch.tensor([-1.0 + math.log(ratio) for ratio in ratios], requires_grad=True)
    return PolicyTokens(
        logprobs=new,
        old_logprobs=torch.full((len(ratios),), -1.0),
        advantages=torch.tensor(advantages, dtype=torch.float32),
        lengths=torch.tensor(lengths or [len(ratios)]),
    )


def grads(loss, given: PolicyTokens) -> list[float]:
    return torch.autograd.grad(loss.token_losses.sum(), given.logprobs)[0].tolist()


def test_clipped_by_hand():
    # A > 0: -A min(r, 1.28): r = 1.5 -> -2 x 1.28 = -2.56 and no gradient; r = 0.5 -> -1, gradient -A r = -1.
    # A < 0: -A max(r, 0.8): r = 0.5 -> 0.8 and no gradient; r = 1.5 -> 1.5, gradient -A r = 1.5.
    given = tokens([1.5, 0.5, 0.5, 1.5], [2, 2, -1, -1])
    loss = clipped(given, CLIP)
    assert loss.token_losses.tolist() == pytest.approx([-2.56, -1.0, 0.8, 1.5], rel=1e-6)
    assert grads(loss, given) == pytest.approx([0.0, -1.0, 0.0, 1.5], rel=1e-6)
    assert {name: value.item() for name, value in loss.sums.items()} == pytest.approx(
        {"ratio": 4.0, "clipped_low": 1, "clipped_high": 1, "clipped_dual": 0, "kl_old": -math.log(0.5625)}, rel=1e-5
    )


def test_dual_clip_by_hand():
    # A = -1, r = 10: the clipped loss is 10; with c = 3 it is 3 and has no gradient. A > 0 is not touched.
    given = tokens([10.0, 2.0, 10.0], [-1, -1, 1])
    loss = clipped(given, ClipSettings(low=0.2, high=0.2, dual=3.0))
    assert loss.token_losses.tolist() == pytest.approx([3.0, 2.0, -1.2], rel=1e-6)
    assert grads(loss, given) == pytest.approx([0.0, 2.0, 0.0], rel=1e-6)
    assert loss.sums["clipped_dual"].item() == 1


def test_gspo_by_hand():
    # Ratios 4 and 1 in one answer: s = exp((log 4 + 0) / 2) = 2 for both; A = -1: loss 2 each, gradient 2 each.
    # The other answer: ratio 2, A = 1: clipped at 1.28, no gradient.
    given = tokens([4.0, 1.0, 2.0], [-1, -1, 1], [2, 1])
    loss = gspo(given, CLIP)
    assert loss.token_losses.tolist() == pytest.approx([2.0, 2.0, -1.28], rel=1e-6)
    assert grads(loss, given) == pytest.approx([2.0, 2.0, 0.0], rel=1e-6)


def test_gspo_has_the_gradient_of_the_sequence_form():
    # Paper, eq. 5: -s A of a whole answer with s = exp(mean d). d/d logprob_t = -A s / n; the token form divides the
    # sum over tokens by n (seq-mean-token-mean).
    given = tokens([1.05, 0.98, 1.01], [0.7, 0.7, 0.7])
    whole = -0.7 * torch.exp((given.logprobs - given.old_logprobs).mean())
    expected = torch.autograd.grad(whole, given.logprobs)[0]
    torch.testing.assert_close(torch.tensor(grads(gspo(given, CLIP), given)) / 3, expected)


def test_cispo_by_hand():
    # Weight sg(min(r, 1.28)): r = 1.5, A = 2 -> gradient -2 x 1.28 = -2.56, not 0; r = 0.1 stays 0.1 with low = 1.
    given = tokens([1.5, 0.1], [2, -1])
    loss = cispo(given, ClipSettings(low=1.0, high=0.28))
    assert grads(loss, given) == pytest.approx([-2.56, 0.1], rel=1e-6)
    assert (loss.sums["clipped_low"].item(), loss.sums["clipped_high"].item()) == (0, 1)


@pytest.mark.parametrize("name", sorted(POLICY_LOSSES))
def test_on_policy_is_the_policy_gradient(name: str):
    # Ratio 1 with or without old log-probabilities: d loss / d logprob = -A.
    given = tokens([1.0, 1.0, 1.0], [0.5, -2, 0], [2, 1])
    if name == "gspo":  # one advantage an answer
        given = tokens([1.0, 1.0, 1.0], [0.5, 0.5, -2], [2, 1])
    function = resolve("loss", name, POLICY_LOSSES)
    without = PolicyTokens(
        logprobs=given.logprobs, old_logprobs=None, advantages=given.advantages, lengths=given.lengths
    )
    for case in (given, without):
        assert grads(function(case, CLIP), case) == pytest.approx((-given.advantages).tolist())
        assert function(case, CLIP).sums["ratio"].item() == 3


@pytest.mark.parametrize("name", sorted(POLICY_LOSSES))
def test_far_off_tokens_stay_finite_and_none_gives_nothing(name: str):
    function = resolve("loss", name, POLICY_LOSSES)
    far = PolicyTokens(
        logprobs=torch.tensor([0.0, -500.0], requires_grad=True),
        old_logprobs=torch.tensor([-500.0, 0.0]),
        advantages=torch.tensor([-1.0, -1.0]),
        lengths=torch.tensor([1, 1]),
    )
    assert all(
        math.isfinite(value) for value in function(far, CLIP).token_losses.tolist() + grads(function(far, CLIP), far)
    )
    empty = PolicyTokens(
        logprobs=torch.zeros(0, requires_grad=True),
        old_logprobs=None,
        advantages=torch.zeros(0),
        lengths=torch.tensor([0, 0]),
    )
    function(empty, CLIP).token_losses.sum().backward()
    assert empty.logprobs.grad is not None


@pytest.mark.parametrize("name", sorted(POLICY_LOSSES))
def test_packing_changes_nothing(name: str):
    function = resolve("loss", name, POLICY_LOSSES)
    whole = tokens([1.3, 0.7, 1.1, 0.9, 1.5], [1, 1, -1, -1, -1], [2, 3])
    first, second = tokens([1.3, 0.7], [1, 1]), tokens([1.1, 0.9, 1.5], [-1, -1, -1])
    both = [function(part, CLIP) for part in (first, second)]
    torch.testing.assert_close(
        function(whole, CLIP).token_losses, torch.cat([part.token_losses for part in both]), atol=1e-6, rtol=1e-6
    )


def test_settings_and_shapes_are_checked():
    with pytest.raises(ValueError, match=r"dual=1.0"):
        ClipSettings(low=0.2, high=0.2, dual=1.0)
    with pytest.raises(ValueError, match="different numbers of tokens"):
        clipped(tokens([1.0, 1.0], [1.0]), CLIP)
