from __future__ import annotations

import random

import pytest

from rlinf_vlm.config.load import load_config
from rlinf_vlm.config.rl import REFLECTION_WORDS
from rlinf_vlm.evaluation.reflection import RATIOS, ReflectionCounts, ReflectionWords, sum_counts


def held(text: str, words: tuple[str, ...] = REFLECTION_WORDS) -> dict[str, int]:
    """The words that a text holds, and how often."""
    return {word: count for word, count in ReflectionWords(words).occurrences(text).items() if count}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("Yeti, await, waiting, waited, verified, verifying, retry again", {}),
        ("Wait", {"wait": 1}),
        ("Wait, wait... WAIT! (wait)", {"wait": 4}),
        ("not yet\nYET.", {"yet": 2}),
        ("Let me re-check; I recheck.", {"re-check": 1, "recheck": 1}),
        ("re\u2011check it, Re\u2010Think it", {"re-check": 1, "re-think": 1}),
        ("check  \n\t again", {"check again": 1}),
        ("check again check again", {"check again": 2}),
        ("check-again, checkagain, check, again", {}),
        ("recheck again", {"recheck": 1}),
        ("re-check again", {"re-check": 1, "check again": 1}),
        ("self-verify", {"verify": 1}),
        ("reevaluation of what I reevaluate, reevaluations", {"reevaluation": 1, "reevaluate": 1}),
        ("\\text{wait} \\boxed{yet}", {"wait": 1, "yet": 1}),
        ("wait_x x_wait wait2 2wait", {}),
        ("wait\u00e9 \u00e9wait wait\u3002\u7b49 wait", {"wait": 2}),
    ],
)
def test_words_stand_whole(text, expected):
    assert held(text) == expected


def test_each_of_the_fifteen_is_found_where_it_stands_alone():
    assert len(REFLECTION_WORDS) == 15
    for word in REFLECTION_WORDS:
        found = held(f"So, {word.upper()}: x{word} {word}x")
        assert found[word] == 1 and set(found) == {word}


def test_a_list_of_ones_own():
    assert held("Hmm... hmm, c++ and (x)? x", ("hmm", "c++", "(x)")) == {"hmm": 2, "c++": 1, "(x)": 1}
    assert held("aha  moment, AHA moment", ("Aha  Moment",)) == {"aha moment": 2}
    for wrong in (("wait", "Wait"), ("",), ("a b", "a  b")):
        with pytest.raises(ValueError, match="empty or repeated"):
            ReflectionWords(wrong)


SAID = [
    ("wait, wait, it is 5", True),
    ("it is 5", True),
    ("let me verify: 6. Wait, 7", False),
    ("8", False),
    ("9", False),
]


def test_the_five_ratios_by_hand():
    """5 answers, 2 right; 2 reflect, one of them right."""
    counts = ReflectionWords().count(SAID)
    assert (counts.answers, counts.correct, counts.reflecting, counts.reflecting_correct) == (5, 2, 2, 1)
    assert {word: count for word, count in counts.occurrences.items() if count} == {"wait": 3, "verify": 1}
    assert {word: count for word, count in counts.holding.items() if count} == {"wait": 2, "verify": 1}
    assert set(counts.occurrences) == set(counts.holding) == set(REFLECTION_WORDS)
    assert counts.ratios() == {
        "reflection_ratio": 2 / 5,
        "reflection_ratio_in_correct_answers": 1 / 2,
        "reflection_ratio_in_incorrect_answers": 1 / 3,
        "correct_ratio_in_reflection_texts": 1 / 2,
        "correct_ratio_in_no_reflection_texts": 1 / 3,
    }


def test_formulas_with_numbers_that_tell_them_apart():
    counts = ReflectionCounts(answers=896, correct=301, reflecting=27, reflecting_correct=5)
    wanted = [27 / 896, 5 / 301, 22 / 595, 5 / 27, 296 / 869]
    assert counts.ratios() == pytest.approx(dict(zip(RATIOS, wanted, strict=True)))


@pytest.mark.parametrize(
    ("counts", "left"),
    [
        (ReflectionCounts(), set()),
        (ReflectionCounts(answers=3), {RATIOS[0], RATIOS[2], RATIOS[4]}),
        (ReflectionCounts(answers=3, correct=3), {RATIOS[0], RATIOS[1], RATIOS[4]}),
        (ReflectionCounts(answers=3, correct=3, reflecting=3, reflecting_correct=3), {RATIOS[0], RATIOS[1], RATIOS[3]}),
    ],
)
def test_a_ratio_without_denominator_is_left_out(counts, left):
    assert set(counts.ratios()) == left


def test_counts_of_shards_add_up_to_those_of_the_whole():
    draw = random.Random(0)
    pieces = ["wait", "verify", "so 5", "yet", "check again", "the angle"]
    said = [(" ".join(draw.choices(pieces, k=draw.randrange(6))), draw.random() < 0.4) for _ in range(300)]
    words = ReflectionWords()
    whole = words.count(said)
    shards = [words.count(said[start : start + 17]) for start in range(0, 300, 17)]
    assert sum_counts(shards) == sum_counts(reversed(shards)) == whole
    assert whole + ReflectionCounts() == ReflectionCounts() + whole == whole
    # A mean of the shards' ratios is another number: few shards have as many reflecting answers as others.
    name = "correct_ratio_in_reflection_texts"
    ratios = [shard.ratios()[name] for shard in shards if name in shard.ratios()]
    assert abs(sum(ratios) / len(ratios) - whole.ratios()[name]) > 1e-3


def test_the_config_has_the_words():
    def words(value: object) -> tuple[str, ...]:
        tree = {
            "runner": {"task_type": "reasoning"},
            "data": {"train_data_paths": "a"},
            "actor": {"model": {"model_type": "qwen2.5_vl", "model_path": "m"}},
            "algorithm": {} if value is None else {"reflection_words": value},
        }
        return load_config(tree).algorithm.reflection_words

    assert words(None) == REFLECTION_WORDS and words([]) == ()
    assert words(["Wait ", "look   again"]) == ("wait", "look again")
    with pytest.raises(Exception, match="names a word twice"):
        words(["wait", "WAIT"])
    with pytest.raises(Exception, match="has an empty word"):
        words([" "])
