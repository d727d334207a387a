r"""Scored rollouts on disk: recorded step by step, and read back to train on them without an engine.

    scored answers of a step <--> <run folder>/rollouts/step_N.jsonl, one answer a line

Invariants: what is read equals what was written, floats included (JSON has the shortest digits that give the same
float). A file is there whole or not at all: it is written aside and renamed. A line has the fields of ``Rollout`` and
of ``ScoredRollout``, no more and no fewer, each of its type. Text stays readable; half of a surrogate pair, which has
no UTF-8, is written as its JSON escape (``\ud83d``).
Not here: images, which a row number stands for, and which steps a run writes.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rlinf_vlm.rollout.records import Rollout, ScoredRollout
from rlinf_vlm.types import UserError

FOLDER = "rollouts"
"""Name of the folder of the files in a run folder."""
_NAME = re.compile(r"step_(\d+)\.jsonl")
_ROLLOUT = tuple(field.name for field in fields(Rollout))
_JUDGEMENT = tuple(field.name for field in fields(ScoredRollout) if field.name != "rollout")
_TYPES = {
    **dict.fromkeys(("row", "group", "member", "prompt_length", "prompt_digest", "version"), int),
    **dict.fromkeys(("text", "finish_reason", "question", "answer", "status", "detail"), str),
    **dict.fromkeys(("token_ids", "logprobs"), list),
    "reward": float,
    "parts": dict,
}
"""Field -> its type in JSON. Where a float is expected, an integer will do."""


def write_rollouts(folder: Path, step: int, scored: Sequence[ScoredRollout]) -> Path:
    """Writes (or replaces) ``folder``/step_N.jsonl for ``step``, in the order given; returns its path. The folder is
    made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    file = _file(folder, step)
    aside = file.with_name(file.name + ".partial")
    with aside.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
        stream.writelines(json.dumps(_as_json(answer), ensure_ascii=False) + "\n" for answer in scored)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(file)
    return file


def read_rollouts(folder: Path, step: int) -> list[ScoredRollout]:
    """What was written for ``step``, in the same order; ``folder`` may also be the run folder around it.

    Raises UserError that names the steps that there are, or file and line of what is no rollout (a line that was cut,
    edited, or written by something else).
    """
    file = _file(rollouts_folder(folder), step)
    if not file.is_file():
        raise UserError(f"{file}: no such file; {_there(folder)}")
    scored: list[ScoredRollout] = []
    with file.open("rb") as stream:  # lines end at \n only; text has other line separators
        for number, line in enumerate(stream, start=1):
            try:
                scored.append(_from_json(line))
            except ValueError as error:
                raise UserError(
                    f"{file}, line {number}: not a recorded rollout ({error}); copy the file again, or record it anew"
                ) from error
    return scored


def recorded_steps(folder: Path) -> list[int]:
    """The steps whose rollouts are on record, ascending; ``folder`` as in ``read_rollouts``."""
    found = (_NAME.fullmatch(path.name) for path in rollouts_folder(folder).glob("step_*.jsonl"))
    return sorted(int(name[1]) for name in found if name)


def forget_after(folder: Path, step: int) -> None:
    """Removes from ``folder`` what was recorded after ``step``: a run that goes on from there records it anew."""
    for later in recorded_steps(folder):
        if later > step:
            _file(folder, later).unlink()


def rollouts_folder(folder: Path) -> Path:
    """The folder of the files where ``folder`` is it, or the run folder around it."""
    inside = folder / FOLDER
    return inside if inside.is_dir() else folder


def _file(folder: Path, step: int) -> Path:
    return folder / f"step_{step}.jsonl"


def _there(folder: Path) -> str:
    steps = recorded_steps(folder)
    if not steps:
        return f"{folder} holds no step_N.jsonl; give the {FOLDER} folder of a run that recorded its rollouts"
    if len(steps) > 1 and steps == list(range(steps[0], steps[-1] + 1)):
        return f"recorded: steps {steps[0]} to {steps[-1]}"
    shown = ", ".join(map(str, steps[:20])) + (", .." if len(steps) > 20 else "")
    return f"recorded: step{'s' if len(steps) > 1 else ''} {shown}"


def _as_json(scored: ScoredRollout) -> dict[str, Any]:
    """The fields of the rollout and of its judgement side by side."""
    rollout = {name: getattr(scored.rollout, name) for name in _ROLLOUT}
    return {**rollout, **{name: getattr(scored, name) for name in _JUDGEMENT}, "parts": dict(scored.parts)}


def _from_json(line: bytes) -> ScoredRollout:
    """Raises ValueError with what is wrong."""
    if not line.endswith(b"\n"):
        raise ValueError("the line is cut")
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}, not an object")
    _check(row)
    rollout = {name: row[name] for name in _ROLLOUT}
    rollout |= {"token_ids": tuple(row["token_ids"]), "logprobs": tuple(map(float, row["logprobs"]))}
    judgement = {name: row[name] for name in _JUDGEMENT}
    judgement |= {
        "reward": float(row["reward"]),
        "parts": {name: float(value) for name, value in row["parts"].items()},
    }
    return ScoredRollout(rollout=Rollout(**rollout), **judgement)


def _check(row: Mapping[str, Any]) -> None:
    """Raises ValueError unless every field is there, is known, and has its type."""
    missing, unknown = _TYPES.keys() - row.keys(), row.keys() - _TYPES.keys()
    if missing or unknown:
        wrong = [f"no {name!r}" for name in sorted(missing)] + [f"unknown {name!r}" for name in sorted(unknown)]
        raise ValueError(", ".join(wrong))
    for name, wanted in _TYPES.items():
        if not _is(row[name], wanted):
            raise ValueError(f"{name!r} is a {type(row[name]).__name__}, not a {wanted.__name__}")
    if row["finish_reason"] not in ("stop", "length"):
        raise ValueError(f"'finish_reason' is {row['finish_reason']!r}, neither 'stop' nor 'length'")
    if not math.isfinite(row["reward"]):
        raise ValueError(f"'reward' is {row['reward']}")
    if not all(_is(value, int) for value in row["token_ids"]):
        raise ValueError("'token_ids' has something that is not an integer")
    if not all(_is(value, float) for value in [*row["logprobs"], *row["parts"].values()]):
        raise ValueError("'logprobs' or 'parts' has something that is not a number")


def _is(value: object, wanted: type) -> bool:
    """Whether a value of JSON is of a type; true and false are no numbers."""
    return isinstance(value, (int, float) if wanted is float else wanted) and not isinstance(value, bool)
