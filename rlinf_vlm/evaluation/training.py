"""What the answers of a training step are like: accuracy, reflection, repetition.

    ScoredRollouts of a step, as they are recorded --training_metrics--> rollout/..., reflection/WORD

Right is what ``answered.is_correct`` says of the reward as it was given; what is added to it for length counts for the
training alone. Pure. Not here: rewards, lengths and outcomes (``rollout.batching``).
"""

from __future__ import annotations

from collections.abc import Sequence

from rlinf_vlm.evaluation.answered import is_correct
from rlinf_vlm.evaluation.behaviour import behaviour, word_metrics
from rlinf_vlm.evaluation.intervals import bootstrap_interval, wilson_interval
from rlinf_vlm.rollout.records import ScoredRollout


def training_metrics(scored: Sequence[ScoredRollout], words: Sequence[str]) -> dict[str, float]:
    """Metrics of all answers of a step, trained on or not. No answers: nothing.

    rollout/accuracy: share that is right (one that could not be judged is not), with _low and _high, its 95 % interval;
    rollout/repetition, rollout/repeating and rollout/<ratio>: see ``behaviour``; reflection/WORD and
    reflection_answers/WORD: see ``word_metrics``.
    """
    if not scored:
        return {}
    found, counts = behaviour([(answer.rollout.text, is_correct(answer)) for answer in scored], words)
    return {
        **_accuracy(scored),
        **{f"rollout/{name}": value for name, value in found.items()},
        **word_metrics(counts),
    }


def _accuracy(scored: Sequence[ScoredRollout]) -> dict[str, float]:
    """Groups are drawn for the interval, and not answers: those to one prompt are alike. Where each prompt has one
    answer, Wilson's interval, which holds near 0 and 1 too."""
    groups: dict[int, list[bool]] = {}
    for answer in scored:
        groups.setdefault(answer.rollout.group, []).append(is_correct(answer))
    right = sum(map(sum, groups.values()))
    if len(groups) == len(scored):
        low, high = wilson_interval(right, len(scored))
    else:
        weight = len(groups) / len(scored)  # 1 over the size of a group, where all are of one size
        low, high = bootstrap_interval([sum(group) * weight for group in groups.values()])
    return {"rollout/accuracy": right / len(scored), "rollout/accuracy_low": low, "rollout/accuracy_high": high}
