"""pass@k: how likely at least one of k sampled answers is right, from more answers than k."""

from __future__ import annotations


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate from ``samples`` answers to one question, ``correct`` of them right; in [0, 1].

    1 - C(samples - correct, k) / C(samples, k): the share of the subsets of k answers that have a right one. Chen et
    al., "Evaluating Large Language Models Trained on Code" (arXiv:2107.03374), in their stable form, a product.
    Degenerate: with fewer than k wrong answers exactly 1, with none right exactly 0. Raises ValueError for k above
    ``samples``, of which no subset has so many, for k below 1 and for an impossible ``correct``.
    Example: ``pass_at_k(4, 1, 2) == 0.5``; of 6 pairs, 3 have the right one.
    """
    if not 1 <= k <= samples:
        raise ValueError(
            f"pass@{k} needs at least {max(k, 1)} samples and k of at least 1; there are {samples} samples"
        )
    if not 0 <= correct <= samples:
        raise ValueError(f"{correct} of {samples} samples cannot be correct")
    wrong = samples - correct
    if wrong < k:
        return 1.0
    missed = 1.0
    for count in range(wrong + 1, samples + 1):
        missed *= 1.0 - k / count
    return 1.0 - missed


def powers_of_two(samples: int) -> list[int]:
    """1, 2, 4, .. up to ``samples``: the k that are reported. Empty for no samples."""
    return [1 << power for power in range(samples.bit_length())]
