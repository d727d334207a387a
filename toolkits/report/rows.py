"""The rows behind a run's samples: what was asked, with its pictures.

    Run's data.* settings --RowSource--> row number -> messages as in ``Conversation.prompt``

Invariants: a table is opened once, when its first row is asked for; whatever is missing (files, config, a row, a kind
of the user's) is said once in ``problems`` and the row is None. Relative paths are sought from the current directory,
as the run did from its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlinf_vlm.config.load import load_block
from rlinf_vlm.config.schema import DataConfig
from rlinf_vlm.data.kinds import DatasetKind, make_kind
from rlinf_vlm.data.sources import Table, open_table
from rlinf_vlm.types import ImagePart, RowError, UserError
from toolkits.report.choosing import shortened
from toolkits.report.pictures import Pictures
from toolkits.report.records import Run

PATH_KEYS = {"train": "train_data_paths", "eval": "eval_data_paths", "test": "test_data_paths"}
"""Split -> the setting below data. that names its files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    table: Table
    kind: DatasetKind


class RowSource:
    """Rows of one run."""

    def __init__(self, run: Run, pictures: Pictures) -> None:
        """``pictures``: where the rows' pictures go."""
        self._problems: list[str] = []
        self._broken: dict[str, list[str]] = {}
        self._run = run
        self._pictures = pictures
        self._opened: dict[str, _Opened | None] = {}

    @property
    def problems(self) -> list[str]:
        """Why rows are not there, a sentence each."""
        broken = [
            f"{len(rows)} rows of data.{PATH_KEYS[split]} cannot be shown, such as {rows[0]}."
            for split, rows in self._broken.items()
        ]
        return [*self._problems, *broken]

    def prompt(self, split: str, row: int) -> list[dict[str, Any]] | None:
        """The messages that row ``row`` of ``split`` asks with: role, and parts that are texts (str) or pictures (as
        of ``Pictures.add``). None where they cannot be had."""
        if split not in self._opened:
            self._opened[split] = self._open(split)
        opened = self._opened[split]
        if opened is None:
            return None
        try:
            conversation = opened.kind.convert(opened.table[row])
            base = opened.table.folder_of(row)
        except (RowError, IndexError, KeyError, TypeError, ValueError) as error:
            self._broken.setdefault(split, []).append(f"row {row} ({_line(error)})")
            return None
        images = iter(conversation.images)
        return [
            {
                "role": message.role,
                "parts": [
                    self._pictures.add(next(images), base) if isinstance(part, ImagePart) else shortened(part)
                    for part in message.parts
                ],
            }
            for message in conversation.prompt
        ]

    def _open(self, split: str) -> _Opened | None:
        key = PATH_KEYS[split]
        paths = self._run.setting(f"data.{key}")
        if not paths:
            self._problems.append(f"The config names no data.{key}: their pictures are not shown.")
            return None
        known = {name: value for name, value in self._run.config["data"].items() if name in DataConfig.model_fields}
        try:
            kind = make_kind(load_block(known, DataConfig))
            columns = [column for _, column in kind.required_columns()]
            return _Opened(table=open_table(paths, f"data.{key}", columns=columns), kind=kind)
        except (UserError, OSError, ImportError) as error:
            self._problems.append(f"The rows of data.{key} are gone, so their pictures are not shown ({_line(error)}).")
            return None


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
