r"""Where in a text the answer stands. Pure strings, linear in the text's length.

The answer is what is in the last outermost balanced ``\boxed{}`` (or ``\fbox{}``, ``\boxed 5``). Only a text without
any box falls back: behind the last "answer is" or "answer:", else the text itself if it is one short line, of which, if
it is a sentence, what stands behind its last "is", "equals" or "=".

    "... so \boxed{3}. Wait, \boxed{x = \boxed{5}}" -> "x = 5"       "\boxed{12" -> None (cut off: 12 of 120?)

Invariants: a box that does not close is never read; a box always wins over prose.
Not here: what the answer means (``latex``).
"""

from __future__ import annotations

import re

COMMANDS = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
BARE = re.compile(r"\\?[^\s$\\{},;]+(?:\{[^{}\n]*\}){0,2}")
MARKER = re.compile(
    r"(?:\banswer\b(?:\s*(?:\*\*|__|\}))*\s*(?:(?:is|are)\b\s*:?|[:=])|^####)(?:\s|\*\*|__)*",
    re.IGNORECASE | re.MULTILINE,
)
SAYS = re.compile(r"(?:\b(?:is|are|equals|be|get|obtain|find|have)\b|[=:≈]|\\approx\b)\s*", re.IGNORECASE)
WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}")
MATHS = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
SHORT = 300
"""Characters of a text without a box, or of the text behind a marker, that are read as an answer."""


def extract_answer(prediction: str) -> str | None:
    """The answer's text, None when there is none."""
    boxes, cut_off = find_boxes(prediction)
    if boxes:
        return boxes[-1]
    if cut_off:
        return None
    markers = list(MARKER.finditer(prediction))
    if markers:
        line = prediction[markers[-1].end() : markers[-1].end() + SHORT].strip().split("\n")[0]
        return _sentence(line) or None
    text = prediction.strip()
    if not text or len(text) > SHORT or "\n" in text:
        return None
    return (end_of_sentence(text) or text) if len(WORD.findall(MATHS.sub(" ", text))) > 2 else text


def find_boxes(text: str) -> tuple[list[str], bool]:
    """(contents of the outermost boxes in order, whether there was one that does not close)."""
    closes = matching_braces(text)
    boxes: list[str] = []
    cut_off, end = False, 0
    for match in COMMANDS.finditer(text):
        if match.start() < end:
            continue  # inside another box
        if text[match.end() : match.end() + 1] != "{":
            bare = BARE.match(text, match.end())
            if bare is not None:
                boxes.append(bare.group().rstrip("."))
                end = bare.end()
            continue
        close = closes.get(match.end())
        if close is None:
            cut_off = True
            continue
        boxes.append(text[match.end() + 1 : close].strip())
        end = close
    return boxes, cut_off


def matching_braces(text: str) -> dict[int, int]:
    r"""Where the brace that opens at a place closes; escaped braces (``\{``) are text."""
    closes: dict[int, int] = {}
    opened: list[int] = []
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if match.group() == "{":
            opened.append(match.start())
        elif match.group() == "}" and opened:
            closes[opened.pop()] = match.start()
    return closes


def _sentence(line: str) -> str:
    """Up to the end of the sentence, without emphasis."""
    line = line.replace("**", "").replace("__", "").strip()
    maths = MATHS.match(line)
    if maths is not None:
        return maths.group()
    return re.split(r"(?<=[^\d\s])\.\s|(?<=\d)\.(?:\s|$)", line, maxsplit=1)[0].strip()


def end_of_sentence(text: str) -> str | None:
    """What a sentence says in the end, None when it says nothing: "The side is 5 cm." -> "5 cm"."""
    spans = list(MATHS.finditer(text))
    if spans and not WORD.search(text[spans[-1].end() :]):
        return spans[-1].group()
    said = list(SAYS.finditer(text))
    return text[said[-1].end() :].strip() or None if said else None
