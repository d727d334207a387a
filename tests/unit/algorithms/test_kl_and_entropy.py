from __future__ import annotations

import math

import pytest
import torch

from rlinf_vlm.algorithms import KL_ESTIMATORS
from rlinf_vlm.algorithms.entropy import entropy
from rlinf_vlm.algorithms.kl import k1, k2, k3, kl_rewards
from rlinf_vlm.registry import resolve


def test_by_hand():
    # p = 1/2 against 1/4: d = log 2 = 0.693147; k2 = 0.240227; k3 = 1/2 - 1 + 0.693147 = 0.193147.
    policy, reference = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert k1(policy, reference).item() == pytest.approx(0.693147, rel=1e-5)
    assert k2(policy, reference).item() == pytest.approx(0.240227, rel=1e-5)
    assert k3(policy, reference).item() == pytest.approx(0.193147, rel=1e-5)
    assert kl_rewards(k1, policy, reference, coefficient=0.1).item() == pytest.approx(-0.0693147, rel=1e-5)


def test_k1_and_k3_have_the_divergence_as_mean():
    # Two tokens, p = (0.8, 0.2), q = (0.5, 0.5): KL = 0.8 log 1.6 + 0.2 log 0.4 = 0.192745, exact by enumeration.
    p, q = torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.5])
    for estimator in (k1, k3):
        assert (p * estimator(p.log(), q.log())).sum().item() == pytest.approx(0.192745, abs=1e-6)


def test_mean_gradients_in_the_loss():
    # Logits (a, 0); sum of p x gradient of the estimate at each token. Of KL(p || q) it is what autograd says.
    logit, q = torch.tensor(0.7, requires_grad=True), torch.tensor([0.5, 0.5])
    logp = torch.log_softmax(torch.stack([logit, torch.zeros(())]), 0)
    p = logp.exp().detach()
    forward = torch.autograd.grad((logp.exp() * (logp - q.log())).sum(), logit, retain_graph=True)[0]
    backward = torch.autograd.grad((q * (q.log() - logp)).sum(), logit, retain_graph=True)[0]
    for estimator, expected in ((k1, torch.tensor(0.0)), (k2, forward), (k3, backward)):
        found = torch.autograd.grad((p * estimator(logp, q.log())).sum(), logit, retain_graph=True)[0]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(KL_ESTIMATORS))
def test_equal_is_zero_and_far_is_finite(name: str):
    estimator = resolve("kl", name, KL_ESTIMATORS)
    same = torch.tensor([-1.5, -0.1])
    assert estimator(same, same).tolist() == [0, 0]
    assert estimator(torch.tensor([-1000.0, 0.0]), torch.tensor([0.0, -1000.0])).isfinite().all()


def test_a_reward_has_no_gradient():
    policy = torch.tensor([-1.0], requires_grad=True)
    assert not kl_rewards(k3, policy, torch.tensor([-2.0]), coefficient=1.0).requires_grad


def test_entropy_by_hand():
    # Uniform over 4: log 4. (1/2, 1/4, 1/4): 1.5 log 2 = 1.039721.
    logits = torch.tensor([[3.0, 3.0, 3.0, 3.0], [math.log(2), 0.0, 0.0, -math.inf]])
    assert entropy(logits).tolist() == pytest.approx([math.log(4), 1.039721], rel=1e-6)


def test_entropy_with_banned_tokens_has_a_gradient():
    logits = torch.tensor([[1.0, 0.0, -math.inf]], requires_grad=True)
    entropy(logits).sum().backward()
    short = torch.tensor([[1.0, 0.0]], requires_grad=True)
    entropy(short).sum().backward()
    assert logits.grad is not None and short.grad is not None
    torch.testing.assert_close(logits.grad[:, :2], short.grad)
    assert logits.grad[0, 2].item() == 0


def test_entropy_in_bf16_and_of_nothing():
    assert entropy(torch.zeros(2, 8, dtype=torch.bfloat16)).tolist() == pytest.approx([math.log(8)] * 2)
    assert entropy(torch.zeros(0, 8)).shape == (0,)
