r"""Preparing geometry3k: every layout in, chats with a boxed answer out, and one line for each mistake."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features
from PIL import Image

from rlinf_vlm.config.schema import DataConfig
from rlinf_vlm.data.kinds import make_kind
from tests.unit.data.builders import png
from toolkits.data.prepare_geo3k import main

ROOT = Path(__file__).parents[3]
RED = png()["bytes"]


def rows(images: Any, count: int = 3) -> list[dict[str, Any]]:
    return [{"problem": f"<image>Find $x_{n}$.", "answer": f"{n}\\sqrt{{3}}", "images": images} for n in range(count)]


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(content), path)
    return path


def pixels(image: dict[str, Any]) -> bytes:
    return Image.open(io.BytesIO(image["bytes"])).convert("RGB").tobytes()


def test_splits_become_chats(tmp_path: Path) -> None:
    sources = {split: write(tmp_path / f"{split}.parquet", rows([png()])) for split in ("train", "validation", "test")}
    arguments = [part for split, path in sources.items() for part in (f"--{split}", str(path))]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "test.parquet",
        "train.parquet",
        "validation.parquet",
    ]
    made = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert made[2] == {
        "problem": "<image>Find $x_2$.",
        "answer": r"2\sqrt{3}",
        "images": [png()],
        "messages": [
            {"role": "user", "content": "<image>Find $x_2$."},
            {"role": "assistant", "content": r"Answer: \boxed{2\sqrt{3}}"},
        ],
    }
    features = Features.from_arrow_schema(pq.read_schema(tmp_path / "out" / "train.parquet"))
    assert type(features["images"].feature).__name__ == "Image"


@pytest.mark.parametrize(
    "images",
    [
        [png()],
        [{"bytes": None, "path": "red.png"}],
        ["red.png"],
        ["data:image/png;base64," + base64.b64encode(RED).decode()],
    ],
    ids=["bytes", "path in a struct", "path", "data URL"],
)
def test_every_layout_holds_its_pictures_afterwards(images: list[Any], tmp_path: Path) -> None:
    source = write(tmp_path / "in" / "train.parquet", rows(images))
    (source.parent / "red.png").write_bytes(RED)
    assert main(["--train", str(source), "--out", str(tmp_path / "out")]) == 0
    (source.parent / "red.png").unlink()
    for row in pq.read_table(tmp_path / "out" / "train.parquet").to_pylist():
        assert [pixels(image) for image in row["images"]] == [pixels(png())]


def test_json_lines_and_columns_of_other_names(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    (tmp_path / "red.png").write_bytes(RED)
    source.write_text(json.dumps({"question": "What?", "gold": 20, "image": "red.png"}) + "\n")
    names = ["--prompt-key", "question", "--answer-key", "gold", "--image-key", "image"]
    assert main(["--test", str(source), "--out", str(tmp_path / "out"), *names]) == 0
    (row,) = pq.read_table(tmp_path / "out" / "test.parquet").to_pylist()
    assert (row["problem"], row["answer"], len(row["images"])) == ("What?", "20", 1)
    assert row["messages"][1]["content"] == r"Answer: \boxed{20}"


def test_both_ways_of_training_read_the_same(tmp_path: Path) -> None:
    source = write(tmp_path / "train.parquet", rows([png()], 300))
    assert main(["--train", str(source), "--out", str(tmp_path / "out")]) == 0
    path = tmp_path / "out" / "train.parquet"
    base = {"train_data_paths": str(path), "image_keys": ["images"]}
    chat = make_kind(DataConfig.model_validate({**base, "dataset_name": "messages", "messages_key": "messages"}))
    geo3k = make_kind(DataConfig.model_validate({**base, "dataset_name": "geo3k"}))
    table = pq.read_table(path).to_pylist()
    assert len(table) == 300
    assert all(chat.convert(row).messages == geo3k.convert(row).messages for row in table)


BROKEN = {**png(), "bytes": RED[:60]}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"problem": "<image>?", "answer": "1"}], "--image-key: no column 'images' in"),
        ([{"question": "?", "answer": "1", "images": []}], "--prompt-key: no column 'problem' in"),
        (rows([png()]) + rows([BROKEN], 1), "train.parquet row 3: image of 60 bytes does not decode"),
        (rows([]), "train.parquet row 0: the text has 1 <image> placeholders but the row has 0 images; mend or remove"),
        (rows([png(), png()]), "the text has 1 <image> placeholders but the row has 2 images"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(
    content: list[dict[str, Any]], text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write(tmp_path / "train.parquet", content)
    assert main(["--train", str(source), "--out", str(tmp_path / "out")]) == 2
    (message,) = [record.getMessage() for record in caplog.records if record.name == "prepare_geo3k"]
    assert text in message and "\n" not in message
    assert not list((tmp_path / "out").glob("*")), "half a file is left"


def test_nothing_to_prepare(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["--out", str(tmp_path)]) == 2
    assert "give --train, --validation or --test" in caplog.text


def test_the_command_shows_help_from_anywhere(tmp_path: Path) -> None:
    script = ROOT / "toolkits" / "data" / "prepare_geo3k.py"
    done = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0 and "--validation" in done.stdout, done.stderr
