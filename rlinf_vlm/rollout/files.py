r"""Scored rollouts on disk: recorded step by step, and read back to train on them without an engine.

    scored answers of a step <--> <run folder>/rollouts/step_N.jsonl, one answer a line
    pictures that environments showed <--> rollouts/images/DIGEST.png, which lines name

Invariants: what is read equals what was written, floats included (JSON has the shortest digits that give the same
float). A file is there whole or not at all: it is written aside and renamed. A line has the fields of ``Rollout`` and
of ``ScoredRollout``, and a turn those of ``Turn``, no more and no fewer, each of its type. Text stays readable; half of
a surrogate pair, which has no UTF-8, is written as its JSON escape (``\ud83d``).
Not here: images of rows, which a row number stands for, and which steps a run writes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_args

from rlinf_vlm.rollout.records import FinishReason, Outcome, Rollout, ScoredRollout, Turn
from rlinf_vlm.types import UserError

Item = TypeVar("Item")

FOLDER = "rollouts"
"""Name of the folder of the files in a run folder."""
IMAGES = "images"
"""Name of the folder of pictures inside it."""
_NAME = re.compile(r"step_(\d+)\.jsonl")
_IMAGE = re.compile(r"[0-9a-f]{32}\.png")
_ROLLOUT = tuple(field.name for field in fields(Rollout))
_TURN = tuple(field.name for field in fields(Turn))
_JUDGEMENT = tuple(field.name for field in fields(ScoredRollout) if field.name != "rollout")
_TYPES = {
    **dict.fromkeys(("row", "group", "member", "prompt_length", "prompt_digest", "version"), int),
    **dict.fromkeys(("outcome", "outcome_detail", "question", "answer", "status", "detail"), str),
    **dict.fromkeys(("turns", "choices"), list),
    **dict.fromkeys(("parts", "env_info"), dict),
    "reward": float,
}
"""Field of a line -> its type in JSON. Where a float is expected, an integer will do."""
_TURN_TYPES = {
    **dict.fromkeys(("observation", "text", "finish_reason"), str),
    **dict.fromkeys(("context_ids", "images", "token_ids", "logprobs"), list),
}
"""Field of a turn -> its type in JSON."""


def write_rollouts(folder: Path, step: int, scored: Sequence[ScoredRollout]) -> Path:
    """Writes (or replaces) ``folder``/step_N.jsonl for ``step``, in the order given; returns its path. The folder is
    made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for content in {content for answer in scored for turn in answer.rollout.turns for content in turn.images}:
        image = folder / IMAGES / _image_name(content)
        if not image.exists():
            image.parent.mkdir(exist_ok=True)
            replace_file(image, content)
    return write_lines(_file(folder, step), [_as_json(answer) for answer in scored])


def write_lines(file: Path, lines: Iterable[Mapping[str, Any]]) -> Path:
    """Writes (or replaces) ``file``, one JSON object a line; returns it."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    replace_file(file, text.encode("utf-8", errors="backslashreplace"))
    return file


def replace_file(file: Path, content: bytes) -> None:
    """Puts ``file`` in place, whole."""
    aside = file.with_name(file.name + ".partial")
    with aside.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(file)


def read_rollouts(folder: Path, step: int) -> list[ScoredRollout]:
    """What was written for ``step``, in the same order; ``folder`` may also be the run folder around it.

    Raises UserError that names the steps that there are, or file and line of what is no rollout (a line that was cut,
    edited, or written by something else).
    """
    file = _file(rollouts_folder(folder), step)
    if not file.is_file():
        raise UserError(f"{file}: no such file; {_there(folder)}")
    images = ImageFolder(file.parent / IMAGES)
    return read_lines(file, lambda row: _from_json(row, images), "recorded rollout")


def read_lines(file: Path, convert: Callable[[dict[str, Any]], Item], what: str) -> list[Item]:
    """``convert`` of each line's object. Raises UserError with file and line where it, or a line, is not ``what``."""
    found: list[Item] = []
    with file.open("rb") as stream:  # lines end at \n only; text has other line separators
        for number, line in enumerate(stream, start=1):
            try:
                found.append(convert(_object(line)))
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{file}, line {number}: not a {what} ({error}); copy the file again, or record it anew"
                ) from error
    return found


class ImageFolder:
    """Pictures by their names, each read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, bytes] = {}

    def __getitem__(self, name: str) -> bytes:
        """The content of picture ``name``. Raises ValueError where it is not there, or another one."""
        if name not in self._known:
            file = self._folder / name
            if not _IMAGE.fullmatch(name) or not file.is_file():
                raise ValueError(f"no picture {name!r} in {self._folder}")
            content = file.read_bytes()
            if _image_name(content) != name:
                raise ValueError(f"{file} is not the picture that was shown")
            self._known[name] = content
        return self._known[name]


def recorded_steps(folder: Path) -> list[int]:
    """The steps whose rollouts are on record, ascending; ``folder`` as in ``read_rollouts``."""
    found = (_NAME.fullmatch(path.name) for path in rollouts_folder(folder).glob("step_*.jsonl"))
    return sorted(int(name[1]) for name in found if name)


def forget_after(folder: Path, step: int) -> None:
    """Removes from ``folder`` what was recorded after ``step``: a run that goes on from there records it anew."""
    for later in recorded_steps(folder):
        if later > step:
            _file(folder, later).unlink()
            trained_file(folder, later).unlink(missing_ok=True)


def rollouts_folder(folder: Path) -> Path:
    """The folder of the files where ``folder`` is it, or the run folder around it."""
    inside = folder / FOLDER
    return inside if inside.is_dir() else folder


def trained_file(folder: Path, step: int) -> Path:
    """Where ``trained`` writes what a step's training made of its tokens."""
    return folder / f"trained_{step}.jsonl"


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


def _image_name(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest() + ".png"


def _as_json(scored: ScoredRollout) -> dict[str, Any]:
    """The fields of the rollout and of its judgement side by side."""
    rollout = {name: getattr(scored.rollout, name) for name in _ROLLOUT}
    rollout["turns"] = [
        {name: getattr(turn, name) for name in _TURN} | {"images": [_image_name(image) for image in turn.images]}
        for turn in scored.rollout.turns
    ]
    rollout["env_info"] = dict(scored.rollout.env_info)
    return {**rollout, **{name: getattr(scored, name) for name in _JUDGEMENT}, "parts": dict(scored.parts)}


def _object(line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise ValueError("the line is cut")
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}, not an object")
    return row


def _from_json(row: dict[str, Any], images: ImageFolder) -> ScoredRollout:
    """Raises ValueError with what is wrong."""
    _check_fields(row, _TYPES)
    if row["outcome"] not in get_args(Outcome):
        raise ValueError(f"'outcome' is {row['outcome']!r}, none of {', '.join(get_args(Outcome))}")
    if not math.isfinite(row["reward"]):
        raise ValueError(f"'reward' is {row['reward']}")
    if not all(_is(value, float) for value in row["parts"].values()):
        raise ValueError("'parts' has something that is not a number")
    rollout = {name: row[name] for name in _ROLLOUT}
    rollout |= {"turns": tuple(_turn(turn, images) for turn in row["turns"]), "choices": tuple(row["choices"])}
    judgement = {name: row[name] for name in _JUDGEMENT}
    judgement |= {
        "reward": float(row["reward"]),
        "parts": {name: float(value) for name, value in row["parts"].items()},
    }
    return ScoredRollout(rollout=Rollout(**rollout), **judgement)


def _turn(row: Any, images: ImageFolder) -> Turn:
    if not isinstance(row, dict):
        raise ValueError(f"a turn is a {type(row).__name__}, not an object")
    _check_fields(row, _TURN_TYPES)
    if row["finish_reason"] not in get_args(FinishReason):
        raise ValueError(f"'finish_reason' is {row['finish_reason']!r}, neither 'stop' nor 'length'")
    if not all(_is(value, int) for value in [*row["token_ids"], *row["context_ids"]]):
        raise ValueError("'token_ids' or 'context_ids' has something that is not an integer")
    if not all(_is(value, float) for value in row["logprobs"]):
        raise ValueError("'logprobs' has something that is not a number")
    turn = {name: row[name] for name in _TURN}
    turn |= {name: tuple(row[name]) for name in ("token_ids", "context_ids")}
    turn |= {
        "logprobs": tuple(map(float, row["logprobs"])),
        "images": tuple(images[str(name)] for name in row["images"]),
    }
    return Turn(**turn)


def _check_fields(row: Mapping[str, Any], types: Mapping[str, type]) -> None:
    """Raises ValueError unless every field is there, is known, and has its type."""
    missing, unknown = types.keys() - row.keys(), row.keys() - types.keys()
    if missing or unknown:
        wrong = [f"no {name!r}" for name in sorted(missing)] + [f"unknown {name!r}" for name in sorted(unknown)]
        raise ValueError(", ".join(wrong))
    for name, wanted in types.items():
        if not _is(row[name], wanted):
            raise ValueError(f"{name!r} is a {type(row[name]).__name__}, not a {wanted.__name__}")


def _is(value: object, wanted: type) -> bool:
    """Whether a value of JSON is of a type; true and false are no numbers."""
    return isinstance(value, (int, float) if wanted is float else wanted) and not isinstance(value, bool)
