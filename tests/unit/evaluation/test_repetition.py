from __future__ import annotations

import random
import time

import pytest

from rlinf_vlm.evaluation.repetition import REPEATS_ABOVE, repetition, words_of


def by_hand(text: str, n: int) -> float:
    """The definition, word for word."""
    words = words_of(text)
    sequences = [tuple(words[place : place + n]) for place in range(len(words) - n + 1)]
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


def test_words():
    assert words_of("AB = 12\n") == ["ab", "=", "1", "2"]
    assert words_of("\\frac{x_1}{Ünd}") == ["\\", "frac", "{", "x", "_", "1", "}", "{", "ünd", "}"]
    assert words_of("等等 the") == ["等", "等", "the"]
    assert words_of("a" * 40) == ["a" * 16, "a" * 16, "a" * 8]
    assert words_of(" \n\t") == []


@pytest.mark.parametrize(
    ("text", "n", "share"),
    [
        ("", 4, 0.0),
        ("so it is", 4, 0.0),
        ("so it is five", 4, 0.0),
        ("so it is five now", 4, 0.0),
        ("a b a b a b", 2, 3 / 5),
        ("a a a a a a", 4, 2 / 3),
        ("a A a a", 1, 3 / 4),
        ("one two three four five one two three four", 4, 1 / 6),
    ],
)
def test_by_hand(text, n, share):
    assert repetition(text, n) == pytest.approx(share)


def test_no_sequences_are_confused():
    """Also where there are so many different words that a sequence of them has no number of its own in 64 bits."""
    draw = random.Random(1)
    for vocabulary in (2, 30, 3000, 20000):
        words = ["".join(draw.choices("abcdefghij", k=8)) for _ in range(vocabulary)]
        text = " ".join(draw.choices(words, k=30000 if vocabulary > 100 else 500))
        for n in (1, 2, 4, 7):
            assert repetition(text, n) == by_hand(text, n)
    half = " ".join("".join(draw.choices("abcdefghij", k=8)) for _ in range(60000))
    assert repetition(f"{half} {half}", 4) == by_hand(f"{half} {half}", 4) == pytest.approx(0.5, abs=1e-3)


def test_what_repeats_itself():
    reasoning = (
        "The angle at B is a right angle, so by Pythagoras AC = \\sqrt{3^2 + 4^2} = 5. The perimeter is the sum of all "
        "three sides, which gives 3 + 4 + 5 = 12. Therefore the answer is \\boxed{12}."
    )
    assert repetition(reasoning) < 0.1 < REPEATS_ABOVE
    assert repetition(reasoning + " So x is 5." * 40) > REPEATS_ABOVE
    assert repetition("9" * 500) > 0.9 and repetition("ha" * 500) > 0.9 and repetition("等等" * 500) > 0.9


@pytest.mark.parametrize("n", [0, -1])
def test_sequences_of_nothing(n):
    with pytest.raises(ValueError, match="n is at least 1"):
        repetition("a b", n)


@pytest.mark.parametrize("kind", ["signs", "loop", "words", "no end"])
def test_a_text_of_100_kb_takes_less_than_50_ms(kind):
    draw = random.Random(2)
    text = {
        "signs": "".join(draw.choices("!?#$%&()=+-*/0123456789{}[]<>", k=100_000)),
        "loop": "so the angle is 50 degrees. " * 3600,
        "words": " ".join("".join(draw.choices("abcdefghij", k=5)) for _ in range(17_000)),
        "no end": "a" * 100_000,
    }[kind]
    times = []
    for _ in range(5):
        began = time.process_time()
        repetition(text)
        times.append(time.process_time() - began)
    assert min(times) < 0.05
