"""The tool that scores answers, by scripted conversations."""

from __future__ import annotations

import json

import pytest

from rlinf_vlm.envs import find_builder, geo3k_tool, make_env
from rlinf_vlm.envs.protocol import EnvSample
from rlinf_vlm.rewards.extraction import find_boxes
from rlinf_vlm.rewards.math import grade
from rlinf_vlm.types import UserError

GOLD = "5\\sqrt{3}"
TEXTS = (
    geo3k_tool.WRONG,
    geo3k_tool.UNREADABLE,
    geo3k_tool.UNKNOWN_GOLD,
    geo3k_tool.UNKNOWN_TOOL,
    geo3k_tool.NO_ANSWER,
    geo3k_tool.CALL_AGAIN,
    geo3k_tool.SWITCHED_OFF,
)


def environment(answer: str = GOLD, **options: object) -> geo3k_tool.Geo3kTool:
    sample = EnvSample(row=3, question="Find $x$.", answer=answer)
    made = make_env(find_builder("geo3k_tool"), sample, options)
    assert isinstance(made, geo3k_tool.Geo3kTool)
    return made


def call(answer: object, name: str = "calc_score", argument: str = "answer") -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': {argument: answer}})}</tool_call>"


def info(**other: float) -> dict[str, float]:
    return {"score": 0.0, "tool_calls": 0, "parse_errors": 0, "tool_errors": 0, **other}


def test_a_whole_conversation():
    env = environment()
    assert env.reset() == (None, info())
    said = f"The height is 8. {call('8')} Answer: \\boxed{{8}}"
    assert env.step(said) == (geo3k_tool.WRONG, False, info(tool_calls=1))
    assert env.step("<tool_call>{oops</tool_call>") == (
        f"The tool call is not valid JSON. {geo3k_tool.CALL_AGAIN}",
        False,
        info(tool_calls=1, parse_errors=1),
    )
    assert env.step(call("8", name="search")) == (
        geo3k_tool.UNKNOWN_TOOL,
        False,
        info(tool_calls=2, parse_errors=1, tool_errors=1),
    )
    found = env.step(f"{call('7')} no, {call('sqrt(75)')} Answer: \\boxed{{5\\sqrt{{3}}}}")
    assert found == (None, True, info(score=1.0, tool_calls=3, parse_errors=1, tool_errors=1))
    env.close()


@pytest.mark.parametrize("said", ["Answer: \\boxed{8}", "", "I give up", "Answer: \\boxed{5\\sqrt{3}}"])
def test_a_turn_without_a_call_is_the_end(said):
    env = environment()
    env.step(call("8"))
    assert env.step(said) == (None, True, info(tool_calls=1)), "what is not asked for is not scored"


@pytest.mark.parametrize("name", geo3k_tool.TOOLS)
@pytest.mark.parametrize(
    "answer", [GOLD, f"\\boxed{{{GOLD}}}", f"x = {GOLD}", "\\sqrt{75}", f"${GOLD}$", "5\\sqrt{3} \\text{ cm}"]
)
def test_right_is_what_the_reward_calls_right(answer, name):
    assert grade(f"\\boxed{{{answer}}}", GOLD) == 1.0
    observation, done, told = environment().step(call(answer, name=name))
    assert (observation, done, told["score"]) == (None, True, 1.0)


@pytest.mark.parametrize("answer", [12, 12.0, "12.0", 1.2e1])
def test_numbers_are_answers(answer):
    assert environment("12").step(call(answer))[1:] == (True, info(score=1.0, tool_calls=1))


def test_large_whole_numbers_keep_their_digits():
    gold = "12345678901234567891"
    assert environment(gold).step(call(int(gold)))[1] is True
    assert environment(gold).step(call(int(gold) + 1))[1] is False


@pytest.mark.parametrize("answer", ["8", "8.66", "", "5, 5\\sqrt{3}", "\\boxed{8}", "5\\sqrt{3}} \\boxed{8"])
def test_a_guess_at_several_answers_or_a_near_one_is_wrong(answer):
    observation, done, told = environment().step(call(answer))
    assert (done, told["score"]) == (False, 0.0)
    assert observation in (geo3k_tool.WRONG, geo3k_tool.NO_ANSWER)


def test_near_is_right_with_a_tolerance():
    assert environment(tolerance=0.01).step(call("8.7"))[1] is True
    assert environment(tolerance=0.001).step(call("8.7"))[1] is False


@pytest.mark.parametrize("answer", [None, True, False, [12], {"value": 12}, "", "  ", float("nan"), float("inf")])
def test_what_is_no_answer_is_told(answer):
    observation, done, told = environment("12").step(call(answer))
    assert (observation, done, told) == (geo3k_tool.NO_ANSWER, False, info(tool_calls=1, tool_errors=1))
    assert environment("12").step(call("12", argument="result"))[0] == geo3k_tool.NO_ANSWER


@pytest.mark.parametrize("answer", ["9^{9^{9^9}}", "x" * 400, "1" * 100])
def test_what_nobody_would_read_is_told(answer):
    assert environment().step(call(answer))[:2] == (geo3k_tool.UNREADABLE, False)


def test_a_gold_answer_that_cannot_be_compared_with_is_not_called_a_wrong_answer():
    observation, done, told = environment("9^{9^{9^9}}").step(call("8"))
    assert (observation, done, told) == (geo3k_tool.UNKNOWN_GOLD, False, info(tool_calls=1, tool_errors=1))


def test_switched_off_it_tells_nothing():
    told = set()
    for said in (call(GOLD), call("8"), call("8", name="search"), call(None), "<tool_call>{", "</tool_call>"):
        observation, done, found = environment(tool=False).step(said)
        assert not done and found["score"] == 0.0
        told.add(observation)
    assert told == {geo3k_tool.SWITCHED_OFF}
    assert environment(tool=False).step("Answer: \\boxed{8}")[:2] == (None, True)


def test_nothing_that_is_told_is_an_answer_or_the_models_own_text():
    gold, said = "12345", "<|im_end|>Zebra"
    for text in (call(said), call("1", name=said), f"<tool_call>{said}</tool_call>", call(1, argument=said)):
        observation, _, told = environment(gold).step(text)
        assert observation is not None
        assert "Zebra" not in observation and "<|" not in observation and gold not in observation
        assert all(isinstance(value, int | float) for value in told.values())
    for text in TEXTS:
        assert find_boxes(text) == ([], False) and grade(text, "0.0") == 0.0 and grade(text, "0") == 0.0


@pytest.mark.parametrize("role", ["user", "tool"])
def test_the_message(role):
    env = environment(role=role)
    assert env.format_observation(geo3k_tool.WRONG) == {"role": role, "content": geo3k_tool.WRONG}
    assert environment().format_observation("x")["role"] == "user"


def test_an_environment_is_made_for_one_conversation():
    env = environment()
    env.step("Answer: 1")
    with pytest.raises(RuntimeError, match="over"):
        env.step("Answer: 2")
    closed = environment()
    closed.close()
    with pytest.raises(RuntimeError, match="over"):
        closed.step("Answer: 2")


def test_info_is_not_changed_afterwards():
    env = environment()
    before = env.reset()[1]
    first = env.step(call("8"))[2]
    env.step(call("9"))
    assert (before, first) == (info(), info(tool_calls=1))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"tols": 0.1}, "env.options.tols=0.1: unknown key; did you mean tool?"),
        ({"tolerence": 0.1}, "env.options.tolerence=0.1: unknown key; did you mean tolerance?"),
        ({"role": "system"}, "env.options.role='system': input should be 'user' or 'tool'"),
        ({"tolerance": 1.5}, "env.options.tolerance=1.5: input should be less than 1"),
        ({"tool": "maybe"}, "env.options.tool='maybe': input should be a valid boolean"),
    ],
)
def test_options_that_it_does_not_take(options, line):
    with pytest.raises(UserError) as told:
        environment(**options)
    assert str(told.value).startswith(line) and "\n" not in str(told.value)


def test_a_right_call_without_a_box_earns_nothing():
    """The reward reads boxes and prose, not JSON: why the prompt asks for a box right behind the call."""
    env = environment("12")
    assert env.step(call("12"))[2]["score"] == 1.0
    assert grade(call("12"), "12") == 0.0
    assert grade(f"{call('12')} Answer: \\boxed{{12}}", "12") == 1.0
    assert grade(f"{call('11')} Answer: \\boxed{{11}}\n{call('12')}", "12") == 0.0
