"""The per-sample files of evaluations as samples of the page.

    eval/step_N.jsonl, eval/test_step_N.jsonl --eval_files--> EvalFile --eval_samples--> dicts as in ``samples``

A row gives a sample for its greedy answer (or, of supervised fine-tuning, its prediction), and one for each sampled
answer; a conversation has its turns. Tokens and the pictures of environments are not on record there. A line that
cannot be read is passed over and counted; a field that is not what it should be is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkits.report.choosing import evenly, shortened
from toolkits.report.curves import rounded

_NAME = re.compile(r"(test_)?step_(\d+)\.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalFile:
    """One evaluation. split: eval or test; step: finished steps."""

    path: Path
    split: str
    step: int


def eval_files(folder: Path, most: int) -> list[EvalFile]:
    """At most ``most`` evaluations of each split in the run folder, by split and step."""
    found: dict[str, list[EvalFile]] = {"eval": [], "test": []}
    for path in (folder / "eval").glob("*.jsonl"):
        name = _NAME.fullmatch(path.name)
        if name:
            split = "test" if name[1] else "eval"
            found[split].append(EvalFile(path=path, split=split, step=int(name[2])))
    return [file for files in found.values() for file in evenly(sorted(files, key=lambda file: file.step), most)]


def eval_samples(file: EvalFile, most: int, notes: list[str]) -> tuple[list[dict[str, Any]], bool]:
    """(all answers to at most ``most`` evenly spaced rows, whether there are more rows)."""
    lines, broken = [], 0
    with file.path.open("rb") as stream:
        for text in stream:
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if isinstance(line, dict) and isinstance(line.get("row"), int):
                lines.append(line)
            else:
                broken += 1
    if broken:
        notes.append(f"{broken} line{'s' if broken > 1 else ''} of eval/{file.path.name} could not be read.")
    rows = [made for line in lines if (made := list(_answers(file, line)))]
    return [answer for answers in evenly(rows, most) for answer in answers], len(rows) > most


def _answers(file: EvalFile, line: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The greedy answer of a row, then its sampled ones by setting."""
    if "prediction" not in line:  # a row that could not be asked
        return
    yield _sample(file, line, line, "greedy", 0)
    sampled = line.get("sampled") or {}
    named = {"sampled": sampled} if isinstance(sampled, list) else dict(sampled)
    if isinstance(line.get("settings"), Mapping):
        named |= line["settings"]
    for setting, answers in named.items():
        for member, answer in enumerate(answers if isinstance(answers, list) else ()):
            if isinstance(answer, Mapping):
                yield _sample(file, line, answer, setting, member)


def _sample(
    file: EvalFile, row: Mapping[str, Any], answer: Mapping[str, Any], setting: str, member: int
) -> dict[str, Any]:
    status = str(answer.get("status", "ok"))
    truncated = answer.get("finish_reason") == "length"
    made: dict[str, Any] = {
        "set": "test" if file.split == "test" else "evaluation",
        "step": file.step,
        "row": row["row"],
        "setting": setting,
        "member": member,
        "status": status,
        "detail": shortened(str(answer.get("detail", ""))),
        "outcome": str(answer.get("outcome", "truncated" if truncated else "completed")),
        "verdict": _verdict(status, answer.get("correct")),
        "length": answer.get("num_tokens"),
        "question": shortened(str(row.get("question", ""))),
        "answer": shortened(str(row.get("answer", ""))),
        "turns": _turns(answer, "length" if truncated else "stop"),
    }
    made |= _numbers({name: answer.get(name) for name in ("reward", "loss")})
    parts = answer.get("parts")
    if isinstance(parts, Mapping):
        made["parts"] = _numbers(parts)
    return made


def _turns(answer: Mapping[str, Any], finish: str) -> list[dict[str, Any]]:
    """What was said, and what the environment showed before it; only the last turn can have been cut off."""
    recorded = answer.get("turns")
    turns = [turn for turn in recorded if isinstance(turn, Mapping)] if isinstance(recorded, list) else []
    if not turns:
        turns = [{"text": answer.get("prediction", answer.get("text"))}]
    made = []
    for number, turn in enumerate(turns, start=1):
        one = {"text": shortened(str(turn.get("text", ""))), "finish": finish if number == len(turns) else "stop"}
        if turn.get("observation"):
            one["observation"] = shortened(str(turn["observation"]))
        made.append(one)
    return made


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those that are finite numbers, rounded."""
    found = {name: rounded(float(value)) for name, value in values.items() if isinstance(value, int | float)}
    return {name: value for name, value in found.items() if value is not None}


def _verdict(status: str, correct: object) -> str:
    if status not in ("ok", "refused"):
        return "unjudged"
    return "right" if correct else "wrong"
