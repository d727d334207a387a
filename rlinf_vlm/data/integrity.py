"""What can be known of data files in milliseconds, before any process starts: whole or cut, columns, rows, first row.

    files -> check_files (row count or UserError) -> column_names -> first_row

Reads footers, headers, first and last lines; never the rows themselves (a small JSON list excepted), so damage in the
middle of a file shows later, when its rows are read. Needs pyarrow, not the datasets library. Knows nothing of the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlinf_vlm.data.json_rows import check_rows, first_rows
from rlinf_vlm.types import UserError

WHOLE_JSON_BYTES = 50 << 20
"""A JSON list up to this size is parsed whole."""
JSON_ROWS_FOR_COLUMNS = 1000
"""Rows of each JSON file whose keys make up its columns: rows of JSON may leave keys out."""
READ_ERRORS = (ValueError, OSError, pa.ArrowException)
"""What pyarrow, json and the file system raise for a file that is not what its name says."""


def check_files(files: Sequence[Path], key: str) -> int | None:
    """The number of rows of all files, or None where counting them would mean reading them.

    Raises UserError that names ``key`` (such as data.train_data_paths) and the file: a file that is cut or not of its
    kind, no row in any file.
    """
    counts = [_read(file, key, _rows) for file in files]
    if all(count == 0 for count in counts):
        raise UserError(f"{key}: no rows in {_names(files)}; give files with rows")
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def check_file_columns(files: Sequence[Path], key: str, columns: Sequence[str]) -> None:
    """Every parquet or arrow file has ``columns``. Raises UserError that names ``key``, the file and the column."""
    for file in files:
        schema = _read(file, key, _schema_names)
        missing = [column for column in columns if schema is not None and column not in schema]
        if missing:
            raise UserError(
                f"{key}: {file} has no column {missing[0]!r} (its columns: {', '.join(schema)}); leave the file out, "
                "or name the right column"
            )


def count_rows(file: Path) -> int:
    """Rows of a parquet or arrow file."""
    if file.suffix.lower() == ".parquet":
        return pq.read_metadata(file).num_rows
    # Walks the headers of all batches, which a memory map makes cheap; a cut file fails at its last batch.
    with pa.memory_map(str(file)) as stream:
        return sum(batch.num_rows for batch in _arrow_batches(stream))


def column_names(files: Sequence[Path], key: str) -> tuple[str, ...]:
    """The columns: of the first file's schema; for JSON, of all keys in the first rows of every file."""
    schema = _read(files[0], key, _schema_names)
    if schema is not None:
        return schema
    return tuple(dict.fromkeys(name for file in files for name in _read(file, key, _json_keys)))


def first_row(files: Sequence[Path], key: str) -> Mapping[str, Any]:
    """The first row, images undecoded, as plain Python. Raises UserError when there is none."""
    for file in files:
        row = _read(file, key, _first_row)
        if row is not None:
            return row
    raise UserError(f"{key}: no rows in {_names(files)}; give files with rows")


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error's text on one line, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}..."


def _read(file: Path, key: str, read: Callable[[Path], Any]) -> Any:
    """What ``read`` returns; what it raises as a UserError that names the file."""
    try:
        return read(file)
    except PermissionError as error:
        raise UserError(f"{key}: {file} must not be read ({error.strerror}); change its permissions") from error
    except READ_ERRORS as error:
        kind = file.suffix.lower().removeprefix(".")
        raise UserError(
            f"{key}: {file} is cut or not a {kind} file ({one_line(error)}); write or download it again"
        ) from error


def _rows(file: Path) -> int | None:
    if file.suffix.lower() in (".json", ".jsonl"):
        return check_rows(file, whole=file.stat().st_size < WHOLE_JSON_BYTES)
    return count_rows(file)


def _schema_names(file: Path) -> tuple[str, ...] | None:
    """Columns by the file's own schema; None for JSON, which has none."""
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return tuple(pq.read_schema(file).names)
    if suffix == ".arrow":
        with pa.memory_map(str(file)) as stream:
            return tuple(_arrow_reader(stream).schema.names)
    return None


def _json_keys(file: Path) -> list[str]:
    return [name for row in first_rows(file, JSON_ROWS_FOR_COLUMNS) for name in row]


def _first_row(file: Path) -> Mapping[str, Any] | None:
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        with pq.ParquetFile(file, memory_map=True, pre_buffer=False) as parquet:
            return next((row for batch in parquet.iter_batches(batch_size=1) for row in batch.to_pylist()), None)
    if suffix == ".arrow":
        with pa.memory_map(str(file)) as stream:
            return next((row for batch in _arrow_batches(stream) for row in batch.slice(0, 1).to_pylist()), None)
    return next(iter(first_rows(file, 1)), None)


def _arrow_reader(stream: pa.NativeFile) -> Any:
    """Of either layout: the stream that the datasets library writes, or the file with a footer."""
    try:
        return pa.ipc.open_stream(stream)
    except (ValueError, OSError):
        stream.seek(0)
        return pa.ipc.open_file(stream)


def _arrow_batches(stream: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    reader = _arrow_reader(stream)
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        return (reader.get_batch(index) for index in range(reader.num_record_batches))
    return iter(reader)


def _names(files: Sequence[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
