r"""The environment of slime's multi-turn geometry3k: a tool that says whether an answer is right.

    policy       ... <tool_call>{"name": "calc_score", "arguments": {"answer": "12"}}</tool_call> Answer: \boxed{12}
    environment  "The score is 0.0: the answer is wrong. ..."                                  -> the policy's next turn
    policy       ... {"answer": "24"} ...                                                      -> right: it is over

The last call of a turn counts (``tool_calls``). Right ends the conversation; wrong, or a call that cannot be used, is
answered and does not; a turn without a call is the final answer and ends it.

Invariants: the gold answer is never told, nor is anything repeated of what the policy said; what is told holds no box,
so that no grader can take it for an answer. ``info`` is of the whole conversation: "score" of the last answer that the
tool scored (0.0 where none was), "tool_calls" (that could be read), "parse_errors" (that could not), "tool_errors" (of
the calls that could be read: another tool, no answer, an answer that cannot be scored).

The tool is an oracle: a policy that may ask it gets several guesses. An evaluation is worth something with
``env.eval_options: {tool: false}`` only; then a call is answered the same whatever it says.

Not here: the reward. It is the run's (``reward.name=math``), of all that the policy said, where the last box wins. So a
right call earns nothing unless the answer stands in a box too: ``rewards.extraction`` reads no JSON. The prompt has to
ask for ``Answer: \boxed{...}`` right after the call, since a right call is the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from rlinf_vlm.config.base import Block
from rlinf_vlm.envs.options import Role, read_options
from rlinf_vlm.envs.protocol import EnvSample
from rlinf_vlm.envs.tool_calls import BadCall, ToolCall, last_call
from rlinf_vlm.rewards.extraction import find_boxes
from rlinf_vlm.rewards.math import judge
from rlinf_vlm.rewards.protocol import JUDGED, REFUSED, Score

TOOLS = ("calc_score", "calc_geo3k_reward")
"""Names of the one tool."""
MAX_ANSWER = 300
"""Characters of an answer that is scored."""

WRONG = "The score is 0.0: the answer is wrong. Try another one."
UNREADABLE = "The score is 0.0: the answer cannot be read. Write a number or a short expression."
UNKNOWN_GOLD = "The tool cannot score this problem. Give the boxed final answer without a tool call."
UNKNOWN_TOOL = f'There is no such tool. Call "{TOOLS[0]}" with the argument "answer", or give the boxed final answer.'
NO_ANSWER = f'The tool "{TOOLS[0]}" needs the argument "answer": a number or a short text.'
CALL_AGAIN = "Call the tool again, or give the boxed final answer without a tool call."
SWITCHED_OFF = "The tool is off. Give the boxed final answer without a tool call."


class Geo3kToolOptions(Block):
    """``env.options`` of ``geo3k_tool``."""

    tool: bool = True
    """Whether a call is scored; false: each is answered with the same text. Set it in env.eval_options."""
    role: Role = "user"
    """Whose message the environment's is: user (any model) or tool (Qwen3-VL)."""
    tolerance: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Relative to a gold number, as of the reward geo3k; take the reward's."""


class Geo3kTool:
    """One conversation about one problem."""

    def __init__(self, *, answer: str, options: Geo3kToolOptions) -> None:
        """answer: the gold one."""
        self._answer = answer
        self._options = options
        self._over = False
        self._info: dict[str, Any] = {"score": 0.0, "tool_calls": 0, "parse_errors": 0, "tool_errors": 0}

    def reset(self) -> tuple[None, dict[str, Any]]:
        """Shows nothing before the first turn."""
        return None, dict(self._info)

    def step(self, response_text: str) -> tuple[str | None, bool, dict[str, Any]]:
        """(what the tool says, None at the end; whether it is over; info). Raises RuntimeError once it is over."""
        if self._over:
            raise RuntimeError("the conversation is over; an environment is made for one")
        call = last_call(response_text)
        told = None if call is None else self._answered(call)
        self._over = told is None
        return told, self._over, dict(self._info)

    def format_observation(self, observation: str) -> dict[str, Any]:
        """The message."""
        return {"role": self._options.role, "content": observation}

    def close(self) -> None:
        """Nothing can be asked any more."""
        self._over = True

    def _answered(self, call: ToolCall | BadCall) -> str | None:
        """What the tool says to a call; None: the answer is right."""
        self._info["parse_errors" if isinstance(call, BadCall) else "tool_calls"] += 1
        if not self._options.tool:
            return SWITCHED_OFF
        if isinstance(call, BadCall):
            return f"{call.problem} {CALL_AGAIN}"
        if call.name not in TOOLS:
            return self._refused(UNKNOWN_TOOL)
        answer = _answer_text(call.arguments.get("answer"))
        if not answer:
            return self._refused(NO_ANSWER)
        if len(answer) > MAX_ANSWER:
            return self._refused(UNREADABLE)
        return self._scored(answer)

    def _scored(self, answer: str) -> str | None:
        score = score_answer(answer, self._answer, tolerance=self._options.tolerance)
        if score.status == REFUSED:
            return self._refused(UNREADABLE)
        if score.status not in JUDGED:
            return self._refused(UNKNOWN_GOLD)
        self._info["score"] = score.value
        return None if score.value >= 1.0 else WRONG

    def _refused(self, text: str) -> str:
        self._info["tool_errors"] += 1
        return text


def score_answer(answer: str, gold: str, *, tolerance: float = 0.0) -> Score:
    """As the reward would judge a policy that says ``answer``, bare or in a box, and nothing else."""
    boxes, cut_off = find_boxes(answer)
    return judge(answer if boxes or cut_off else rf"\boxed{{{answer}}}", gold, tolerance=tolerance)


def _answer_text(value: Any) -> str:
    """An argument as the text of an answer; "" where it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    if isinstance(value, float):
        return format(value, ".15g") if math.isfinite(value) else ""
    return str(value).strip()


def build_env(*, sample: EnvSample, args: Mapping[str, Any]) -> Geo3kTool:
    """The environment of a row. Raises UserError for args that it does not take."""
    return Geo3kTool(answer=sample.answer, options=read_options(args, Geo3kToolOptions))
