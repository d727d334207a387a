"""Small data files of every kind, and the check that a mistake with them is told in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rlinf_vlm.types import UserError

KEY = "data.train_data_paths"


def png(grey: int) -> bytes:
    stream = BytesIO()
    Image.new("RGB", (4, 3), (grey, grey, grey)).save(stream, "PNG")
    return stream.getvalue()


def robo_rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "question": f"question {index}",
            "choices": "['a cup', 'a pan']",
            "correct_answer": index % 2,
            "image": {"bytes": png(index), "path": f"{index}.png"},
        }
        for index in range(first, first + count)
    ]


def write_parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def write_with_features(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Parquet whose schema says that ``image`` is an image and ``frames`` a list of them, as on the hub."""
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    features = Features({"question": Value("string"), "image": ImageFeature(), "frames": List(ImageFeature())})
    table = Dataset.from_list(rows, features=features).data.table
    pq.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), path)
    return path


def write_arrow(path: Path, rows: list[dict[str, Any]], stream: bool = True, batch: int = 2) -> Path:
    table = pa.Table.from_pylist(rows)
    open_writer = pa.ipc.new_stream if stream else pa.ipc.new_file
    with open_writer(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return path


def write_lines(path: Path, rows: Sequence[Any], end: str = "\n") -> Path:
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode())
    return path


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def failure(act: Callable[..., Any], *args: Any) -> str:
    """The text of the UserError that ``act`` raises: one line that begins with the key."""
    with pytest.raises(UserError) as caught:
        act(*args)
    text = str(caught.value)
    assert text.startswith(KEY) and "\n" not in text
    return text


def cut(path: Path, keep: float = 0.5) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


FEATURE_ROWS: list[dict[str, Any]] = [
    {"question": "a", "image": {"bytes": png(1), "path": "1.png"}, "frames": []},
    {"question": "b", "image": None, "frames": [{"bytes": png(2), "path": None}, {"bytes": None, "path": "3.png"}]},
]
