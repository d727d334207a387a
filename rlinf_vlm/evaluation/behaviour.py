"""What answers are like beside right or wrong: how often they reflect, and how much they repeat themselves.

    Said (text, right or not) of any set of answers --behaviour--> metrics without a prefix
    ReflectionCounts --word_metrics--> reflection/WORD

Works on texts alone, so that what a run logs can be computed from its files again. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rlinf_vlm.evaluation.reflection import RATIOS, ReflectionCounts, ReflectionWords
from rlinf_vlm.evaluation.repetition import REPEATS_ABOVE, repetition

Said = tuple[str, bool]
"""The text of an answer, and whether it is right."""

BEHAVIOUR = ("repetition", "repeating", *RATIOS)
"""Names of the metrics of ``behaviour``."""


def behaviour(answers: Sequence[Said], words: Sequence[str]) -> tuple[dict[str, float], ReflectionCounts]:
    """Metrics of ``answers``, and the counts that the ratios among them come from.

    repetition: mean of the answers' repetition shares; repeating: share of the answers that repeat themselves; and the
    five ratios of ``reflection`` for ``words``, none of them for no words. No answers: nothing.
    """
    counts = ReflectionWords(words).count(answers)
    if not answers:
        return {}, counts
    shares = [repetition(text) for text, _ in answers]
    return {
        "repetition": fmean(shares),
        "repeating": fmean(share > REPEATS_ABOVE for share in shares),
        **(counts.ratios() if words else {}),
    }, counts


def word_metrics(counts: ReflectionCounts) -> dict[str, float]:
    """reflection/WORD (how often the word stands in the answers) and reflection_answers/WORD (answers that hold it),
    with ``_`` for a space of the word."""
    return {
        **{f"reflection/{word.replace(' ', '_')}": count for word, count in counts.occurrences.items()},
        **{f"reflection_answers/{word.replace(' ', '_')}": count for word, count in counts.holding.items()},
    }
