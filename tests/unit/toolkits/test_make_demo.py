"""The demo: tables that datasets reads, a tokenizer without holes, a folder that loads, how it is put in place."""

from __future__ import annotations

import ast
import io
import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from toolkits.data import demo_folder, demo_model, demo_tables, make_demo
from toolkits.data.geometry_demo import GeometrySettings

ROWS = 60
ANSWERS = [answer for kind in demo_tables.KINDS for answer in kind]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo of ROWS rows a split."""
    out = tmp_path_factory.mktemp("made") / "demo"
    assert make_demo.make_demo(out, max_rows=ROWS)
    return out


@pytest.fixture(scope="module")
def processor(demo: Path) -> Any:
    return AutoProcessor.from_pretrained(demo / "model")


@pytest.fixture(scope="module")
def train_rows() -> list[demo_tables.VqaRow]:
    return demo_tables.read_split("train")


def test_rows_of_one_image_are_adjacent_and_none_is_lost(train_rows: list[demo_tables.VqaRow]) -> None:
    ids = [row.image_id for row in train_rows]
    changes = sum(a != b for a, b in pairwise(ids))
    assert len(ids) == 38575
    assert len(set(ids)) == 4000
    assert changes == 3999
    first = train_rows[0]
    assert (first.question, first.answer) == ("what is the blue shape?", "rectangle")
    assert Image.open(io.BytesIO(first.png)).size == (64, 64)


def test_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="unknown split 'val'"):
        demo_tables.read_split("val")


def test_the_thirteen_answers_are_the_kinds(train_rows: list[demo_tables.VqaRow]) -> None:
    assert len(ANSWERS) == 13
    assert {row.answer for row in train_rows} == set(ANSWERS)


def test_choices_have_one_kind_and_the_right_answer_stands_anywhere() -> None:
    rng = random.Random(1)
    places: Counter[int] = Counter()
    for _ in range(4000):
        choices, index = demo_tables.choices_for("teal", rng)
        assert choices[index] == "teal"
        assert len(set(choices)) == len(choices) == 4
        assert set(choices) <= set(demo_tables.COLOURS)
        places[index] += 1
    # 1,000 expected a place, standard deviation 27: five of them.
    assert set(places) == {0, 1, 2, 3}
    assert max(abs(count - 1000) for count in places.values()) < 137


@pytest.mark.parametrize(
    ("answer", "kind"), [("no", {"yes", "no"}), ("circle", {"circle", "rectangle", "triangle"})], ids=["no", "circle"]
)
def test_small_kinds_are_taken_whole(answer: str, kind: set[str]) -> None:
    choices, index = demo_tables.choices_for(answer, random.Random(0))
    assert set(choices) == kind
    assert choices[index] == answer


def test_answer_of_no_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="'purple'"):
        demo_tables.choices_for("purple", random.Random(0))


@pytest.mark.parametrize("split", ["train", "test"])
def test_messages_table(demo: Path, split: str) -> None:
    path = demo / "easy_vqa" / "messages" / f"{split}.parquet"
    features = Features.from_arrow_schema(pq.read_schema(path))
    assert {name: type(feature).__name__ for name, feature in features.items()} == {
        "question": "Value",
        "answer": "Value",
        "image": "Image",
        "image_id": "Value",
    }
    data = Dataset.from_parquet(str(path), cache_dir=str(demo.parent / "cache"))
    assert len(data) == ROWS
    assert data[0]["image"].size == (64, 64)
    undecoded = data.cast_column("image", type(features["image"])(decode=False))[0]["image"]
    assert undecoded["bytes"][:4] == b"\x89PNG"
    assert undecoded["path"] == f"{data[0]['image_id']}.png"


def test_robo2vlm_table_matches_the_messages_table(demo: Path) -> None:
    path = demo / "easy_vqa" / "robo2vlm" / "train.parquet"
    schema = pq.read_schema(path)
    assert schema.names == ["id", "question", "choices", "correct_answer", "image"]
    assert str(schema.field("correct_answer").type) == "int64"
    rows = pq.read_table(path).to_pylist()
    plain = pq.read_table(demo / "easy_vqa" / "messages" / "train.parquet").to_pylist()
    assert len(rows) == ROWS
    assert len({row["id"] for row in rows}) == ROWS
    for row, twin in zip(rows, plain, strict=True):
        assert isinstance(row["choices"], str)
        assert ast.literal_eval(row["choices"])[row["correct_answer"]] == twin["answer"]
        assert (row["question"], row["image"]) == (twin["question"], twin["image"])


def test_row_groups_are_moderate(tmp_path: Path) -> None:
    row = demo_tables.VqaRow(image_id=3, question="q", answer="yes", png=b"png")
    demo_tables.write_parquet(demo_tables.messages_columns([row] * 4500), tmp_path / "t.parquet")
    metadata = pq.ParquetFile(tmp_path / "t.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [2000, 2000, 500]


def test_answers_are_one_token_where_the_assistant_starts(processor: Any) -> None:
    tokenizer = processor.tokenizer
    start = tokenizer.encode("<|im_start|>assistant\n")
    for answer in ANSWERS:
        ids = tokenizer.encode(f"<|im_start|>assistant\n{answer}<|im_end|>")
        assert ids[: len(start)] == start
        assert [tokenizer.decode([token]) for token in ids[len(start) :]] == [answer, "<|im_end|>"]


@pytest.mark.parametrize(
    "text",
    ["is there a teal shape?", "".join(map(chr, range(32, 127))), "naïve 日本語 😀\n\ttab", "\\boxed{\\frac{1}{2}}"],
    ids=["question", "ascii", "utf8", "maths"],
)
def test_any_text_survives_the_tokenizer(processor: Any, text: str) -> None:
    ids = processor.tokenizer.encode(text)
    assert ids
    assert processor.tokenizer.decode(ids) == text


def test_special_tokens_are_single_and_last(processor: Any) -> None:
    tokenizer = processor.tokenizer
    size = len(tokenizer)
    assert 320 <= size <= 600
    ids = [tokenizer.encode(token) for token in demo_model.SPECIAL_TOKENS]
    assert ids == [[size - len(ids) + place] for place in range(len(ids))]
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"


def test_vocabulary_too_small_is_named() -> None:
    with pytest.raises(ValueError, match="vocab_size=200 is below 263"):
        demo_model.build_tokenizer(["a"], 200)


def test_chat_template_and_image_tokens(processor: Any) -> None:
    shape = demo_model.DemoShape()
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": "yes"},
    ]
    text = processor.apply_chat_template(messages)
    assert text == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>what?<|im_end|>\n"
        "<|im_start|>assistant\nyes<|im_end|>\n"
    )
    prompt = processor.apply_chat_template(messages[:1], add_generation_prompt=True)
    assert text.startswith(prompt)
    assert prompt.endswith("<|im_start|>assistant\n")
    inputs = processor(text=[text], images=[Image.new("RGB", (64, 64))], return_tensors="pt")
    side = shape.image_side // 14
    assert inputs["image_grid_thw"].tolist() == [[1, side, side]]
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) == shape.image_tokens == (side // 2) ** 2


def test_model_folder_loads_and_answers_with_finite_scores(demo: Path, processor: Any) -> None:
    model = AutoModelForImageTextToText.from_pretrained(demo / "model")
    text = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>is there a circle?<|im_end|>\n"
    images = [Image.new("RGB", (64, 64), "white"), Image.new("RGB", (64, 64), "red")]
    inputs = processor(text=[text, text], images=images, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape == (2, inputs["input_ids"].shape[1], len(processor.tokenizer))
    assert torch.isfinite(logits).all()
    assert not torch.allclose(logits[0, -1], logits[1, -1]), "the image does not reach the last token"
    assert model.dtype == torch.float32
    assert model.num_parameters() == json.loads((demo / "demo.json").read_text())["parameters"]
    tokenizer = processor.tokenizer
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])


def test_weights_follow_the_seed_and_leave_the_random_state(processor: Any) -> None:
    config = demo_model.build_config(processor.tokenizer, demo_model.DemoShape())
    before = torch.get_rng_state()
    first, again, other = (demo_model.build_model(config, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "model.visual.patch_embed.proj.weight"
    assert not torch.equal(first[name], other[name])


def test_complete_demo_is_left_alone_unless_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def write(folder: Path, *, max_rows: int | None) -> None:
        written.append(folder)
        (folder / "content").write_text(f"{len(written)}")
        (folder / demo_folder.MARKER).write_text("{}")

    monkeypatch.setattr(make_demo, "write_demo", write)
    out = tmp_path / "demo"
    assert make_demo.make_demo(out) is True
    assert make_demo.make_demo(out) is False
    assert (out / "content").read_text() == "1"
    assert make_demo.make_demo(out, force=True) is True
    assert (out / "content").read_text() == "2"
    assert out not in written, "written in place: a cut-off run would leave half a demo"
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path, *, max_rows: int | None) -> None:
        (folder / "half").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(make_demo, "write_demo", write)
    with pytest.raises(OSError, match="disk full"):
        make_demo.make_demo(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("force", [False, True])
def test_folder_of_other_things_is_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not a demo"):
        make_demo.make_demo(tmp_path, force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_command_exits_2_on_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert make_demo.main(["--out", str(tmp_path)]) == 2


# the geometry demo

GEOMETRY = GeometrySettings(train_rows=47, test_rows=47)


@pytest.fixture(scope="module")
def geometry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A geometry demo of one row a kind and split."""
    out = tmp_path_factory.mktemp("drawn") / "demo"
    assert make_demo.make_geometry(out, GEOMETRY)
    return out / "geometry"


def test_geometry_has_tables_a_model_and_a_marker(geometry: Path) -> None:
    assert sorted(path.name for path in geometry.iterdir()) == ["demo.json", "model", "test.parquet", "train.parquet"]
    for split in ("train", "test"):
        table = pq.read_table(geometry / f"{split}.parquet")
        assert table.column_names == ["problem", "answer", "taught", "images", "messages", "kind", "level"]
        assert table.num_rows == 47
    state = json.loads((geometry / "demo.json").read_text())
    assert (state["train_rows"], state["side"], state["max_level"], state["seed"]) == (47, 140, 4, 0)


def test_geometry_model_reads_its_problems(geometry: Path) -> None:
    processor = AutoProcessor.from_pretrained(geometry / "model")
    rows = pq.read_table(geometry / "train.parquet").to_pylist()
    for row in rows:
        text = row["messages"][1]["content"]
        ids = processor.tokenizer.encode(text)
        assert processor.tokenizer.decode(ids) == text
        assert len(ids) <= 32, f"{text!r} takes {len(ids)} tokens"
        assert len(processor.tokenizer.encode(row["problem"].removeprefix("<image>"))) <= 12
    image = Image.open(io.BytesIO(rows[0]["images"][0]["bytes"]))
    inputs = processor(text=["<|vision_start|><|image_pad|><|vision_end|>?"], images=[image], return_tensors="pt")
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) == 25, "the picture is not seen as it is"


def test_each_demo_leaves_the_other_alone(geometry: Path) -> None:
    out = geometry.parent
    made = (geometry / "train.parquet").read_bytes()
    assert make_demo.make_geometry(out, GEOMETRY) is False
    assert make_demo.make_demo(out, max_rows=8) is True
    assert make_demo.make_demo(out, force=True, max_rows=9) is True
    assert json.loads((out / "demo.json").read_text())["train_rows"] == 9
    assert (geometry / "train.parquet").read_bytes() == made
    assert make_demo.make_geometry(out, GEOMETRY, force=True) is True
    assert (geometry / "train.parquet").read_bytes() == made, "the same seed gives other rows"
    assert json.loads((out / "demo.json").read_text())["train_rows"] == 9
    assert [path.name for path in out.parent.iterdir()] == ["demo"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--side", "100"], "--side=100: pictures with --given=picture are 140, 168, 196, 224 pixels wide"),
        (
            ["--given", "text", "--side", "84"],
            "--side=84: pictures with --given=text are 112, 140, 168",
        ),
        (
            ["--kinds", "midline,circel"],
            "--kinds: 'circel' is no kind with --given=picture",
        ),
        (["--max-level", "5"], "--max-level=5: kinds have levels 1 to 4"),
        (["--test-rows", "0"], "--train-rows=4000 and --test-rows=0: both must be at least 1"),
    ],
)
def test_geometry_command_names_the_mistake(
    arguments: list[str], text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert make_demo.main(["geometry", "--out", str(tmp_path / "demo"), *arguments]) == 2
    assert text in caplog.text
    assert list(tmp_path.iterdir()) == []
