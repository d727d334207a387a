r"""The reward for a mathematical answer: 1 when it equals the gold answer, else 0.

    grade("The area is \boxed{\dfrac{25\pi}{2}\text{ cm}^2}.", "12.5\pi") -> 1.0

Dataflow: prediction -> ``extraction`` -> ``latex.read_answer`` of both -> ``equality`` (math-verify, gold first).
Invariants: binary; a prediction never raises, however it is written or how long it is; what cannot be judged scores 0
with a status that says so.
Not here: the process pool with its time limit (``pool``): a run scores through it, and there no judgement can hang.
"""

from __future__ import annotations

import re

from rlinf_vlm.rewards.equality import is_same
from rlinf_vlm.rewards.expressions import GoldRefused, Refused
from rlinf_vlm.rewards.extraction import end_of_sentence, extract_answer, find_boxes
from rlinf_vlm.rewards.latex import read_answer
from rlinf_vlm.rewards.limits import OutOfTime, cpu_limit
from rlinf_vlm.rewards.protocol import ERROR, REFUSED, TIMEOUT, RewardInput, Score, failed

CPU_SECONDS = 3.0
"""CPU time that one judgement may take in a main thread."""


def grade(prediction: str, answer: str) -> float:
    """1.0 when the prediction's answer equals the gold answer, else 0.0; also for what cannot be judged.

    prediction: all that was written, or a bare answer; answer: the gold answer, bare, in dollars or boxed.
    """
    return judge(prediction, answer).value


def judge(prediction: str, answer: str, *, tolerance: float = 0.0) -> Score:
    """As ``grade``, with status and the text that was graded; tolerance: relative, for numbers."""
    given = extract_answer(prediction)
    if not given:
        return Score(value=0.0, detail="no answer found")
    boxes, _ = find_boxes(answer)
    gold = boxes[-1] if boxes else answer.strip()
    detail = given if len(given) <= 200 else f"{given[:200]}..."
    if given == gold:
        return Score(value=float(bool(gold)), detail=detail)
    try:
        with cpu_limit(CPU_SECONDS):
            right = _is_right(gold, given, tolerance)
    except Refused as reason:
        return failed(REFUSED, f"{reason}: {detail}")
    except GoldRefused as reason:
        return failed(ERROR, f"the gold answer {gold[:200]!r} cannot be compared with: {reason}")
    except OutOfTime:
        return failed(TIMEOUT, f"{CPU_SECONDS} s: {detail}")
    return Score(value=float(right), detail=detail)


def _is_right(gold: str, given: str, tolerance: float) -> bool:
    wanted, found = read_answer(gold), read_answer(given)
    if found.is_text and not wanted.is_text:
        found = read_answer(end_of_sentence(re.sub(r"\\text\{([^{}]*)\}", r"\1", given)) or given)
    return is_same(wanted, found, tolerance=tolerance)


class MathReward:
    """The reward ``math``: no options."""

    def __call__(self, item: RewardInput) -> Score:
        """1 or 0."""
        return judge(item.prediction, item.answer)
