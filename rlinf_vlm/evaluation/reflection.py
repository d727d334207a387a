r"""How often answers go back to what they said, and whether that helps: MAYE's words and five ratios.

    texts and whether each is right --count--> ReflectionCounts --ratios--> metrics

Ma et al., "Rethinking RL Scaling for Vision Language Models" (arXiv:2504.02587), with three differences. Words are
matched as whole words, so that "yeti" holds no "yet". Counts of shards, ranks or steps are added up first and divided
then: a mean of ratios would weigh a shard with one such answer like one with a hundred. A ratio whose denominator is 0
is left out, where MAYE has 0: nothing is known then, and a 0 would look like a measurement.

A word is whole where neither a letter, a digit nor an underscore touches it. A hyphen is such a boundary ("self-verify"
holds "verify"), any white space stands for the space of a phrase, and the hyphen of a word is met as any of Unicode's
(``re‑check``). Each word is looked for by itself: "re-check again" holds "re-check" and "check again". Pure.
"""  # noqa: RUF002 (the hyphen above is meant)

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rlinf_vlm.config.rl import REFLECTION_WORDS

HYPHENS = "[-\u2010\u2011]"
"""Hyphen-minus, hyphen, non-breaking hyphen."""
RATIOS = (
    "reflection_ratio",
    "reflection_ratio_in_correct_answers",
    "reflection_ratio_in_incorrect_answers",
    "correct_ratio_in_reflection_texts",
    "correct_ratio_in_no_reflection_texts",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReflectionCounts:
    """What is counted in answers; counts of parts of them add up to those of the whole (``+``, ``sum_counts``).

    answers: how many; correct: of them right; reflecting: with at least one of the words; reflecting_correct: both;
    occurrences: word -> how often it stands in all answers; holding: word -> answers in which it stands.
    """

    answers: int = 0
    correct: int = 0
    reflecting: int = 0
    reflecting_correct: int = 0
    occurrences: Mapping[str, int] = field(default_factory=dict)
    holding: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: ReflectionCounts) -> ReflectionCounts:
        """The counts of both together."""
        return ReflectionCounts(
            answers=self.answers + other.answers,
            correct=self.correct + other.correct,
            reflecting=self.reflecting + other.reflecting,
            reflecting_correct=self.reflecting_correct + other.reflecting_correct,
            occurrences=_added(self.occurrences, other.occurrences),
            holding=_added(self.holding, other.holding),
        )

    def ratios(self) -> dict[str, float]:
        """Those of ``RATIOS`` whose denominator is not 0, each in [0, 1].

        N answers, R reflecting, C correct, B both: R / N, B / C, (R - B) / (N - C), B / R, (C - B) / (N - R).
        """
        reflecting, both = self.reflecting, self.reflecting_correct
        fractions = (
            (reflecting, self.answers),
            (both, self.correct),
            (reflecting - both, self.answers - self.correct),
            (both, reflecting),
            (self.correct - both, self.answers - reflecting),
        )
        return {name: part / whole for name, (part, whole) in zip(RATIOS, fractions, strict=True) if whole}


class ReflectionWords:
    """A list of words, made ready to be looked for."""

    def __init__(self, words: Sequence[str] = REFLECTION_WORDS) -> None:
        """words: lower case, distinct, as ``algorithm.reflection_words`` has them; white space counts as one space."""
        self.words = tuple(" ".join(word.lower().split()) for word in words)
        if not all(self.words) or len(set(self.words)) != len(self.words):
            raise ValueError(f"empty or repeated words: {', '.join(self.words)}")
        # A plain search for a word's longest piece is much faster, and rules nearly all texts out.
        self._patterns = {word: (max(re.split(r"[ -]", word), key=len), _pattern(word)) for word in self.words}

    def occurrences(self, text: str) -> dict[str, int]:
        """Word -> how often it stands in ``text``, each word of the list."""
        lowered = text.lower()
        return {
            word: len(pattern.findall(lowered)) if piece in lowered else 0
            for word, (piece, pattern) in self._patterns.items()
        }

    def count(self, answers: Iterable[tuple[str, bool]]) -> ReflectionCounts:
        """Counts over ``answers``: the text of each, and whether it is right."""
        number = correct = reflecting = both = 0
        occurrences, holding = dict.fromkeys(self.words, 0), dict.fromkeys(self.words, 0)
        for text, is_right in answers:
            found = self.occurrences(text)
            reflects = any(found.values())
            number, correct = number + 1, correct + is_right
            reflecting, both = reflecting + reflects, both + (reflects and is_right)
            for word, times in found.items():
                occurrences[word] += times
                holding[word] += times > 0
        return ReflectionCounts(
            answers=number,
            correct=correct,
            reflecting=reflecting,
            reflecting_correct=both,
            occurrences=occurrences,
            holding=holding,
        )


def sum_counts(parts: Iterable[ReflectionCounts]) -> ReflectionCounts:
    """The counts of all ``parts`` together."""
    return sum(parts, ReflectionCounts())


def _pattern(word: str) -> re.Pattern[str]:
    spelled = re.escape(word).replace(r"\-", HYPHENS).replace(r"\ ", r"\s+")
    return re.compile(rf"(?<!\w){spelled}(?!\w)")


def _added(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    return {word: first.get(word, 0) + second.get(word, 0) for word in {**first, **second}}
