"""What a step of reinforcement learning minimises, put together from ``algorithms`` as the config says.

    rewards of the step -> ``advantages`` [tokens of the step]
    log-probabilities of a micro-batch -> ``loss``: its part of the mini-batch's loss, and sums to log

    token's loss = policy loss x correction weight + kl_beta x KL - entropy_bonus x entropy

Invariants: the parts of all micro-batches and ranks add up to the mini-batch's loss, whatever the division; advantages
are of all answers of the step, wherever they are trained on; tokens left out of the loss have no part in it, and are
in the sums.
Not here: models, ranks, and where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rlinf_vlm import registry
from rlinf_vlm.algorithms import ADVANTAGES, AGGREGATIONS, KL_ESTIMATORS, POLICY_LOSSES
from rlinf_vlm.algorithms.advantages import AdvantageInput
from rlinf_vlm.algorithms.aggregation import aggregate, denominator
from rlinf_vlm.algorithms.kl import kl_rewards
from rlinf_vlm.algorithms.policy_loss import ClipSettings, PolicyTokens
from rlinf_vlm.algorithms.rollout_correction import CorrectionSettings, correct, effective_fraction
from rlinf_vlm.config.rl import AlgorithmConfig
from rlinf_vlm.rollout.records import StepAnswers


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnswerTokens:
    """The N tokens of a micro-batch's S answers, all on one device.

    logprobs, entropy [N]: of this pass, with gradient where it is wanted; old_logprobs [N]: of the weights that the
    step began with, None where that is this pass; reference_logprobs [N]: None without a reference; engine_logprobs,
    advantages, counted [N], lengths [S]: see ``AnswerBatch``.
    """

    logprobs: torch.Tensor
    entropy: torch.Tensor | None
    old_logprobs: torch.Tensor | None
    reference_logprobs: torch.Tensor | None
    engine_logprobs: torch.Tensor
    advantages: torch.Tensor
    counted: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchLoss:
    """loss: this micro-batch's part of its mini-batch's, a scalar with gradient; sums: scalars without gradient, each
    over the N tokens; gap_max: the largest |trainer - engine| of a token."""

    loss: torch.Tensor
    sums: Mapping[str, torch.Tensor]
    gap_max: torch.Tensor


class Objective:
    """The algorithm that ``config`` names. Raises ValueError for a name that nothing has."""

    def __init__(self, config: AlgorithmConfig) -> None:
        self._config = config
        self._advantages = registry.resolve("algorithm.adv_type", config.adv_type, ADVANTAGES)
        self._policy_loss = registry.resolve("algorithm.loss_type", config.loss_type, POLICY_LOSSES)
        self._how = registry.resolve("algorithm.loss_agg_func", config.loss_agg_func, AGGREGATIONS)
        self._kl = registry.resolve("algorithm.kl_penalty_type", config.kl_penalty_type, KL_ESTIMATORS)
        self._clip = ClipSettings(low=config.clip_ratio_low, high=config.clip_ratio_high, dual=config.clip_ratio_c)
        correction = config.rollout_correction
        self._correction = CorrectionSettings(
            level=correction.level, mode=correction.mode, upper=correction.upper, lower=correction.lower
        )

    @property
    def needs_reference(self) -> bool:
        """Whether the divergence from the reference counts."""
        return self._config.kl_beta > 0

    @property
    def punishes_in_reward(self) -> bool:
        """Whether the divergence is taken off the rewards, so that it is needed before the advantages."""
        return self.needs_reference and self._config.kl_in == "reward"

    def advantages(self, answers: StepAnswers, token_rewards: torch.Tensor | None) -> torch.Tensor:
        """The advantage of each token of the step [N] float32, on the CPU; token_rewards [N]: see ``kl_rewards``."""
        return self._advantages(
            AdvantageInput(
                rewards=torch.tensor(answers.rewards, dtype=torch.float64),
                groups=torch.tensor(answers.groups, dtype=torch.int64),
                lengths=torch.tensor(answers.lengths, dtype=torch.int64),
                token_rewards=token_rewards,
            )
        )

    def token_rewards(self, logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
        """What the divergence takes off the reward at each token [N]."""
        return kl_rewards(self._kl, logprobs, reference_logprobs, coefficient=self._config.kl_beta)

    def denominator(self, lengths: torch.Tensor) -> float:
        """What answers of these ``lengths`` [S] add to what their mini-batch's loss is divided by."""
        return denominator(self._how, lengths, horizon=self._config.sampling_params.max_new_tokens)

    def loss(self, tokens: AnswerTokens, step_denominator: float) -> BatchLoss:
        """The micro-batch's part of the loss; step_denominator: of the mini-batch, over all ranks."""
        config = self._config
        policy = self._policy_loss(
            PolicyTokens(
                logprobs=tokens.logprobs,
                old_logprobs=tokens.old_logprobs,
                advantages=tokens.advantages,
                lengths=tokens.lengths,
            ),
            self._clip,
        )
        before = tokens.logprobs.detach() if tokens.old_logprobs is None else tokens.old_logprobs
        correction = correct(before, tokens.engine_logprobs, tokens.lengths, self._correction)
        losses = policy.token_losses
        if config.rollout_correction.enabled:
            losses = losses * correction.weights
        sums = {**policy.sums, **correction.sums, "advantage_abs": tokens.advantages.abs().sum()}
        if tokens.reference_logprobs is not None:
            divergence = self._kl(tokens.logprobs, tokens.reference_logprobs)
            sums["kl_reference"] = divergence.detach().sum()
            if config.kl_in == "loss":
                losses = losses + config.kl_beta * divergence
        if tokens.entropy is not None:
            sums["entropy"] = tokens.entropy.detach().sum()
            if config.entropy_bonus:
                losses = losses - config.entropy_bonus * tokens.entropy
        loss = aggregate(self._how, losses * tokens.counted, tokens.lengths, step_denominator)
        return BatchLoss(loss=loss, sums=sums, gap_max=correction.gap_max)


NAMES = {
    "ratio": "train/ratio",
    "clipped_low": "train/clip_fraction_low",
    "clipped_high": "train/clip_fraction_high",
    "clipped_dual": "train/clip_fraction_dual",
    "kl_old": "train/kl_old",
    "kl_reference": "train/kl_reference",
    "entropy": "train/entropy",
    "advantage_abs": "train/advantage_abs_mean",
    "gap": "rollout/logprob_gap",
    "weight": "rollout/correction_weight",
    "cut": "rollout/correction_cut",
}
"""Names of sums over tokens, as metrics that are means over tokens."""


def token_metrics(sums: Mapping[str, float], num_tokens: float, *, corrected: bool) -> dict[str, float]:
    """Metrics of a step from the sums over its tokens, of all ranks. Those of the correction only where it is used."""
    count = max(1.0, num_tokens)
    found = {metric: sums[name] / count + 0.0 for name, metric in NAMES.items() if name in sums}
    if corrected:
        squares = sums.get("weight_squared", 0.0)
        found["rollout/effective_fraction"] = effective_fraction(sums.get("weight", 0.0), squares, int(num_tokens))
    else:
        found = {name: value for name, value in found.items() if not name.startswith("rollout/correction_")}
    return found
