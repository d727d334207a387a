r"""Which expressions are judged at all: what a computer algebra system could evaluate forever is refused beforehand.

``9^{9^{9^9}}`` has more digits than there are atoms, and Python's integers cannot be interrupted while they are
multiplied; so the guard reads the text. Only known commands pass; exponents, factorials, depth and length are bounded.
What passes and still takes long is cut by ``cpu_limit`` where there is a main thread, and by the pool's time limit.
Not here: the memory of a process (``pool_worker``).
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rlinf_vlm.rewards.extraction import matching_braces

MAX_LATEX = 300
"""Characters of an expression that is judged."""
MAX_DIGITS = 60
"""Digits of one number."""
MAX_EXPONENT = 400
"""Largest exponent of a number; 12 for a sum or product with letters, whose power would be expanded."""
MAX_SYMBOLIC_EXPONENT = 12
MAX_DEPTH = 10
"""Braces and brackets inside each other."""

COMMANDS = re.compile(
    r"frac|sqrt|pi|times|cdot|pm|mp|infty|cup|cap|in|le|ge|ne|approx|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|"
    r"theta|alpha|beta|gamma|delta|phi|lambda|mu|sigma|omega|rho|binom|emptyset|circ|overline|text|angle|triangle|"
    r"begin|end|setminus"
)
"""Commands of what is judged; none that sums, integrates or takes limits."""
LETTERS = re.compile(r"(?<!\\)(?<![A-Za-z\\])[A-Za-z]")


class OutOfTime(BaseException):
    """Judging took more CPU time than it may. A BaseException: computer algebra catches every Exception it meets."""


def refusal(latex: str) -> str | None:
    """Why an expression is not judged, None when it is; one line."""
    if len(latex) > MAX_LATEX:
        return f"{len(latex)} characters, more than {MAX_LATEX}"
    unknown = [name for name in re.findall(r"\\([A-Za-z]+)", latex) if COMMANDS.fullmatch(name) is None]
    if unknown:
        return f"the command \\{unknown[0]}"
    longest = max((len(digits) for digits in re.findall(r"\d+", latex.replace(" ", ""))), default=0)
    if longest > MAX_DIGITS:
        return f"a number of {longest} digits, more than {MAX_DIGITS}"
    if _depth(latex) > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH}"
    return _factorial(latex) or _powers(latex)


def _depth(latex: str) -> int:
    depth = deepest = 0
    for character in latex:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    return deepest


def _factorial(latex: str) -> str | None:
    for match in re.finditer(r"!", latex):
        before = re.search(r"(?<![\d.])\d{1,2}\s*$", latex[: match.start()])
        if before is None or int(before.group()) > 50:
            return "a factorial of something else than a number up to 50"
    for above, below in re.findall(r"\\binom\s*\{([^{}]*)\}\s*\{([^{}]*)\}", latex):
        if not (above.strip().isdigit() and below.strip().isdigit() and int(above) <= 200):
            return "a binomial of something else than numbers up to 200"
    return (
        "a binomial" if len(re.findall(r"\\binom\s*\{\s*\d+\s*\}\s*\{\s*\d+", latex)) < latex.count("\\binom") else None
    )


def _powers(latex: str) -> str | None:
    """Why the powers of an expression are too much: towers, large exponents, powers of powers."""
    closes = matching_braces(latex)
    total = symbolic = 1
    for match in re.finditer(r"\^\s*", latex):
        if latex[match.end() : match.end() + 1] == "{":
            close = closes.get(match.end())
            if close is None:
                return "an exponent that does not end"
            exponent, after = latex[match.end() + 1 : close], latex[close + 1 :].lstrip()
        else:
            exponent, after = latex[match.end() : match.end() + 1], latex[match.end() + 1 :].lstrip()
        if after.startswith("^") or (re.search(r"[\^!]|\\binom", exponent) and re.search(r"\d", exponent)):
            return "a tower of exponents"
        size = 1
        for number in re.findall(r"\d+", exponent.replace(" ", "").replace(",", "")):
            size *= max(1, int(number))
        if size > MAX_EXPONENT:
            return f"an exponent above {MAX_EXPONENT}"
        total *= size
        if re.search(r"[)}\]]\s*$", latex[: match.start()]):
            symbolic *= size
    if total > 100_000:
        return "powers of powers"
    if symbolic > MAX_SYMBOLIC_EXPONENT and LETTERS.search(latex):
        return f"a power above {MAX_SYMBOLIC_EXPONENT} of an expression with letters"
    return "exponentials of exponentials" if len(re.findall(r"e\s*\^", latex)) > 2 else None


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raises ``OutOfTime`` in the block once this process has computed for ``seconds``.

    By the timer of CPU time (SIGVTALRM), which neither wall-clock alarms nor pytest's time limits use. Signals reach
    the main thread only: elsewhere, and where someone else uses that timer, the block runs without a limit.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getitimer(signal.ITIMER_VIRTUAL)[0]:
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _out_of_time(signum: int, frame: FrameType | None) -> None:
    raise OutOfTime
