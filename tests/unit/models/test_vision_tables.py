"""Tables of several images joined by us equal those that transformers computes for all of them at once."""

from __future__ import annotations

import pytest
import torch
from transformers import vision_utils

from rlinf_vlm.models.vision_tables import VisionGeometry, VisionPlanner
from tests.tiny_models import MERGE, PATCH, QWEN_FAMILIES, make_tiny

GRIDS = [(1, 4, 4), (1, 4, 10), (1, 6, 2), (1, 4, 4)]


@pytest.mark.parametrize("family", QWEN_FAMILIES)
def test_equal_to_transformers(family: str) -> None:
    model, _ = make_tiny(family)
    visual = model.model.visual
    planner = VisionPlanner(VisionGeometry.of(visual), grouped=True)
    inputs = planner.plan(GRIDS, torch.device("cpu"))
    again = planner.plan(GRIDS, torch.device("cpu"))
    thw = torch.tensor(GRIDS)
    kwargs = inputs.kwargs
    assert inputs.num_features == (16 + 40 + 12 + 16) // 4
    assert torch.equal(kwargs["position_ids"], vision_utils.get_vision_position_ids(thw, MERGE))
    assert torch.equal(kwargs["cu_seqlens"], torch.tensor([0, 16, 56, 68, 84], dtype=torch.int32))
    assert torch.equal(again.kwargs["position_ids"], kwargs["position_ids"])
    assert ("window_index" in kwargs) == (family == "qwen2.5_vl")
    if family == "qwen2.5_vl":
        index, cu = vision_utils.get_vision_window_index(thw, MERGE, visual.window_size, PATCH)
        assert torch.equal(kwargs["window_index"], index) and torch.equal(kwargs["cu_window_seqlens"], cu)
        assert not torch.equal(index, torch.arange(len(index)))
    assert ("interp_indices" in kwargs) == family.startswith("qwen3")
    if family.startswith("qwen3"):
        indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            thw, num_grid_per_side=5, mode="bilinear", align_corners=True, spatial_merge_size=MERGE
        )
        assert torch.equal(kwargs["interp_indices"], indices) and torch.equal(kwargs["interp_weights"], weights)
