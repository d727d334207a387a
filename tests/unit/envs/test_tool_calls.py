"""The last tool call of a text: what is read, what is refused with a sentence, and that no text is too much."""

from __future__ import annotations

import json
import time

import pytest

from rlinf_vlm.envs.tool_calls import CLOSE, MAX_CALL, OPEN, BadCall, ToolCall, last_call


def wrapped(content: str) -> str:
    return f"{OPEN}{content}{CLOSE}"


def called(answer: object, name: str = "calc_score") -> str:
    return wrapped(json.dumps({"name": name, "arguments": {"answer": answer}}))


@pytest.mark.parametrize(
    "text",
    [
        called("12"),
        f"<think>{{no}} call</think> so {called('12')} Answer: \\boxed{{13}}",
        called("11") + called("12"),
        f"{OPEN}{{bad{CLOSE} {called('12')}",
        f"{OPEN} never closed {called('12')}",
        wrapped('\n\n {"name": "calc_score", "arguments": {"answer": "12"}} \n'),
        wrapped('{"function": {"name": "calc_score", "arguments": {"answer": "12"}}}'),
        wrapped('{"type": "function", "function": {"name": "calc_score", "arguments": "{\\"answer\\": \\"12\\"}"}}'),
        wrapped('{"name": " calc_score ", "arguments": "{\\n \\"answer\\": \\"12\\"}"}'),
        wrapped('{"name": "calc_score", "arguments": {"answer": "0", "answer": "12"}}'),
    ],
)
def test_a_call_is_read(text):
    assert last_call(text) == ToolCall(name="calc_score", arguments={"answer": "12"})


@pytest.mark.parametrize(
    "answer",
    [
        "}{",
        "{{{",
        "]",
        '"',
        "\\",
        CLOSE,
        OPEN,
        f"{OPEN}{CLOSE}",
        f"a {OPEN}{{}}{CLOSE} b",
        "日本 😀",
        "\\\\sqrt",
        "\ud800",
    ],
)
def test_what_stands_in_a_text_is_text(answer):
    assert last_call(called(answer)) == ToolCall(name="calc_score", arguments={"answer": answer})
    assert last_call(called("first") + called(answer)) == ToolCall(name="calc_score", arguments={"answer": answer})


@pytest.mark.parametrize(
    "latex", [r"5\sqrt{3}", r"\frac{1}{2}", r"\boxed{\theta}", r"\nu+\rho", r"30^\circ", r"\{1, 2\}", r"a\!b", r"\pi"]
)
@pytest.mark.parametrize("as_text", [False, True])
def test_latex_is_read_with_single_and_with_doubled_backslashes(latex, as_text):
    for written in (latex, latex.replace("\\", "\\\\")):
        arguments = f'{{"answer": "{written}"}}'
        content = f'{{"name": "t", "arguments": {json.dumps(arguments) if as_text else arguments}}}'
        assert last_call(wrapped(content)) == ToolCall(name="t", arguments={"answer": latex})


def test_escapes_of_json_stay_escapes():
    content = '{"name": "t", "arguments": {"a": "x\\n2 \\u0041 \\"q\\" \\/ \\t1", "b": "line\nbreak"}}'
    assert last_call(wrapped(content)) == ToolCall(name="t", arguments={"a": 'x\n2 A "q" / \t1', "b": "line\nbreak"})


@pytest.mark.parametrize("arguments", ["", ', "arguments": null', ', "arguments": {}', ', "arguments": " "'])
def test_arguments_may_be_none(arguments):
    assert last_call(wrapped(f'{{"name": "t"{arguments}}}')) == ToolCall(name="t", arguments={})


@pytest.mark.parametrize(
    "text", ["", "Answer: \\boxed{12}", "tool_call", "{}", '{"name": "calc_score"}', "< tool_call >"]
)
def test_a_text_without_a_call_has_none(text):
    assert last_call(text) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (wrapped(""), "not valid JSON"),
        (wrapped('{"name": "t", "arguments": {"answer": 12}'), "not valid JSON"),
        (wrapped("{'name': 't'}"), "not valid JSON"),
        (wrapped('{"name": "t"'), "not valid JSON"),
        (wrapped('{"name": "t", "arguments": {"answer": ' + "9" * 6000 + "}}"), "not valid JSON"),
        (wrapped("[" * 15_000), "not valid JSON"),
        (wrapped('```json\n{"name": "t"}\n```'), "not valid JSON"),
        (wrapped('{"name": "t"} {"name": "u"}'), "one JSON object and nothing else"),
        (wrapped('{"name": "t"}}'), "one JSON object and nothing else"),
        (wrapped('[{"name": "t"}]'), "not a JSON object"),
        (wrapped('"t"'), "not a JSON object"),
        (wrapped("12"), "not a JSON object"),
        (wrapped("null"), "not a JSON object"),
        (wrapped("{}"), 'no "name"'),
        (wrapped('{"name": 3}'), 'no "name"'),
        (wrapped('{"name": " "}'), 'no "name"'),
        (wrapped('{"function": {"arguments": {}}}'), 'no "name"'),
        (wrapped('{"name": "t", "arguments": [12]}'), '"arguments" of the tool call are not a JSON object'),
        (wrapped('{"name": "t", "arguments": 12}'), '"arguments" of the tool call are not a JSON object'),
        (wrapped('{"name": "t", "arguments": "[12]"}'), '"arguments" of the tool call are not a JSON object'),
        (wrapped('{"name": "t", "arguments": "{12"}'), '"arguments" of the tool call are not valid JSON'),
        (f'{OPEN}{{"name": "t", "arguments": {{}}}}', f"does not end with {CLOSE}"),
        (f"{called('12')} then {OPEN}", f"does not end with {CLOSE}"),
        (f'{{"name": "t"}}{CLOSE}', f"does not begin with {OPEN}"),
        (wrapped('{"name": "t", "arguments": {"a": "' + "x" * MAX_CALL + '"}}'), f"longer than {MAX_CALL}"),
    ],
)
def test_what_is_wrong_is_said_without_repeating_it(text, says):
    found = last_call(text)
    assert isinstance(found, BadCall) and says in found.problem
    assert found.problem.endswith(".") and found.problem.count(". ") == 0 and "\n" not in found.problem


def test_the_last_call_counts_even_where_it_is_broken():
    assert isinstance(last_call(called("12") + wrapped("{")), BadCall)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 10_000_000,
        "\\" * 10_000_000,
        OPEN * 900_000,
        CLOSE * 900_000,
        called("12") * 150_000,
        f'{OPEN}{{"a":"' * 600_000,
        OPEN + " " * 10_000_000,
        OPEN + "[" * 10_000_000 + CLOSE,
        wrapped('"' + "\\" * 10_000_000),
    ],
    ids=["letters", "backslashes", "opened", "closed", "calls", "nested", "space", "brackets", "broken"],
)
def test_ten_megabytes_take_no_time(text):
    started = time.process_time()
    last_call(text)
    assert time.process_time() - started < 0.5
