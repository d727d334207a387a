"""What is found out before a run: cut files, rows, columns, the first row."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlinf_vlm.data.integrity import check_files, column_names
from rlinf_vlm.data.kinds import KindOptions
from rlinf_vlm.data.kinds.robo2vlm import Robo2VLMSFT
from rlinf_vlm.data.sources import inspect_paths, peek
from rlinf_vlm.types import UserError
from tests.unit.data.data_files import (
    KEY,
    cut,
    failure,
    robo_rows,
    write_arrow,
    write_lines,
    write_parquet,
)

ROBO = Robo2VLMSFT(KindOptions(choice_key="choices", answer_key="correct_answer"))


def test_rows_are_counted_where_that_is_cheap(tmp_path: Path) -> None:
    rows = robo_rows(3)
    plain = [{"q": "a"}, {"q": "b"}]
    files = [write_parquet(tmp_path / "a.parquet", rows), write_parquet(tmp_path / "b.parquet", rows)]
    assert check_files(files, KEY) == 6
    assert check_files([write_arrow(tmp_path / "a.arrow", rows)], KEY) == 3
    assert check_files([write_arrow(tmp_path / "b.arrow", rows, stream=False)], KEY) == 3
    (tmp_path / "a.json").write_text(json.dumps(plain))
    assert check_files([tmp_path / "a.json"], KEY) == 2
    assert check_files([write_lines(tmp_path / "a.jsonl", plain)], KEY) is None


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    rows = robo_rows(6)
    (tmp_path / "a.json").write_text(json.dumps([{"q": "a"}] * 9))
    for whole in (
        write_parquet(tmp_path / "a.parquet", rows),
        write_arrow(tmp_path / "a.arrow", rows),
        write_arrow(tmp_path / "b.arrow", rows, stream=False),
        write_lines(tmp_path / "a.jsonl", [{"q": "first"}, {"q": "last one, which is long"}]),
        tmp_path / "a.json",
    ):
        check_files([whole], KEY)
        text = failure(check_files, [cut(whole, 0.9)], KEY)
        assert f"{whole} is cut or not a {whole.suffix[1:]} file" in text


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    for suffix in ("parquet", "arrow", "json", "jsonl"):
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(b"<html>not found</html>" * 9)
        assert f"{path} is cut or not a {suffix} file" in failure(check_files, [path], KEY)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"q": 1}\n3\n', "the last line is not a JSON object: a row is an object {...}, not a int"),
        ('{\n"q": 1\n}\n', "line 1 is not a JSON object"),
        ('[{"q": 1}, 3]', "item 1 of the list is a int, not an object"),
    ],
)
def test_json_that_holds_no_rows_is_named(content: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    assert text in failure(check_files, [path], KEY)


def test_files_without_rows(tmp_path: Path) -> None:
    empty = [
        write_lines(tmp_path / "a.jsonl", []),
        write_lines(tmp_path / "b.json", [[]]),
        tmp_path / "c.parquet",
        tmp_path / "d.arrow",
    ]
    schema = pa.schema([("question", pa.string())])
    pq.write_table(schema.empty_table(), empty[2])
    with pa.ipc.new_stream(str(empty[3]), schema):
        pass
    for path in empty:
        assert f"no rows in {path}" in failure(check_files, [path], KEY)
    full = write_parquet(tmp_path / "full.parquet", [{"question": "?"}])
    assert check_files([empty[2], full], KEY) == 1
    assert peek((empty[2], full), KEY) == {"question": "?"}
    assert "no rows" in failure(peek, (empty[0],), KEY)


def test_large_json_is_checked_at_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlinf_vlm.data.integrity.WHOLE_JSON_BYTES", 10)
    monkeypatch.setattr("rlinf_vlm.data.json_rows.HEAD_BYTES", 16)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"q": "ä" * 50}, {"q": "b"}], ensure_ascii=False))
    assert check_files([path], KEY) is None
    assert column_names([path], KEY) == ("q",)
    assert peek((path,), KEY) == {"q": "ä" * 50}
    assert "does not end with ']'" in failure(check_files, [cut(path, 0.9)], KEY)


def test_peek_gives_the_first_row_of_every_kind_of_file(tmp_path: Path) -> None:
    rows = robo_rows(3)
    for path in (
        write_parquet(tmp_path / "a.parquet", rows),
        write_arrow(tmp_path / "a.arrow", rows),
        write_arrow(tmp_path / "b.arrow", rows, stream=False),
    ):
        assert peek((path,), KEY) == rows[0]
        assert column_names([path], KEY) == ("question", "choices", "correct_answer", "image")
    uneven = [{"q": 1}, {"q": "two", "a": [1, "x"]}]
    (tmp_path / "a.json").write_text(json.dumps(uneven))
    for path in (tmp_path / "a.json", write_lines(tmp_path / "a.jsonl", uneven)):
        assert peek((path,), KEY) == {"q": 1}
        assert column_names([path], KEY) == ("q", "a")


def test_inspect_paths_checks_files_and_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", robo_rows(3))
    assert inspect_paths(None, KEY, ROBO) is None
    assert inspect_paths(str(tmp_path), KEY, ROBO) == 3
    other = [{**row, "options": row["choices"]} for row in robo_rows(2)]
    for row in other:
        del row["choices"]
    write_parquet(tmp_path / "b.parquet", other)
    text = failure(inspect_paths, str(tmp_path), KEY, ROBO)
    assert f"{tmp_path}/b.parquet has no column 'choices'" in text
    with pytest.raises(UserError, match=r"data\.choice_key: no column 'choices' in .*b\.parquet, which has: question"):
        inspect_paths(f"{tmp_path}/b.parquet", KEY, ROBO)


def test_looking_files_over_imports_neither_datasets_nor_torch(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", robo_rows(2))
    code = (
        "import sys\n"
        "from rlinf_vlm.data.kinds import KindOptions\n"
        "from rlinf_vlm.data.kinds.robo2vlm import Robo2VLMSFT\n"
        "from rlinf_vlm.data.sources import inspect_paths\n"
        "kind = Robo2VLMSFT(KindOptions(choice_key='choices', answer_key='correct_answer'))\n"
        f"assert inspect_paths({str(tmp_path)!r}, 'data.train_data_paths', kind) == 2\n"
        "heavy = {'datasets', 'torch', 'transformers', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
