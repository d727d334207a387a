"""How much of an answer was said before in it: the sign of a policy that runs in circles up to the limit of tokens.

The repetition share is seq-rep-4 of Welleck et al., "Neural Text Generation with Unlikelihood Training"
(arXiv:1908.04319): 1 - distinct / all of the text's sequences of 4 words. It is 0 where each of them is new and comes
near 1 where a text goes round. An answer *repeats itself* where the share is above 1/2: most of what it says was said.

A word is a run of letters, cut after 16 so that a run without end is several; each other character that is no white
space, digits among them, is a word of its own, and so is each character of the scripts without spaces. Case does not
count. Words and not the model's tokens, so that a recorded text is enough and models can be compared. Pure.
"""

from __future__ import annotations

import re

import numpy as np

N = 4
"""Words of a sequence."""
REPEATS_ABOVE = 0.5
"""An answer with a larger repetition share repeats itself."""
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[^\W\d_{_UNSPACED}]{{1,16}}|\S")
_LARGEST = 2**63


def words_of(text: str) -> list[str]:
    """The words of ``text``, see above. Example: ``words_of("AB = 12\\n") == ["ab", "=", "1", "2"]``."""
    return _WORD.findall(text.lower())


def repetition(text: str, n: int = N) -> float:
    """The share of the sequences of ``n`` words in ``text`` that are not new, in [0, 1).

    Degenerate: a text of at most ``n`` words has one sequence or none, and 0. Raises ValueError for n below 1.
    Example: ``repetition("a b a b a b", n=2) == 0.6``; of ab ba ab ba ab two are new.
    """
    if n < 1:
        raise ValueError(f"sequences of {n} words say nothing; n is at least 1")
    words = words_of(text)
    total = len(words) - n + 1
    return 1 - _distinct(words, n, total) / total if total > 1 else 0.0


def _distinct(words: list[str], n: int, total: int) -> int:
    """How many of the ``total`` sequences differ. A sequence is one number with a digit a word: none are confused."""
    numbers: dict[str, int] = {}
    for word in words:
        numbers.setdefault(word, len(numbers))
    digits = np.fromiter(map(numbers.__getitem__, words), dtype=np.int64, count=len(words))
    base = len(numbers)
    codes, bound = digits[:total], base
    for place in range(1, n):
        if bound * base >= _LARGEST:  # their ranks tell them apart as well, and are small
            kept, codes = np.unique(codes, return_inverse=True)
            bound = len(kept)
        codes, bound = codes * base + digits[place : place + total], bound * base
    codes = np.sort(codes)
    return 1 + int(np.count_nonzero(codes[1:] != codes[:-1]))
