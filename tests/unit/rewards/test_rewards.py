from __future__ import annotations

import asyncio

import pytest

from rlinf_vlm.rewards import REWARDS, make_reward
from rlinf_vlm.rewards.protocol import RewardInput, Score, score_all
from rlinf_vlm.types import UserError
from tests.unit.rewards.fakes import Unruly, no_score

PAN = {"choices": ["a cup", "a pan", "a lid"]}


def score(name: str, prediction: str, answer: str = "", *, options=None, finish=None, metadata=None) -> Score:
    item = RewardInput(prediction=prediction, answer=answer, finish_reason=finish, metadata=metadata or {})
    return asyncio.run(score_all(make_reward(name, options), [item]))[0]


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        (r"\boxed{B}", "B", 1),
        ("B", "B", 1),
        ("(B)", "b", 1),
        ("B.", "B", 1),
        ("B. a pan", "B", 1),
        ("The answer is (B).", "B", 1),
        ("The answer is B) a pan", "B", 1),
        (r"\boxed{\text{B}}", "B. a pan", 1),
        (r"\boxed{a pan}", "B. a pan", 1),
        ("Option B", "B", 1),
        ("A or B", "B", 0),
        (r"\boxed{A, B}", "B", 0),
        ("C", "B", 0),
        ("", "B", 0),
        ("A pan is held", "A", 0),
        (r"\boxed{B", "B", 0),
        ("I think it may be\nB", "B", 1),
        ("b" * 100_000, "B", 0),
    ],
)
def test_choice(prediction: str, answer: str, right: int):
    found = score("choice", prediction, answer)
    assert (found.value, found.status) == (right, "ok")


def test_choice_by_text():
    assert score("choice", "B", "a pan", metadata=PAN).value == 1
    assert score("choice", r"\boxed{A pan.}", "B", metadata=PAN).value == 1
    assert score("choice", r"\boxed{a cup}", "B", metadata=PAN).value == 0
    assert score("choice", "B", "").status == "error"


@pytest.mark.parametrize(
    ("form", "prediction", "right"),
    [
        ("boxed", r"so \boxed{5}", 1),
        ("boxed", r"\boxed{5} \boxed{5}", 0),
        ("boxed", r"\boxed{}", 0),
        ("boxed", "5", 0),
        ("boxed", r"\boxed{5", 0),
        ("boxed", r"\boxed{5} \boxed{6", 0),
        ("boxed", r"\boxed{\boxed{5}}", 1),
        ("think", "<think>hm</think> 5", 1),
        ("think", "hm</think> 5", 1),
        ("think", "<think>hm</think>", 0),
        ("think", "5", 0),
        ("think", "<think></think> 5", 0),
        ("think", "<think>a<think>b</think> 5", 0),
        ("think", "<think>a</think>b</think> 5", 0),
        ("think_boxed", r"<think>hm</think> \boxed{5}", 1),
        ("think_boxed", r"<think>\boxed{5}</think> 5", 0),
        (r".*Answer: \d+", "so\nAnswer: 5", 1),
        (r".*Answer: \d+", "Answer: five", 0),
    ],
)
def test_format(form: str, prediction: str, right: int):
    assert score("format", prediction, options={"form": form}).value == right
    assert score("format", prediction, options={"form": form}, finish="stop").value == right
    assert score("format", prediction, options={"form": form}, finish="length").value == 0


def test_geo3k():
    assert score("geo3k", r"\boxed{\frac{8}{15}}", "0.53").value == 0
    assert score("geo3k", r"\boxed{\frac{8}{15}}", "0.53", options={"tolerance": 0.05}).value == 1
    assert score("math", r"\boxed{8.6}", "8.6").value == 1
    with pytest.raises(UserError, match=r"tolerance=1.5 is not between 0 and 1"):
        make_reward("geo3k", {"tolerance": 1.5})


COMPOSITE = {"parts": {"math": {"weight": 0.9}, "form": {"name": "format", "weight": 0.1}}}


def test_composite_by_hand():
    # Right and boxed 0.9 + 0.1; wrong but boxed 0.1; right without a box 0.9.
    for prediction, value, parts in ((r"\boxed{5}", 1.0, (1, 1)), (r"\boxed{6}", 0.1, (0, 1)), ("5", 0.9, (1, 0))):
        found = score("composite", prediction, "5", options=COMPOSITE)
        assert found.value == pytest.approx(value) and dict(found.parts) == {"math": parts[0], "form": parts[1]}


def test_composite_of_composites_async_parts_and_failures():
    options = {
        "parts": {
            "both": {"name": "composite", "options": COMPOSITE},
            "length": {"name": "tests.unit.rewards.fakes:slow_length", "weight": 0.01},
        }
    }
    found = score("composite", r"\boxed{5}", "5", options=options)
    assert found.value == pytest.approx(1.09)
    assert dict(found.parts) == {"both": 1.0, "both/math": 1.0, "both/form": 1.0, "length": 9.0}
    bomb = score("composite", r"\boxed{9^{9^9}}", "5", options=COMPOSITE)
    assert (bomb.value, bomb.status, bomb.parts["form"]) == (0.0, "refused", 1.0)
    raising = {"parts": {"bad": {"name": "tests.unit.rewards.fakes:Unruly"}}}
    assert score("composite", "raise", options=raising).status == "error"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("composite", {"parts": {}}, "parts is empty"),
        ("composite", {"parts": {"math": {"wieght": 1}}}, "wieght"),
        ("composite", {"parts": {"maths": {}}}, "did you mean 'math'"),
        ("maths", None, "did you mean 'math'"),
        ("math", {"tol": 1}, "tol"),
        ("format", {"form": "("}, "no pattern"),
        ("nowhere.at:all", None, "no module named"),
        ("tests.unit.rewards.fakes:slow_length", {"a": 1}, "takes no options"),
        ("rlinf_vlm.rewards:REWARDS", None, "is a dict"),
        ("tests.unit.rewards.fakes:Broken", None, "no model to judge with"),
        ("builtins:object", None, "no __call__"),
    ],
)
def test_mistakes_are_one_line(name: str, options, message: str):
    with pytest.raises(UserError, match=message) as caught:
        make_reward(name, options)
    assert "\n" not in str(caught.value)


def test_every_name_resolves():
    for name in REWARDS:
        assert callable(make_reward(name, COMPOSITE if name == "composite" else None))


def test_scores_keep_their_order_and_failures_their_reason():
    commands = ["abc", "raise", "a", "nan"]
    found = asyncio.run(score_all(Unruly(), [RewardInput(prediction=text, answer="") for text in commands]))
    assert [(item.value, item.status) for item in found] == [(3, "ok"), (0, "error"), (1, "ok"), (0, "error")]
    assert found[1].detail == "RuntimeError: no such answer"
    nothing = asyncio.run(score_all(no_score, [RewardInput(prediction="", answer="")]))[0]
    assert nothing.status == "error" and "returned a float, not a Score" in nothing.detail


@pytest.mark.parametrize(("at_once", "most"), [(10, 10), (3, 3), (1, 1)])
def test_async_rewards_wait_together_and_not_too_many(at_once: int, most: int):
    under_way, seen = 0, []

    async def counting(item: RewardInput) -> Score:
        nonlocal under_way
        under_way += 1
        seen.append(under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return Score(value=1.0)

    found = asyncio.run(score_all(counting, [RewardInput(prediction="a", answer="")] * 10, at_once=at_once))
    assert max(seen) == most and len(found) == 10
