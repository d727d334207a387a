r"""The last tool call in what a policy said.

    Let me check. <tool_call>{"name": "calc_score", "arguments": {"answer": "12"}}</tool_call>
    -> ToolCall(name="calc_score", arguments={"answer": "12"})

Dataflow: text -> the last ``<tool_call>`` -> one JSON object -> ``ToolCall``, or ``BadCall`` with a sentence for the
policy, or None where no call was tried. Also read: ``{"function": {"name", "arguments"}}``, arguments written as a JSON
text, and LaTeX whose backslashes are not doubled (``"5\sqrt{3}"``, ``"\frac{1}{2}"``), which is what policies write.
Invariants: no text raises; time is linear in the text's length; earlier calls do not count, whatever becomes of the
last; tags inside of JSON texts are text; what a ``BadCall`` says repeats nothing of the text.
Not here: which tools there are, and what they take.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_CALL = 20_000
"""Characters of a call that is read."""
SPACE = re.compile(r"\s*")
BACKSLASH = re.compile(r'\\(?:["\\/]|u[0-9a-fA-F]{4}|[bfnrt](?![A-Za-z]))|\\')
"""An escape of JSON, or a backslash that is none: ``\b`` before a letter begins a word, such as ``\beta``."""
DECODER = json.JSONDecoder(strict=False)
"""Takes line breaks inside of texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """name: of the tool, not empty; arguments: by name, any JSON values."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BadCall:
    """A call that cannot be read. problem: one sentence that tells the policy what is wrong."""

    problem: str


class _NotACall(ValueError):
    """What is wrong, one sentence."""


def last_call(text: str) -> ToolCall | BadCall | None:
    """The last call in ``text``: read, or what is wrong with it; None where there is none."""
    start = text.rfind(OPEN)
    if start < 0:
        return BadCall(problem=f"The tool call does not begin with {OPEN}.") if CLOSE in text else None
    # Its tag may stand in a text of the call before, such as {"answer": "<tool_call>"}.
    before = text.rfind(OPEN, max(0, start - MAX_CALL), start)
    if before >= 0:
        try:
            value, holds_tag = _object(text, before)
            if holds_tag:
                return _read(value)
        except _NotACall:
            pass
    try:
        return _read(_object(text, start)[0])
    except _NotACall as reason:
        return BadCall(problem=str(reason))


def _object(text: str, start: int) -> tuple[Any, bool]:
    """The JSON value of the call whose tag begins at ``start``, and whether it holds such a tag. Raises _NotACall."""
    begin = start + len(OPEN)
    window = text[begin : begin + MAX_CALL]
    if CLOSE not in window:
        if text.find(CLOSE, begin) >= 0:
            raise _NotACall(f"The tool call is longer than {MAX_CALL} characters.")
        raise _NotACall(f"The tool call does not end with {CLOSE}.")
    written = BACKSLASH.sub(_doubled, window)
    first = _skip_space(written, 0)
    try:
        value, end = DECODER.raw_decode(written, first)
    except (ValueError, RecursionError) as error:
        raise _NotACall("The tool call is not valid JSON.") from error
    if not written.startswith(CLOSE, _skip_space(written, end)):
        raise _NotACall(f"The tool call has to be one JSON object and nothing else between {OPEN} and {CLOSE}.")
    return value, OPEN in written[first:end]


def _doubled(match: re.Match[str]) -> str:
    return "\\\\" if match.group() == "\\" else match.group()


def _skip_space(text: str, place: int) -> int:
    match = SPACE.match(text, place)
    assert match is not None, "the pattern matches the empty text"
    return match.end()


def _read(value: Any) -> ToolCall | BadCall:
    """The call that a JSON value is."""
    if not isinstance(value, dict):
        return BadCall(problem="The tool call is not a JSON object.")
    call = value.get("function")
    if not isinstance(call, dict):
        call = value
    name = call.get("name")
    if not isinstance(name, str) or not name.strip():
        return BadCall(problem='The tool call has no "name".')
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = DECODER.decode(BACKSLASH.sub(_doubled, arguments)) if arguments.strip() else None
        except (ValueError, RecursionError):
            return BadCall(problem='The "arguments" of the tool call are not valid JSON.')
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return BadCall(problem='The "arguments" of the tool call are not a JSON object.')
    return ToolCall(name=name.strip(), arguments=arguments)
