r"""The demo of multi-turn reinforcement learning: the drawn problems of ``RL_SETTINGS``, talked about with a tool.

    user       <image>$a=12$. Find the perimeter.
    assistant  <tool_call>{"name":"calc_score","arguments":{"answer":"12"}}</tool_call> Answer: \boxed{12}
    user       The score is 0.0: the answer is wrong. Try another one.             (the environment's own words)
    assistant  <tool_call>{"name":"calc_score","arguments":{"answer":"48"}}</tool_call> Answer: \boxed{48}

The column ``messages`` is what the warm-up learns from: how the tool is called, what its words mean, and a careless
teacher's answers. He first says what stands in the column ``taught``; where the tool calls that wrong, he answers once
more, wrongly as often as at first. In a part of the conversations the tool is off, and he gives the same answer again
without it. All other columns are as in the demo of single-turn reinforcement learning.

Invariants: what the user says after the first turn is what the environment ``geo3k_tool`` would say there; the marker
names those words, so that the demo is made anew when they change. Light to import, as ``geometry_demo``.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkits.data.demo_folder import write_marker
from toolkits.data.geometry_demo import RL_SETTINGS, GeometrySettings, made_from, make_splits

if TYPE_CHECKING:
    from toolkits.data.geometry_tables import Chat, GeometryRow

GEOMETRY_TOOL = "geometry_tool"
"""The demo's folder."""
OFF = 0.3
"""The part of the conversations in which the tool is off."""
VOCABULARY = 640
"""Entries of the tokenizer: a call of the tool, with its answer, has about 27 tokens."""
TOOL_VERSION = 1
"""Raised when the conversations change otherwise than in the environment's words."""


def tool_made_from(settings: GeometrySettings = RL_SETTINGS) -> dict[str, Any]:
    """What the demo's marker says of how it was made."""
    from rlinf_vlm.envs.geo3k_tool import SWITCHED_OFF, WRONG

    return {**made_from(settings), "tool_version": TOOL_VERSION, "wrong": WRONG, "switched_off": SWITCHED_OFF}


def write_geometry_tool(folder: Path, settings: GeometrySettings) -> None:
    """Writes tables, model and, last, the marker into the empty ``folder``. Raises ValueError as ``write_geometry``."""
    from toolkits.data import demo_model
    from toolkits.data.demo_texts import chat_texts
    from toolkits.data.geometry_tables import write_rows

    def chat(row: GeometryRow) -> Chat:
        return talk(row, settings.careless)

    splits = make_splits(settings)
    for split, rows in splits.items():
        write_rows(rows, split, folder / f"{split}.parquet", chat)
    texts = chat_texts(chat(row) for row in splits["train"])
    shape = demo_model.DemoShape(image_side=settings.side, vocab_size=VOCABULARY)
    parameters = demo_model.write_model(folder / "model", texts, shape, settings.seed)
    write_marker(folder, {**tool_made_from(settings), "parameters": parameters})


def talk(row: GeometryRow, careless: float) -> Chat:
    """A conversation about ``row``, the same each time. careless: how often (0 to 1) the second answer is wrong."""
    from rlinf_vlm.data.kinds.geo3k import target_text
    from rlinf_vlm.envs.geo3k_tool import SWITCHED_OFF, WRONG
    from toolkits.data.geometry_tables import asked

    rng = random.Random(row.question.encode() + row.png)
    said = [{"role": "user", "content": asked(row)}, {"role": "assistant", "content": called(row.taught)}]
    if rng.random() < OFF:
        again = {"role": "assistant", "content": target_text(row.taught)}
        return [*said, {"role": "user", "content": SWITCHED_OFF}, again]
    if row.taught == row.answer:
        return said
    second = rng.choice(guesses(row)) if rng.random() < careless else row.answer
    return [*said, {"role": "user", "content": WRONG}, {"role": "assistant", "content": called(second)}]


def called(answer: str) -> str:
    r"""A turn that asks the tool about ``answer`` and gives it in a box."""
    from rlinf_vlm.data.kinds.geo3k import target_text
    from rlinf_vlm.envs.geo3k_tool import TOOLS
    from rlinf_vlm.envs.tool_calls import CLOSE, OPEN

    call = json.dumps({"name": TOOLS[0], "arguments": {"answer": answer}}, separators=(",", ":"))
    return f"{OPEN}{call}{CLOSE} {target_text(answer)}"


def guesses(row: GeometryRow) -> list[str]:
    """Answers that problems of the demo's other kinds would have with the same number."""
    number = row.numbers[0]
    answers = [str(2 * number), rf"{number}\sqrt{{2}}", *(str(times * number) for times in (3, 4, 6))]
    return [answer for answer in answers if answer != row.answer]
