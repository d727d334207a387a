"""The lines of ``eval/step_N.jsonl``, read back.

    a line --> AnsweredRecord of generated answers, or EvalRecord of answers that one forward pass judged

Invariant: what is read equals what was written. Lines of runs that knew no outcomes yet are read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from rlinf_vlm.evaluation.answered import AnsweredRecord, GradedAnswer
from rlinf_vlm.evaluation.answers import EvalRecord
from rlinf_vlm.rollout.files import read_lines

_TYPES: dict[str, type] = {
    **dict.fromkeys(("text", "status", "finish_reason", "detail", "outcome"), str),
    **dict.fromkeys(("reward",), float),
    **dict.fromkeys(("correct",), bool),
    **dict.fromkeys(("num_tokens",), int),
    **dict.fromkeys(("parts",), dict),
    **dict.fromkeys(("turns",), list),
}
_NEEDED = ("text", "reward", "correct", "status", "finish_reason", "num_tokens")
_CLOSED = tuple(field.name for field in fields(EvalRecord))


def read_evaluation(file: Path) -> list[AnsweredRecord] | list[EvalRecord]:
    """All rows of an evaluation, in the order of the file; those of generated answers if any line is one.

    Raises UserError with file and line of what is no such record (a line that was cut, or written by something else).
    """
    found = read_lines(file, _record, "record of an evaluation")
    generated = [record for record in found if isinstance(record, AnsweredRecord)]
    closed = [record for record in found if isinstance(record, EvalRecord)]
    if any(record.error is None for record in closed):
        return closed + [EvalRecord(row=record.row, error=record.error) for record in generated if record.error]
    return generated


def _record(line: Mapping[str, Any]) -> AnsweredRecord | EvalRecord:
    """Raises ValueError with what is wrong. A row that could not be used looks the same in both kinds."""
    row, error = line.get("row"), line.get("error")
    if not isinstance(row, int) or not isinstance(error, str | None):
        raise ValueError(f"'row' is {row!r} and 'error' {error!r}")
    if error is not None:
        return AnsweredRecord(row=row, error=error)
    if "status" not in line and "num_tokens" in line:
        return _closed(line)
    if "prediction" not in line:
        raise ValueError("no 'prediction'")
    answer = {name: value for name, value in line.items() if name in _TYPES} | {"text": line["prediction"]}
    settings = line.get("settings", {})
    if not isinstance(settings, dict):
        raise ValueError(f"'settings' is {settings!r}")
    return AnsweredRecord(
        row=row,
        question=str(line.get("question", "")),
        answer=str(line.get("answer", "")),
        greedy=_graded(answer),
        sampled=_each(line.get("sampled", [])),
        settings={name: _each(answers) for name, answers in settings.items()},
    )


def _closed(line: Mapping[str, Any]) -> EvalRecord:
    unknown = sorted(line.keys() - set(_CLOSED))
    if unknown or not isinstance(line["num_tokens"], int) or not isinstance(line.get("correct"), bool):
        raise ValueError(f"unknown {unknown[0]!r}" if unknown else "'num_tokens' or 'correct' is not as it was written")
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in line.items()}
    return EvalRecord(**values)


def _each(answers: Any) -> tuple[GradedAnswer, ...]:
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise ValueError("sampled answers that are no list of objects")
    return tuple(_graded(answer) for answer in answers)


def _graded(answer: Mapping[str, Any]) -> GradedAnswer:
    missing = [name for name in _NEEDED if name not in answer]
    if missing:
        raise ValueError(f"no {missing[0]!r}")
    for name, value in answer.items():
        wanted = _TYPES.get(name)
        if wanted is None:
            raise ValueError(f"unknown {name!r}")
        fits = isinstance(value, int | float if wanted is float else wanted)
        if not fits or (wanted in (int, float) and isinstance(value, bool)):
            raise ValueError(f"{name!r} is a {type(value).__name__}, not a {wanted.__name__}")
    told = dict(answer)
    told.setdefault("outcome", "truncated" if told["finish_reason"] == "length" else "completed")
    told["turns"] = tuple(told.get("turns", ()))
    return GradedAnswer(**told)
