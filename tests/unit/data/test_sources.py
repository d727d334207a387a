"""Tables: every row as written, from where, in one process and in several."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from rlinf_vlm.data.images import load_image
from rlinf_vlm.data.integrity import check_files
from rlinf_vlm.data.sources import Table, open_table
from rlinf_vlm.types import RowError
from tests.unit.data.data_files import (
    FEATURE_ROWS,
    KEY,
    failure,
    robo_rows,
    write_arrow,
    write_lines,
    write_parquet,
    write_with_features,
)


def test_a_parquet_table_gives_rows_with_images_undecoded(tmp_path: Path) -> None:
    path = write_with_features(tmp_path / "a.parquet", FEATURE_ROWS)
    table = open_table(str(path), KEY, cache_dir=tmp_path / "cache")
    assert [table[index] for index in range(len(table))] == FEATURE_ROWS
    assert load_image(table[0]["image"], table.folder_of(0)).getpixel((0, 0)) == (1, 1, 1)


def test_only_the_chosen_columns_are_read(tmp_path: Path) -> None:
    rows = [{"q": "a", "a": 1, "big": "x" * 100_000}, {"q": "b", "a": 2, "big": "y" * 100_000}]
    write_parquet(tmp_path / "a.parquet", rows)
    write_arrow(tmp_path / "a.arrow", rows)
    write_lines(tmp_path / "a.jsonl", rows)
    cache = tmp_path / "cache"
    for suffix in ("parquet", "arrow", "jsonl"):
        table = open_table(f"{tmp_path}/a.{suffix}", KEY, columns=["a", "q", "a"], cache_dir=cache)
        assert [table[index] for index in range(2)] == [{"a": 1, "q": "a"}, {"a": 2, "q": "b"}], suffix
    mapped = sum(path.stat().st_size for path in (cache / "parquet").rglob("*.arrow"))
    assert 0 < mapped < 10_000, "the big column is not in the cache"
    assert "has no column 'z'" in failure(open_table, f"{tmp_path}/a.parquet", KEY, ["z"], cache)


def three_files(root: Path, suffix: str) -> list[tuple[str, int, str]]:
    """Files of 2, 3 and 1 rows in two folders; for each row of the table its file, row in the file and question."""
    expected = []
    for name, count in (("a/one", 2), ("a/two", 3), ("b/three", 1)):
        path = root / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"question": f"{name} {row}", "image": f"{row}.png"} for row in range(count)]
        if suffix == "parquet":
            write_parquet(path, rows, row_group_size=2)
        elif suffix == "arrow":
            write_arrow(path, rows)
        elif suffix == "json":
            path.write_text(json.dumps(rows, indent=1))
        else:
            write_lines(path, rows)
        expected += [(str(path), row, f"{name} {row}") for row in range(count)]
    return expected


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "json", "jsonl"])
def test_rows_of_three_files_know_where_they_are_from(suffix: str, tmp_path: Path) -> None:
    expected = three_files(tmp_path / "data", suffix)
    table = open_table(str(tmp_path / "data"), KEY, cache_dir=tmp_path / "cache")
    assert len(table) == 6
    assert [(*table.locate(index), table[index]["question"]) for index in range(6)] == expected
    assert [table.folder_of(index) for index in range(6)] == [Path(file).parent for file, _, _ in expected]
    for index in (-1, 6):
        with pytest.raises(IndexError, match="of 6 rows"):
            table[index]
        with pytest.raises(IndexError, match="of 6 rows"):
            table.locate(index)


def test_the_order_of_a_list_is_the_order_of_the_rows(tmp_path: Path) -> None:
    three_files(tmp_path, "parquet")
    table = open_table([f"{tmp_path}/b", f"{tmp_path}/a"], KEY, cache_dir=tmp_path / "cache")
    assert [table[index]["question"] for index in (0, 1)] == ["b/three 0", "a/one 0"]
    assert table.locate(1) == (f"{tmp_path}/a/one.parquet", 0)


def test_names_that_read_like_patterns(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "run[1] *x" / "a?.parquet", [{"q": "a"}])
    assert open_table(str(path), KEY, cache_dir=tmp_path / "cache")[0] == {"q": "a"}
    assert open_table(str(path.parent), KEY, cache_dir=tmp_path / "cache")[0] == {"q": "a"}


def test_a_rewritten_file_is_read_anew(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"q": "old"}])
    assert open_table(str(path), KEY, cache_dir=tmp_path / "cache")[0] == {"q": "old"}
    write_parquet(path, [{"q": "new"}, {"q": "newer"}])
    os.utime(path, (1, 1))
    table = open_table(str(path), KEY, cache_dir=tmp_path / "cache")
    assert [table[index]["q"] for index in range(len(table))] == ["new", "newer"]


MIXED_ROWS = [
    {"messages": [{"role": "user", "content": "<image>ä"}], "image": "a.png"},
    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "ö"}]}]},
    {"messages": [], "image": None, "extra": {"x": [1, "two", None]}},
]


@pytest.mark.parametrize("layout", ["lines", "blank lines", "windows", "no end", "list", "indented", "with mark"])
def test_json_rows_come_back_as_they_were_written(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    lines = [json.dumps(row, ensure_ascii=False) for row in MIXED_ROWS]
    content = {
        "lines": "\n".join(lines) + "\n",
        "blank lines": "\n\n" + "\n \n".join(lines) + "\n\n\n",
        "windows": "\r\n".join(lines) + "\r\n",
        "no end": "\n".join(lines),
        "list": json.dumps(MIXED_ROWS, ensure_ascii=False),
        "indented": "\r\n ".join(json.dumps(MIXED_ROWS, indent=2, ensure_ascii=False).split("\n")),
        "with mark": "\ufeff" + json.dumps(MIXED_ROWS, ensure_ascii=False),
    }[layout]
    path.write_bytes(content.encode())
    check_files([path], KEY)
    table = open_table(str(path), KEY)
    assert [table[index] for index in range(len(table))] == MIXED_ROWS
    chosen = open_table(str(path), KEY, columns=["image"])
    assert [chosen[index] for index in range(3)] == [{"image": "a.png"}, {"image": None}, {"image": None}]


def test_a_bad_line_in_the_middle_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": 1}\n{"q": \n[3]\n{"q": 4}\n')
    table = open_table(str(path), KEY)
    assert (len(table), table[0], table[3]) == (4, {"q": 1}, {"q": 4})
    for index in (1, 2):
        with pytest.raises(RowError, match="not a JSON object"):
            table[index]
        assert table.locate(index) == (str(path), index)


def test_files_that_do_not_agree_are_a_user_error(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"q": "a"}])
    write_parquet(tmp_path / "b.parquet", [{"q": {"x": 1}}])
    text = failure(open_table, str(tmp_path), KEY, ["q"], tmp_path / "cache")
    assert "do not load as one table" in text
    (tmp_path / "c.json").write_text('[{"q": 1}, {"q": ')
    assert "do not parse" in failure(open_table, f"{tmp_path}/c.json", KEY)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_table_pickles(suffix: str, tmp_path: Path) -> None:
    expected = three_files(tmp_path / "data", suffix)
    table = open_table(str(tmp_path / "data"), KEY, cache_dir=tmp_path / "cache")
    data = pickle.dumps(table)
    assert len(data) < 20_000
    copy = pickle.loads(data)
    assert [(*copy.locate(index), copy[index]["question"]) for index in range(6)] == expected


def questions(table: Table) -> list[str]:
    return [table[index]["question"] for index in range(len(table))]


def load_questions(folder: Path, cache: Path) -> list[str]:
    return questions(open_table(str(folder), KEY, cache_dir=cache))


@pytest.fixture
def spawned() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


def test_two_processes_load_the_same_files_at_once(tmp_path: Path, spawned: ProcessPoolExecutor) -> None:
    for number in range(3):
        write_parquet(tmp_path / f"data/{number}.parquet", robo_rows(40, first=40 * number))
    expected = [f"question {index}" for index in range(120)]
    loading = [spawned.submit(load_questions, tmp_path / "data", tmp_path / "cache") for _ in range(2)]
    assert [future.result(timeout=120) for future in loading] == [expected, expected]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_forked_processes_read_the_same_table(suffix: str, tmp_path: Path) -> None:
    expected = [question for _, _, question in three_files(tmp_path / "data", suffix)]
    table = open_table(str(tmp_path / "data"), KEY, cache_dir=tmp_path / "cache")
    assert questions(table) == expected
    context = get_context("fork")
    results = context.SimpleQueue()
    readers = [context.Process(target=lambda: results.put(questions(table))) for _ in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(timeout=60)
    assert [reader.exitcode for reader in readers] == [0, 0]
    assert [results.get() for _ in readers] == [expected, expected]
