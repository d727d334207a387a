"""The per-sample files of evaluations as samples of the page.

    eval/step_N.jsonl, eval/test_step_N.jsonl --eval_files--> EvalFile --eval_samples--> dicts as in ``samples``

A row gives a sample for its greedy answer (or, of supervised fine-tuning, its prediction), and one for each sampled
answer. Tokens are not on record there, so there are none to colour. A line that cannot be read is passed over and
counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkits.report.choosing import evenly
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
    said = answer.get("prediction", answer.get("text"))
    status = answer.get("status", "ok")
    truncated = answer.get("finish_reason") == "length"
    made: dict[str, Any] = {
        "set": "test" if file.split == "test" else "evaluation",
        "step": file.step,
        "row": row["row"],
        "setting": setting,
        "member": member,
        "status": status,
        "detail": answer.get("detail", ""),
        "outcome": answer.get("outcome", "truncated" if truncated else "completed"),
        "verdict": _verdict(status, answer.get("correct")),
        "length": answer.get("num_tokens"),
        "question": row.get("question", ""),
        "answer": row.get("answer", ""),
        "turns": [{"text": str(said), "finish": answer.get("finish_reason", "stop")}],
    }
    if isinstance(answer.get("reward"), int | float):
        made["reward"] = rounded(float(answer["reward"]))
    parts = answer.get("parts")
    if isinstance(parts, Mapping):
        made["parts"] = {name: rounded(float(value)) for name, value in parts.items()}
    if isinstance(answer.get("loss"), int | float):
        made["loss"] = rounded(float(answer["loss"]))
    return made


def _verdict(status: str, correct: object) -> str:
    if status not in ("ok", "refused"):
        return "unjudged"
    return "right" if correct else "wrong"
