"""What a row measures before it is decoded is what it measures when it is rendered."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rlinf_vlm.data.processor import load_processor
from rlinf_vlm.data.reading import BadRow, BatchReader, RowReader, Share
from rlinf_vlm.data.rendering import Renderer, RenderOptions, RowSize
from rlinf_vlm.types import Conversation, ImagePart, Message, RowError
from tests.convert_inputs import tiny_processor
from tests.unit.data.builders import png, talk

FAMILIES = ["qwen2_vl", "qwen2.5_vl", "qwen3_vl", "llava"]
TURNS = (("user", "What is in the picture?"), ("assistant", "a cup, or so"))


def flat_positions(input_ids: torch.Tensor, images: Any) -> torch.Tensor:
    return torch.arange(len(input_ids)).expand(3, -1)


def renderer_of(processor: Any, **options: Any) -> Renderer:
    return Renderer(processor, flat_positions, RenderOptions(**options))


def encoded(image: Image.Image, form: str, **options: Any) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, form, **options)
    return {"bytes": file.getvalue(), "path": None}


def rotated(size: tuple[int, int]) -> dict[str, Any]:
    """A JPEG that is to be turned by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.new("RGB", size), "JPEG", exif=exif)


PICTURES: dict[str, tuple[Any, ...]] = {
    "no image": (),
    "one": (png(size=(64, 40)),),
    "of one pixel": (png(size=(1, 1)),),
    "thin": (png(size=(3, 400)),),
    "large": (png(size=(900, 700)),),
    "turned": (rotated((90, 30)),),
    "turned, and two more": (rotated((31, 77)), png(size=(50, 50)), png(size=(20, 90))),
    "palette": (encoded(Image.new("P", (70, 41)), "PNG"),),
    "transparent": (encoded(Image.new("RGBA", (33, 61)), "PNG"),),
    "16-bit grey": (encoded(Image.fromarray(np.full((45, 71), 40_000, np.uint16)), "PNG"),),
    "array": (np.zeros((60, 44, 3), np.uint8),),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family_processor(request, tmp_path_factory):
    """A family's processor from a folder, with bounds on the pixels where it has some."""
    folder = str(tmp_path_factory.mktemp("processor"))
    tiny_processor(request.param).save_pretrained(folder)
    bounds = {} if request.param == "llava" else {"min_pixels": 20**2, "max_pixels": 64**2}
    return load_processor(folder, **bounds)


@pytest.mark.parametrize("images", PICTURES.values(), ids=PICTURES)
@pytest.mark.parametrize("chat_template", [True, False])
def test_a_measure_is_the_rendered_length(family_processor, images, chat_template):
    made = renderer_of(family_processor, chat_template=chat_template)
    conversation = talk(*TURNS, images=images)
    size, sample = made.measure(conversation), made.render(conversation, row=0)
    assert size is not None
    assert size.tokens == len(sample.input_ids)
    assert [features for _, features in size.images] == [image.num_features for image in sample.images]
    for ref, (key, _), image in zip(images, size.images, sample.images, strict=True):
        assert key == (image.key if isinstance(ref, dict) else None), "rows that share an image know it"


def test_bounds_on_pixels_count(tmp_path):
    """Else the measure above could be that of the folder's own bounds."""
    tiny_processor("qwen2.5_vl").save_pretrained(str(tmp_path))
    conversation = talk(*TURNS, images=(png(size=(500, 500)),))
    sizes = [
        renderer_of(load_processor(str(tmp_path), min_pixels=64, max_pixels=side**2)).measure(conversation)
        for side in (32, 64)
    ]
    assert [size and size.images[0][1] for size in sizes] == [16, 64]


def test_what_rendering_refuses_has_no_measure(processor):
    made = renderer_of(processor, max_length=40)
    for conversation in (
        talk(*TURNS, images=(png(size=(1, 300)),)),  # the processor refuses such a shape
        talk(("user", "far too long " * 30), ("assistant", "yes")),
        talk(*TURNS, images=({"bytes": b"no image", "path": None},)),
        talk(("user", "half a character \ud800"), ("assistant", "yes")),
        talk(("user", "<|image_pad|>"), ("assistant", "yes")),
    ):
        for attempt in (lambda it: made.render(it, row=0), made.measure):
            with pytest.raises(RowError):
                attempt(conversation)


class Silent:
    """A processor of a family that does not say how many tokens an image takes."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.tokenizer = processor.tokenizer
        self.image_token = processor.image_token

    def __call__(self, **arguments: Any) -> Any:
        return self._processor(**arguments)

    def apply_chat_template(self, *arguments: Any, **named: Any) -> str:
        return self._processor.apply_chat_template(*arguments, **named)


class Unfinished(Silent):
    """One that fails to."""

    def _get_num_multimodal_tokens(self, image_sizes: Any) -> Any:
        raise TypeError("'NoneType' object is not subscriptable")


@pytest.mark.parametrize("kind", [Silent, Unfinished])
def test_where_the_processor_cannot_tell_there_is_no_measure(processor, kind):
    made = renderer_of(kind(processor))
    assert made.measure(talk(*TURNS, images=(png(),))) is None
    assert made.measure(talk(*TURNS)) is not None


class TableOfRows:
    """Rows that are conversations already."""

    def __init__(self, conversations: list[Conversation]) -> None:
        self._conversations = conversations

    def __len__(self) -> int:
        return len(self._conversations)

    def __getitem__(self, index: int) -> Any:
        return self._conversations[index]

    def locate(self, index: int) -> tuple[str, int]:
        return "rows.parquet", index

    def folder_of(self, index: int) -> None:
        return None


class AsTheyAre:
    """The kind of such rows; one without messages cannot be used."""

    def convert(self, row: Any) -> Conversation:
        if not row.messages:
            raise RowError("no messages")
        return row


def conversations() -> list[Conversation]:
    """Twelve rows of lengths 1 to 12 questions; row 5 cannot be used, row 8 only breaks when it is decoded."""
    rows = [talk(("user", "What? " * (index + 1)), ("assistant", "this"), images=(png(),)) for index in range(12)]
    rows[5] = Conversation(messages=(), images=(), question="", answer="")
    whole = png(size=(64, 64))["bytes"]
    cut = {"bytes": whole[: len(whole) // 2], "path": None}
    rows[8] = Conversation(
        messages=(
            Message(role="user", parts=(ImagePart(), "What? " * 9)),
            Message(role="assistant", parts=("this",)),
        ),
        images=(cut,),
        question="",
        answer="",
    )
    return rows


def reader_of(processor: Any) -> RowReader:
    return RowReader(rows=TableOfRows(conversations()), kind=AsTheyAre(), renderer=renderer_of(processor))


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_ranks_read_every_row_once_and_a_bad_row_is_one_rank_s(processor, world):
    reader = reader_of(processor)
    rows = [3, 1, 5, 0, 8, 2, 11, 10, 9, 4, 7, 6]
    parts = [
        BatchReader(reader=reader, share=Share(rank=rank, world_size=world, feature_weight=0.9, max_tokens=4096))[rows]
        for rank in range(world)
    ]
    found = [item.row if isinstance(item, BadRow) else item[0].row for part in parts for item in part.items]
    assert found == rows
    bad = [item for part in parts for item in part.items if isinstance(item, BadRow)]
    assert [item.row for item in bad] == [5, 8]
    assert bad[0].reason == "rows.parquet row 5: no messages" and "does not decode" in bad[1].reason
    assert len({part.division for part in parts}) == 1


def test_the_cut_follows_the_cost(processor):
    reader = reader_of(processor)
    share = Share(rank=0, world_size=2, feature_weight=0.0, max_tokens=4096)
    first = BatchReader(reader=reader, share=share)[[0, 1, 2, 3, 11, 10]]
    sizes = [reader.measure(row) for row in (0, 1, 2, 3, 11, 10)]
    lengths = [size.tokens for size in sizes if size]
    ends = np.cumsum(lengths)
    middles = ends - np.array(lengths) / 2
    assert len(first.items) == int((middles < ends[-1] / 2).sum()) == 4
    assert BatchReader(reader=reader)[[0, 1]].division == 0


def test_another_cut_has_another_digest(processor):
    """What lets ranks whose files differ notice."""
    reader = reader_of(processor)
    share = Share(rank=0, world_size=2, feature_weight=0.0, max_tokens=4096)
    divisions = {BatchReader(reader=reader, share=share)[rows].division for rows in ([0, 1, 2, 3], [0, 1, 2, 11])}
    assert len(divisions) == 2


def test_a_bad_row_measures_nothing(processor):
    assert reader_of(processor).measure(5) == RowSize(tokens=0, images=())


def test_errors_of_the_program_name_the_row(processor):
    class Broken(AsTheyAre):
        def convert(self, row: Any) -> Conversation:
            raise ZeroDivisionError("a mistake")

    reader = RowReader(rows=TableOfRows(conversations()), kind=Broken(), renderer=renderer_of(processor))
    for read in (reader.measure, reader.__getitem__):
        with pytest.raises(ZeroDivisionError) as caught:
            read(2)
        assert caught.value.__notes__ == ["while reading rows.parquet row 2"]
