"""Positions against transformers' get_rope_index, and by hand."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from rlinf_vlm.models.mrope import MropePositions, SequentialPositions, mrope_positions, positions_for
from tests.packing_by_hand import make_row, random_image
from tests.tiny_models import IMAGE, MERGE, QWEN_FAMILIES, make_tiny, tiny_config


def test_by_hand() -> None:
    # Two text tokens, an image of 2 x 3 merged patches, one text token: the image starts at 2, the text after at 2 + 3.
    ids = torch.tensor([7, 8, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, 9])
    assert mrope_positions(ids, IMAGE, [(1, 4, 6)], MERGE).tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]


@pytest.mark.parametrize("family", QWEN_FAMILIES)
@pytest.mark.parametrize(
    "layout",
    [
        ["text"],
        ["text", (1, 4, 4), "text"],
        ["text", (1, 4, 10), "text", (1, 6, 2), "text"],
        [(1, 8, 4), "text"],
        ["text", (1, 2, 6)],
    ],
    ids=["text only", "one image", "two images", "image first", "image last"],
)
def test_equal_to_transformers(family: str, layout: list[Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [5 if part == "text" else random_image(family, part, generator) for part in layout]
    row = make_row(parts, 1, generator)
    # An image at the very edge: without the tokens around it.
    ids = row.input_ids
    if layout[0] != "text":
        ids = ids[1:]
    if layout[-1] != "text":
        ids = ids[:-1]
    grids = [part for part in layout if part != "text"]
    model, _ = make_tiny(family)
    wanted, _ = model.model.get_rope_index(
        ids[None], (ids == IMAGE).int()[None], image_grid_thw=torch.tensor(grids) if grids else None
    )
    got = mrope_positions(ids, IMAGE, grids, MERGE)
    assert torch.equal(got, wanted[:, 0])
    is_sequential = torch.equal(got, torch.arange(len(ids)).expand(3, -1))
    assert is_sequential == (layout == ["text"])


def test_tokens_and_grids_must_fit() -> None:
    with pytest.raises(ValueError, match="3 image tokens, but 1 image grids stand for 4"):
        mrope_positions(torch.tensor([IMAGE, IMAGE, IMAGE, 5]), IMAGE, [(1, 4, 4)], MERGE)
    with pytest.raises(ValueError, match="4 image tokens, but 0 image grids stand for 0"):
        mrope_positions(torch.tensor([IMAGE] * 4), IMAGE, [], MERGE)
    with pytest.raises(ValueError, match="not contiguous"):
        mrope_positions(torch.tensor([IMAGE, 5, IMAGE, IMAGE, IMAGE]), IMAGE, [(1, 4, 4)], MERGE)


def test_builders_are_picklable_and_follow_the_config() -> None:
    builder = positions_for(mrope=True, hf_config=tiny_config("qwen3_vl"))
    assert builder == MropePositions(image_token_id=IMAGE, spatial_merge_size=MERGE)
    ids = torch.tensor([5, IMAGE, 6])
    assert torch.equal(
        pickle.loads(pickle.dumps(builder))(ids, [(1, 2, 2)]), mrope_positions(ids, IMAGE, [(1, 2, 2)], 2)
    )
    sequential = positions_for(mrope=False, hf_config=None)
    assert sequential == SequentialPositions()
    assert pickle.loads(pickle.dumps(sequential))(ids, [(1, 2, 2)]).tolist() == [[0, 1, 2]] * 3
