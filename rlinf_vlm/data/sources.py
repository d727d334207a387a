"""The rows behind a config's data path: looked over before the run, opened in each process.

    data.train_data_paths -> inspect_paths (rows, columns, integrity; no process started)
                          -> open_table -> Table: len, table[i], locate, folder_of

Invariants: row i is the same row in every process and every run on the same files; opening is safe from many processes
at once; a table pickles and forks for loading processes; access is O(1) and nothing but offsets is held in memory.
Parquet, arrow and hub datasets are mapped from the datasets library's cache (which takes about the space of the chosen
columns again); JSON is read where it stands. Does not interpret rows or decode images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rlinf_vlm.data.files import HubDataset, Source, find_source
from rlinf_vlm.data.integrity import check_file_columns, check_files, column_names, count_rows, first_row, one_line
from rlinf_vlm.data.json_rows import JsonRows
from rlinf_vlm.data.kinds import DatasetKind, check_columns
from rlinf_vlm.types import UserError


class Rows(Protocol):
    """Random access."""

    def __len__(self) -> int:
        """Number of rows."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One row as plain Python, images undecoded."""


class Table:
    """Rows of one or more files, in the files' order."""

    def __init__(self, rows: Rows, source: Source) -> None:
        self._rows = rows
        self.source = source

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row ``index`` as plain Python; images are {"bytes", "path"} or what the file holds. Raises IndexError."""
        return self._rows[self._checked(index)]

    def locate(self, index: int) -> tuple[str, int]:
        """The file that holds row ``index``, and the row's number in it, from 0. A hub dataset counts as one file."""
        index = self._checked(index)
        if isinstance(self.source, HubDataset):
            return str(self.source), index
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return str(self.source[part]), index - int(self._starts[part])

    def folder_of(self, index: int) -> Path | None:
        """The folder from which relative image paths of row ``index`` are sought first; None for a hub dataset."""
        if isinstance(self.source, HubDataset):
            return None
        if self._common_folder is not None:
            return self._common_folder
        return Path(self.locate(index)[0]).parent

    @cached_property
    def _starts(self) -> np.ndarray:
        """Index of each file's first row, and the end, [files + 1]. Found when first needed: mostly for an error."""
        assert not isinstance(self.source, HubDataset), "a hub dataset has no files"
        counts = self._rows.counts if isinstance(self._rows, JsonRows) else [count_rows(file) for file in self.source]
        starts = np.cumsum([0, *counts])
        assert starts[-1] == len(self), f"the files now hold {starts[-1]} rows, but {len(self)} were loaded"
        return starts

    @cached_property
    def _common_folder(self) -> Path | None:
        assert not isinstance(self.source, HubDataset), "a hub dataset has no files"
        folders = {file.parent for file in self.source}
        return folders.pop() if len(folders) == 1 else None

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)} rows")
        return int(index)


def open_table(
    paths: str | Sequence[str], key: str, columns: Sequence[str] | None = None, cache_dir: Path | None = None
) -> Table:
    """The rows of ``paths``, the value of the config's ``key``; of ``columns`` only (None: all).

    ``cache_dir`` is where the datasets library maps from (None: its own choice). Raises UserError.
    """
    source = find_source(paths, key)
    columns = None if columns is None else list(dict.fromkeys(columns))
    if isinstance(source, HubDataset):
        # The datasets library takes seconds to import, and JSON does without it.
        from rlinf_vlm.data.hub import load_hub

        return Table(load_hub(source, key, columns, cache_dir), source)
    if source[0].suffix.lower() in (".json", ".jsonl"):
        try:
            return Table(JsonRows(source, columns), source)
        except (ValueError, OSError) as error:
            raise UserError(f"{key}: the rows do not parse ({one_line(error)}); mend the file") from error
    check_file_columns(source, key, columns or ())
    from rlinf_vlm.data.hub import load_files

    return Table(load_files(source, key, columns, cache_dir), source)


def inspect_paths(paths: str | Sequence[str] | None, key: str, kind: DatasetKind) -> int | None:
    """Checks the files and that they have the columns that ``kind`` reads, without loading rows.

    Returns the number of rows where it is known cheaply; None where not, or without paths. Raises UserError.
    """
    if paths is None:
        return None
    source = find_source(paths, key)
    if isinstance(source, HubDataset):
        check_columns(kind, tuple(peek(source, key)), str(source))
        return None
    rows = check_files(source, key)
    check_columns(kind, column_names(source, key), str(source[0]))
    check_file_columns(source, key, [column for _, column in kind.required_columns()])
    return rows


def peek(source: Source, key: str) -> Mapping[str, Any]:
    """The first row as plain Python, images undecoded, without loading the rest. Raises UserError without rows."""
    if isinstance(source, HubDataset):
        from rlinf_vlm.data.hub import first_hub_row

        return first_hub_row(source, key)
    return first_row(source, key)
