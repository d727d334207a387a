r"""geo3k and maye: rows written by hand in every layout that their files have, and what the renderer makes of them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from rlinf_vlm.config.schema import DataConfig
from rlinf_vlm.data.kinds import KindOptions, make_kind
from rlinf_vlm.data.kinds.geo3k import Geo3k
from rlinf_vlm.data.kinds.maye import Maye
from rlinf_vlm.data.kinds.messages import Messages
from rlinf_vlm.data.kinds.robo2vlm import Robo2VLMSFT
from rlinf_vlm.data.reading import BadRow, RowReader
from rlinf_vlm.data.rendering import Renderer, RenderOptions
from rlinf_vlm.data.sources import inspect_paths, open_table
from rlinf_vlm.types import IGNORE_INDEX, Conversation, ImagePart, Message, RowError, UserError
from tests.unit.data.builders import png, talk

IMAGE = ImagePart()
PLACES = {"prompt_key": "problem", "image_keys": ("images",)}
GEO = Geo3k(KindOptions(**PLACES))
RED = png()["bytes"]
DATA_URL = "data:image/png;base64," + base64.b64encode(RED).decode()


def geo_row(**changes: Any) -> dict[str, Any]:
    return {"problem": "<image>Find $x$.", "answer": r"5\sqrt{3}", "images": [png()], **changes}


def maye_row(**changes: Any) -> dict[str, Any]:
    row = {
        "question": "<image>What is $B C ?$",
        "answer": "20",
        "solution": r"$AC = 12$, so \boxed{20}",
        "id": "geometry3k_2948",
        "image": "pictures/2948.png",
    }
    return {**row, **changes}


def settings(**changes: Any) -> DataConfig:
    return DataConfig.model_validate({"train_data_paths": "x.parquet", **changes})


def renderer(processor: Any, **options: Any) -> Renderer:
    return Renderer(processor, lambda ids, images: torch.arange(len(ids)).expand(3, -1), RenderOptions(**options))


# what a row becomes


def test_geo3k_row_becomes_a_question_and_a_boxed_answer() -> None:
    assert GEO.convert(geo_row()) == Conversation(
        messages=(
            Message(role="user", parts=(IMAGE, "Find $x$.")),
            Message(role="assistant", parts=(r"Answer: \boxed{5\sqrt{3}}",)),
        ),
        images=(png(),),
        question="Find $x$.",
        answer=r"5\sqrt{3}",
    )


def test_maye_row_learns_the_solution_and_is_graded_by_the_answer() -> None:
    conversation = Maye(KindOptions(solution_key="solution")).convert(maye_row())
    assert conversation == Conversation(
        messages=(
            Message(role="user", parts=(IMAGE, "What is $B C ?$")),
            Message(role="assistant", parts=(r"$AC = 12$, so \boxed{20}",)),
        ),
        images=("pictures/2948.png",),
        question="What is $B C ?$",
        answer="20",
    )


@pytest.mark.parametrize("changes", [{"solution": None}, {"solution": ""}])
def test_maye_row_without_a_solution_learns_the_boxed_answer(changes: dict[str, Any]) -> None:
    conversation = Maye(KindOptions(solution_key="solution")).convert(maye_row(**changes))
    assert conversation.messages[-1].parts == (r"\boxed{20}",)
    unread = Maye(KindOptions()).convert(maye_row())
    assert unread.messages[-1].parts == (r"\boxed{20}",)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("270", "270"),
        (20, "20"),
        (np.int64(20), "20"),
        (6.45, "6.45"),
        (" 15\n", "15"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
    ],
)
def test_answers_are_kept_as_they_are_written(answer: Any, text: str) -> None:
    conversation = GEO.convert(geo_row(answer=answer))
    assert (conversation.answer, conversation.messages[-1].parts) == (text, (f"Answer: \\boxed{{{text}}}",))


@pytest.mark.parametrize(
    ("images", "count"),
    [
        ([png()], 1),
        (png(), 1),
        (np.array([png()], dtype=object), 1),
        ([{"bytes": None, "path": "a.png"}], 1),
        (["a.png"], 1),
        ("a.png", 1),
        ([DATA_URL], 1),
        (DATA_URL, 1),
        ([RED], 1),
        ([png(), DATA_URL], 2),
        ([], 0),
        (None, 0),
    ],
    ids=["structs", "struct", "array", "paths in structs", "paths", "path", "urls", "url", "bytes", "2", "0", "null"],
)
@pytest.mark.parametrize("placeholder", ["<image>", ""], ids=["placeholder", "none"])
def test_every_layout_of_images(images: Any, count: int, placeholder: str) -> None:
    conversation = GEO.convert(geo_row(problem=placeholder * count + "Find $x$.", images=images))
    assert conversation.messages[0].parts == (IMAGE,) * count + ("Find $x$.",)
    assert len(conversation.images) == count
    assert conversation.question == "Find $x$."


def test_images_stand_where_the_problem_has_them() -> None:
    row = geo_row(problem="Left <image>, right <image>: which is larger?", images=["a.png", "b.png"])
    conversation = GEO.convert(row)
    assert conversation.messages[0].parts == ("Left ", IMAGE, ", right ", IMAGE, ": which is larger?")
    assert conversation.images == ("a.png", "b.png")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"problem": "<image><image>?"}, "2 <image> placeholders but the row has 1 images"),
        ({"problem": "<image>?", "images": []}, "1 <image> placeholders but the row has 0 images"),
        ({"problem": None}, "'problem' holds null, not a text"),
        ({"answer": None}, "'answer' holds null, not a text or a number"),
        ({"answer": "  "}, "'answer' holds '  ', which is no answer to compare with"),
        ({"answer": ["5"]}, "'answer' holds ['5'], not a text or a number"),
    ],
)
def test_a_bad_geo3k_row_says_what_is_wrong(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(RowError) as caught:
        GEO.convert(geo_row(**changes))
    assert text in str(caught.value)


def test_a_bad_maye_row_says_what_is_wrong() -> None:
    kind = Maye(KindOptions(solution_key="solution"))
    with pytest.raises(RowError, match="'solution' holds 7, not a text"):
        kind.convert(maye_row(solution=7))
    row = maye_row()
    del row["solution"]
    with pytest.raises(RowError, match="no column 'solution'"):
        kind.convert(row)


# system prompt and suffix


@pytest.mark.parametrize(
    ("problem", "suffix", "parts"),
    [
        ("<image>Find $x$.", "Box it.", (IMAGE, "Find $x$.\nBox it.")),
        ("<image>Find $x$.", " Box it.", (IMAGE, "Find $x$. Box it.")),
        ("<image>Find $x$.", "\n\nBox it.", (IMAGE, "Find $x$.\n\nBox it.")),
        ("<image>Find $x$.\n", "Box it.", (IMAGE, "Find $x$.\nBox it.")),
        ("Find $x$ in <image>", "Box it.", ("Find $x$ in ", IMAGE, "Box it.")),
    ],
)
def test_the_suffix_follows_the_question(problem: str, suffix: str, parts: tuple[Any, ...]) -> None:
    kind = Geo3k(KindOptions(**PLACES, system_prompt="Be brief.", prompt_suffix=suffix))
    conversation = kind.convert(geo_row(problem=problem))
    assert conversation.messages[:2] == (
        Message(role="system", parts=("Be brief.",)),
        Message(role="user", parts=parts),
    )
    assert "Box it." not in conversation.question


def test_the_suffix_means_the_same_to_every_kind() -> None:
    def user_text(conversation: Conversation) -> str:
        turn = [message for message in conversation.messages if message.role == "user"][-1]
        return "".join(part for part in turn.parts if isinstance(part, str))

    options: dict[str, Any] = {"prompt_suffix": "Box it.", "image_keys": ()}
    robo = Robo2VLMSFT(KindOptions(choice_key="choices", **options))
    row = {"question": "What?", "choices": ["a", "b"], "answer": 0}
    assert user_text(robo.convert(row)) == "What?\nChoices:\nA. a\nB. b\nBox it."
    assert user_text(Messages(KindOptions(**options)).convert(row)) == "What?\nBox it."
    turns = [("user", "First?"), ("assistant", "a"), ("user", "Then?"), ("assistant", "b")]
    chat = {"messages": [{"role": role, "content": text} for role, text in turns]}
    conversation = Messages(KindOptions(messages_key="messages", **options)).convert(chat)
    assert conversation.messages[0].parts == ("First?",) and user_text(conversation) == "Then?\nBox it."
    maye = Maye(KindOptions(prompt_suffix="Box it.", system_prompt="Be brief."))
    assert user_text(maye.convert(maye_row())) == "What is $B C ?$\nBox it."
    assert maye.convert(maye_row()).messages[0] == Message(role="system", parts=("Be brief.",))


# the columns of the config


def test_a_kinds_own_columns_are_the_defaults() -> None:
    geo = settings(dataset_name="geo3k")
    assert (geo.prompt_key, geo.answer_key, geo.image_keys) == ("problem", "answer", ("images",))
    assert settings(dataset_name="geo3k", prompt_key="q").prompt_key == "q"
    maye = settings(dataset_name="maye")
    assert (maye.prompt_key, maye.solution_key, maye.image_keys) == ("question", "solution", ("image",))
    assert settings(dataset_name="maye", solution_key=None).solution_key is None
    assert settings(dataset_name="messages").prompt_key == "question"
    assert [column for _, column in make_kind(maye).required_columns()] == ["question", "answer", "solution", "image"]


def test_columns_are_checked_before_the_run(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist([geo_row(), geo_row()]), file)
    assert inspect_paths(str(file), "data.train_data_paths", make_kind(settings(dataset_name="geo3k"))) == 2
    with pytest.raises(UserError) as caught:
        inspect_paths(str(file), "data.train_data_paths", make_kind(settings(dataset_name="maye")))
    assert str(caught.value).startswith(f"data.prompt_key: no column 'question' in {file}, which has: problem, answer")


# files, to the ids


def test_geo3k_parquet_is_read_in_both_layouts(tmp_path: Path, processor: Any) -> None:
    """Structs of bytes and data URLs of one picture are the same sample."""
    ids = []
    for name, images in {"bytes": [png()], "url": [DATA_URL]}.items():
        file = tmp_path / name / "train.parquet"
        file.parent.mkdir()
        pq.write_table(pa.Table.from_pylist([geo_row(images=images)]), file)
        kind = make_kind(settings(dataset_name="geo3k"))
        columns = [column for _, column in kind.required_columns()]
        table = open_table(str(file), "data.train_data_paths", columns, cache_dir=tmp_path / "cache")
        (sample,) = RowReader(rows=table, kind=kind, renderer=renderer(processor))[0]
        ids.append(sample)
    assert torch.equal(ids[0].input_ids, ids[1].input_ids)
    assert torch.equal(ids[0].images[0].tensors["pixel_values"], ids[1].images[0].tensors["pixel_values"])


def test_maye_images_are_sought_beside_the_file(tmp_path: Path, processor: Any) -> None:
    file = tmp_path / "data" / "train.jsonl"
    (file.parent / "pictures").mkdir(parents=True)
    Image.open(io.BytesIO(RED)).save(file.parent / "pictures" / "2948.png")
    file.write_text("\n".join(json.dumps(maye_row(**more)) for more in ({}, {"image": "pictures/none.png"})))
    kind = make_kind(settings(dataset_name="maye"))
    inspect_paths(str(file), "data.train_data_paths", kind)
    table = open_table(str(file), "data.train_data_paths", [column for _, column in kind.required_columns()])
    reader = RowReader(rows=table, kind=kind, renderer=renderer(processor))
    (sample,) = reader[0]
    assert sample.images[0].num_features == int((sample.input_ids == processor.image_token_id).sum()) > 0
    bad = reader[1]
    assert isinstance(bad, BadRow) and "train.jsonl row 1: image file pictures/none.png does not exist" in bad.reason


# the prompt alone


def test_a_prompt_ends_where_the_assistant_begins(processor: Any) -> None:
    made = renderer(processor)
    conversation = GEO.convert(geo_row())
    whole = made.render(conversation, row=4)
    prompt = made.render_prompt(conversation, row=4)
    assert torch.equal(prompt.input_ids, whole.input_ids[: whole.prompt_length])
    assert prompt.prompt_length == len(prompt.input_ids) == whole.prompt_length
    assert (prompt.labels == IGNORE_INDEX).all() and prompt.row == 4
    assert torch.equal(prompt.images[0].tensors["pixel_values"], whole.images[0].tensors["pixel_values"])
    assert prompt.position_ids.shape == (3, whole.prompt_length)
    assert prompt.conversation is not None and prompt.conversation.answer == r"5\sqrt{3}"


def test_a_conversation_without_an_answers_turn_is_its_own_prompt(processor: Any) -> None:
    conversation = talk(("system", "Be brief."), ("user", "Find x."), answer="5")
    assert conversation.prompt == conversation.messages
    prompt = renderer(processor).render_prompt(conversation, row=0)
    text = processor.tokenizer.decode(prompt.input_ids)
    assert text.endswith("Find x.<|im_end|>\n<|im_start|>assistant\n")


def test_a_prompt_that_is_too_long_is_a_bad_row(processor: Any) -> None:
    conversation = GEO.convert(geo_row())
    length = renderer(processor).render_prompt(conversation, row=0).prompt_length
    renderer(processor, max_prompt_length=length).render_prompt(conversation, row=0)
    with pytest.raises(RowError, match=f"{length} tokens, more than data.max_prompt_length={length - 1}"):
        renderer(processor, max_prompt_length=length - 1).render_prompt(conversation, row=0)
