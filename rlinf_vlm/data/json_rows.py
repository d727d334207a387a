"""Rows of JSON files, read one by one from where they stand in their file.

    file -> row_spans (one pass) -> byte offsets -> JsonRows[i] -> the row exactly as written

Both layouts are read, whatever the suffix: a list of objects, or one object a line (blank lines are skipped). Rows keep
their own types and keys; nothing is unified over rows, so a column may hold a text here and a list there. Only offsets
stay in memory, and a JsonRows object pickles and forks. Does not cache rows or read compressed files.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rlinf_vlm.types import RowError

HEAD_BYTES = 1 << 20
END_BYTES = 1 << 16
BETWEEN = re.compile(r"[\s,]*")


class JsonRows:
    """Random access to the rows of JSON files: one seek, one read and one parse a row."""

    def __init__(self, files: Sequence[Path], columns: Sequence[str] | None = None) -> None:
        """Finds all rows. Raises ValueError where a list does not parse; a bad line shows when it is read."""
        self.files = tuple(files)
        self.columns = columns
        self._spans = [row_spans(file) for file in files]
        self.counts = tuple(len(spans) for spans in self._spans)
        self._starts = np.cumsum([0, *self.counts])

    def __len__(self) -> int:
        """Rows of all files."""
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row ``index``; a chosen column that the row lacks is None. Raises RowError when it is not an object."""
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        start, end = self._spans[part][index - self._starts[part]]
        with self.files[part].open("rb") as stream:
            stream.seek(int(start))
            data = stream.read(int(end - start))
        try:
            row = parse_row(data)
        except ValueError as error:
            raise RowError(f"not a JSON object: {error}") from error
        return row if self.columns is None else {column: row.get(column) for column in self.columns}


def parse_row(data: bytes | str) -> dict[str, Any]:
    """One object. Raises ValueError."""
    row = json.loads(data)
    if not isinstance(row, dict):
        raise ValueError(f"a row is an object {{...}}, not a {type(row).__name__}")
    return row


def is_list(file: Path) -> bool:
    """Whether the file is one list of objects, rather than one object a line."""
    with file.open("rb") as stream:
        return stream.read(END_BYTES).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def row_spans(file: Path) -> np.ndarray:
    """First and past-the-last byte of every row, [rows, 2] int64. Raises ValueError where a list does not parse."""
    spans = list(_list_spans(file.read_bytes().decode("utf-8")) if is_list(file) else _line_spans(file))
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def check_rows(file: Path, whole: bool) -> int | None:
    """Parses the first and the last row, or all of a list if ``whole``. Returns the rows where that tells; 0 if empty.

    Raises ValueError with what is wrong.
    """
    if is_list(file):
        if not whole:
            if not _last_bytes(file, END_BYTES).rstrip().endswith(b"]"):
                raise ValueError("the list does not end with ']'")
            return None if any(True for _ in first_rows(file, 1)) else 0
        rows = json.loads(file.read_bytes())
        wrong = next((index for index, row in enumerate(rows) if not isinstance(row, dict)), None)
        if wrong is not None:
            raise ValueError(f"item {wrong} of the list is a {type(rows[wrong]).__name__}, not an object")
        return len(rows)
    if not any(True for _ in first_rows(file, 1)):
        return 0
    try:
        parse_row(_last_line(file))
    except ValueError as error:
        raise ValueError(f"the last line is not a JSON object: {error}") from error
    return None


def first_rows(file: Path, count: int) -> Iterator[Mapping[str, Any]]:
    """Up to ``count`` rows from the start, without reading the rest. Raises ValueError."""
    if is_list(file):
        yield from islice(_first_of_list(file), count)
        return
    with file.open("rb") as stream:
        lines = ((number, line) for number, line in enumerate(stream, start=1) if line.strip())
        for number, line in islice(lines, count):
            try:
                yield parse_row(line)
            except ValueError as error:
                raise ValueError(
                    f"line {number} is not a JSON object: {error} (expected one object a line, or a list of objects)"
                ) from error


def _first_of_list(file: Path) -> Iterator[Mapping[str, Any]]:
    """Rows of a list, from ever larger starts of the file."""
    size, seen = HEAD_BYTES, 0
    while True:
        with file.open("rb") as stream:
            data = stream.read(size)
        complete = len(data) < size
        # A cut inside a character is no fault of the file.
        text = data.decode("utf-8", errors="strict" if complete else "ignore")
        rows = _list_rows(text, complete)
        for _, _, row in islice(rows, seen, None):
            seen += 1
            yield row
        if complete:
            return
        size *= 8


def _list_rows(text: str, complete: bool) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """First and past-the-last character and value of each object; an incomplete text ends at the first cut one."""
    decoder = json.JSONDecoder()
    place = text.index("[") + 1
    while True:
        match = BETWEEN.match(text, place)
        assert match is not None, "the pattern matches the empty text"
        place = match.end()
        if text[place : place + 1] == "]":
            return
        try:
            row, end = decoder.raw_decode(text, place)
        except ValueError:
            if not complete:
                return
            raise
        if not isinstance(row, dict):
            raise ValueError(f"an item of the list is a {type(row).__name__}, not an object {{...}}")
        yield place, end, row
        place = end


def _list_spans(text: str) -> Iterator[tuple[int, int]]:
    place, offset = 0, 0
    for start, end, _ in _list_rows(text, complete=True):
        offset += len(text[place:start].encode())
        length = len(text[start:end].encode())
        yield offset, offset + length
        place, offset = end, offset + length


def _line_spans(file: Path) -> Iterator[tuple[int, int]]:
    offset = 0
    with file.open("rb") as stream:
        for line in stream:
            if line.strip():
                yield offset, offset + len(line)
            offset += len(line)


def _last_line(file: Path) -> bytes:
    """The last line that is not blank."""
    size, total = END_BYTES, file.stat().st_size
    while True:
        data = _last_bytes(file, size).rstrip()
        if b"\n" in data or size >= total:
            return data.rsplit(b"\n", 1)[-1]
        size *= 8


def _last_bytes(file: Path, size: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - size))
        return stream.read()
