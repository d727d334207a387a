from __future__ import annotations

import itertools

import pytest
import torch

from rlinf_vlm.algorithms import AGGREGATIONS
from rlinf_vlm.algorithms.aggregation import (
    SEQ_MEAN_TOKEN_MEAN,
    SEQ_MEAN_TOKEN_SUM_NORM,
    TOKEN_MEAN,
    aggregate,
    denominator,
)
from rlinf_vlm.algorithms.sequences import sequence_means, sequence_sums, spread
from rlinf_vlm.registry import resolve

LOSSES, LENGTHS = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([3, 0, 1])


def test_by_hand():
    # Answers of tokens (1, 2, 3), () and (10). Token mean 16 / 4; mean of means (2 + 10) / 2; 16 / (2 answers x 5).
    cases = [
        (TOKEN_MEAN, None, 4.0, 4.0),
        (SEQ_MEAN_TOKEN_MEAN, None, 2.0, 6.0),
        (SEQ_MEAN_TOKEN_SUM_NORM, 5, 10.0, 1.6),
    ]
    for how, horizon, divisor, expected in cases:
        assert denominator(how, LENGTHS, horizon=horizon) == divisor
        assert aggregate(how, LOSSES, LENGTHS, divisor).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", sorted(AGGREGATIONS))
def test_micro_batches_and_ranks_change_nothing(name: str):
    how = resolve("aggregation", name, AGGREGATIONS)
    torch.manual_seed(0)
    lengths = [3, 1, 0, 5, 2, 7]
    logprobs = torch.randn(sum(lengths), dtype=torch.float64, requires_grad=True)
    divisor = denominator(how, torch.tensor(lengths), horizon=9)
    whole = aggregate(how, logprobs.exp(), torch.tensor(lengths), divisor)
    expected = torch.autograd.grad(whole, logprobs)[0]
    for split in ([6], [2, 4], [1, 2, 3], [1] * 6):
        loss, total, start, row = torch.zeros((), dtype=torch.float64), 0.0, 0, 0
        for count in split:
            part = torch.tensor(lengths[row : row + count])
            end = start + int(part.sum())
            loss = loss + aggregate(how, logprobs[start:end].exp(), part, divisor)
            total += denominator(how, part, horizon=9)
            start, row = end, row + count
        assert total == divisor
        torch.testing.assert_close(loss, whole)
        torch.testing.assert_close(torch.autograd.grad(loss, logprobs)[0], expected)


@pytest.mark.parametrize("name", sorted(AGGREGATIONS))
def test_a_step_without_tokens_is_zero(name: str):
    how = resolve("aggregation", name, AGGREGATIONS)
    nothing, lengths = torch.zeros(0, requires_grad=True), torch.tensor([0, 0])
    assert denominator(how, lengths, horizon=4) == 0
    loss = aggregate(how, nothing, lengths, 0.0)
    loss.backward()
    assert loss.item() == 0


def test_a_constant_length_is_asked_for():
    for horizon in (None, 0):
        with pytest.raises(ValueError, match="constant length"):
            denominator(SEQ_MEAN_TOKEN_SUM_NORM, LENGTHS, horizon=horizon)


def test_sums_means_and_back():
    assert sequence_sums(LOSSES, LENGTHS).tolist() == [6, 0, 10]
    assert sequence_means(LOSSES, LENGTHS).tolist() == [2, 0, 10]
    assert spread(torch.tensor([5, 6, 7]), LENGTHS, 4).tolist() == [5, 5, 5, 7]
    assert sequence_sums(torch.zeros(0), torch.tensor([0, 0])).tolist() == [0, 0]


def test_sums_have_a_gradient():
    values = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sequence_sums(x, LENGTHS), values)
    assert torch.autograd.gradcheck(lambda x: sequence_means(x, LENGTHS), values)


def test_padded_tokens_are_refused():
    for shapes in itertools.permutations([(2, 2), (4,)]):
        with pytest.raises(ValueError, match="packed"):
            sequence_sums(torch.zeros(shapes[0]), torch.ones(shapes[1], dtype=torch.int64))
