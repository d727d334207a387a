"""The arithmetic of a step in plain Python, written out from the papers; what the trainer has is compared with it.

    StepRecord -> ``Hand`` (every number of the step) -> ``checks`` (by hand, by the trainer)

Only floats, lists and ``math``: nothing of ``rlinf_vlm.algorithms`` is called, so that an error there shows.
Not here: the model. Its log-probabilities and the gradient are taken as recorded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from toolkits.walkthrough.record import Settings, StepRecord, Update

EPSILON = 1e-6
"""Added to the standard deviation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandToken:
    """A token in an update. ratio: new over old policy; weight: trainer over engine, cut off; bounded: whether the
    bound took the token's gradient; loss: weight x the clipped surrogate."""

    new: float
    ratio: float
    weight: float
    bounded: bool
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HandUpdate:
    """tokens [of the update]; loss: their sum over their number; clip: what gradients are multiplied by; moment1,
    moment2, weight_after: of the one weight, by AdamW."""

    tokens: tuple[HandToken, ...]
    loss: float
    clip: float
    moment1: float
    moment2: float
    weight_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hand:
    """divergence, kl_rewards, returns, advantages: a list of each answer's tokens; mean, deviation: of all returns."""

    divergence: tuple[tuple[float, ...], ...]
    kl_rewards: tuple[tuple[float, ...], ...]
    returns: tuple[tuple[float, ...], ...]
    advantages: tuple[tuple[float, ...], ...]
    mean: float
    deviation: float
    updates: tuple[HandUpdate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A number twice: by hand, and by the trainer, which computes in float32."""

    name: str
    by_hand: float
    trainer: float

    @property
    def agrees(self) -> bool:
        """Whether they are the same but for rounding."""
        return math.isclose(self.by_hand, self.trainer, rel_tol=2e-5, abs_tol=2e-6)


def by_hand(record: StepRecord) -> Hand:
    """All numbers of the step."""
    settings, answers = record.settings, record.answers
    estimator = settings.kl_penalty_type
    divergence = tuple(
        tuple(kl(estimator, ours - theirs) for ours, theirs in zip(item.old, item.reference, strict=True))
        if item.reference
        else ()
        for item in answers
    )
    rewards = tuple(tuple(-settings.kl_beta * value for value in values) for values in divergence)
    returns = tuple(
        returns_to_go(item.reward, values or (0.0,) * len(item.pieces))
        for item, values in zip(answers, rewards, strict=True)
    )
    mean, deviation, whitened = whiten([value for values in returns for value in values])
    ends = list(accumulate((len(item.pieces) for item in answers), initial=0))
    advantages = tuple(tuple(whitened[ends[place] : ends[place + 1]]) for place in range(len(answers)))
    return Hand(
        divergence=divergence,
        kl_rewards=rewards,
        returns=returns,
        advantages=advantages,
        mean=mean,
        deviation=deviation,
        updates=tuple(_update(record, update, advantages) for update in record.updates),
    )


def kl(estimator: str, difference: float) -> float:
    """k1, k2 or k3 of d = log p_policy - log p_reference."""
    if estimator == "k1":
        return difference
    return difference**2 / 2 if estimator == "k2" else math.exp(-difference) - 1 + difference


def returns_to_go(reward: float, token_rewards: Sequence[float]) -> tuple[float, ...]:
    """G_t = reward + the rewards of token t and of those after it."""
    return tuple(reward + math.fsum(token_rewards[place:]) for place in range(len(token_rewards)))


def whiten(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """(mean, standard deviation with n - 1, (value - mean) / (deviation + 1e-6)); zeros where all values are equal."""
    mean = math.fsum(values) / len(values)
    if min(values) == max(values):
        return mean, 0.0, [0.0] * len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, deviation, [(value - mean) / (deviation + EPSILON) for value in values]


def clipped_loss(ratio: float, advantage: float, low: float, high: float) -> tuple[float, bool]:
    """(max(-A r, -A clip(r, 1 - low, 1 + high)), whether the bound is what counts)."""
    bounded = min(max(ratio, 1 - low), 1 + high)
    return max(-advantage * ratio, -advantage * bounded), -advantage * bounded > -advantage * ratio


def adamw(update: Update, settings: Settings) -> tuple[float, float, float]:
    """(first moment, second moment, weight) after the update, Loshchilov and Hutter, arXiv:1711.05101."""
    first = settings.adam_beta1 * update.moment1 + (1 - settings.adam_beta1) * update.gradient
    second = settings.adam_beta2 * update.moment2 + (1 - settings.adam_beta2) * update.gradient**2
    count = update.updates_before + 1
    mean = first / (1 - settings.adam_beta1**count)
    root = math.sqrt(second / (1 - settings.adam_beta2**count))
    decayed = update.weight * (1 - settings.lr * settings.weight_decay)
    return first, second, decayed - settings.lr * mean / (root + settings.adam_eps)


def checks(record: StepRecord, hand: Hand) -> list[Check]:
    """What the trainer computed too."""
    found = []
    for place, (answer, advantages, rewards) in enumerate(
        zip(record.answers, hand.advantages, hand.kl_rewards, strict=True), start=1
    ):
        for number, (ours, theirs) in enumerate(zip(advantages, answer.advantages, strict=True), start=1):
            found.append(Check(name=f"advantage of answer {place}, token {number}", by_hand=ours, trainer=theirs))
        for number, (ours, theirs) in enumerate(zip(rewards, answer.kl_rewards, strict=True), start=1):
            found.append(Check(name=f"KL reward of answer {place}, token {number}", by_hand=ours, trainer=theirs))
    for number, (own, update) in enumerate(zip(hand.updates, record.updates, strict=True), start=1):
        found.append(Check(name=f"loss of update {number}", by_hand=own.loss, trainer=update.loss))
        found.append(
            Check(name=f"the weight after update {number}", by_hand=own.weight_after, trainer=update.weight_after)
        )
    return [*found, *_metrics(record, hand)]


def _update(record: StepRecord, update: Update, advantages: Sequence[Sequence[float]]) -> HandUpdate:
    settings = record.settings
    own = record.answers[update.first : update.first + update.answers]
    places = range(update.first, update.first + update.answers)
    engine = [value for answer in own for value in answer.engine]
    old = [value for answer in own for value in answer.old]
    tokens = []
    for new, before, sampled, advantage in zip(
        update.new, old, engine, [value for place in places for value in advantages[place]], strict=True
    ):
        ratio = math.exp(new - before)
        surrogate, bounded = clipped_loss(ratio, advantage, settings.clip_ratio_low, settings.clip_ratio_high)
        weight = 1.0 if settings.upper is None else min(math.exp(before - sampled), settings.upper)
        tokens.append(HandToken(new=new, ratio=ratio, weight=weight, bounded=bounded, loss=surrogate * weight))
    first, second, after = adamw(update, settings)
    limit = settings.clip_grad
    return HandUpdate(
        tokens=tuple(tokens),
        loss=math.fsum(token.loss for token in tokens) / len(tokens),
        clip=1.0 if limit is None else min(1.0, limit / (update.grad_norm + EPSILON)),
        moment1=first,
        moment2=second,
        weight_after=after,
    )


def _metrics(record: StepRecord, hand: Hand) -> list[Check]:
    """The step's metrics that are means over its tokens or updates."""
    tokens = [token for update in hand.updates for token in update.tokens]
    gaps = [
        abs(before - sampled)
        for answer in record.answers
        for before, sampled in zip(answer.old, answer.engine, strict=True)
    ]
    own = {
        "train/loss": math.fsum(update.loss for update in hand.updates) / len(hand.updates),
        "train/grad_norm": math.fsum(update.grad_norm for update in record.updates) / len(record.updates),
        "train/answer_tokens": float(len(tokens)),
        "train/ratio": _mean([token.ratio for token in tokens]),
        "train/advantage_abs_mean": _mean([abs(value) for values in hand.advantages for value in values]),
        "rollout/correction_weight": _mean([token.weight for token in tokens]),
        "rollout/logprob_gap": _mean(gaps),
    }
    bounded = sum(token.bounded for token in tokens) / len(tokens)
    trained = record.metrics["train/clip_fraction_low"] + record.metrics["train/clip_fraction_high"]
    found = [
        Check(name=name, by_hand=value, trainer=record.metrics[name])
        for name, value in own.items()
        if name in record.metrics
    ]
    return [*found, Check(name="train/clip_fraction_low + _high", by_hand=bounded, trainer=trained)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
