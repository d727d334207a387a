"""Grouping of segments, and the sdpa attention that works on it, against attention with a mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rlinf_vlm.models.attention import choose_attention, hf_name, packed_sdpa
from rlinf_vlm.models.segments import LengthBound, SegmentBook, build_segments, group_by_length, plan_grouping
from rlinf_vlm.types import UserError

CPU = torch.device("cpu")


def test_equal_lengths_share_a_batch() -> None:
    assert group_by_length([5, 3, 5, 0, 3]) == [(3, [1, 4]), (5, [0, 2])]
    assert group_by_length([5, 3, 5, 17], step=16) == [(5, [0, 1, 2]), (17, [3])]
    assert group_by_length([]) == []


def test_layout_by_hand() -> None:
    # Lengths 3, 2, 3 in one batch of 3 rows each: the second segment repeats its last token (4) once.
    plan = plan_grouping([3, 2, 3], step=16, device=CPU)
    assert plan.batches == ((3, 3),) and plan.num_rows == 9
    assert plan.gather is not None and plan.gather.tolist() == [0, 1, 2, 3, 4, 4, 5, 6, 7]
    assert plan.scatter is not None and plan.scatter.tolist() == [0, 1, 2, 3, 4, 6, 7, 8]
    # Without padding, the segments of length 2 come first.
    plan = plan_grouping([3, 2, 3], step=1, device=CPU)
    assert plan.batches == ((1, 2), (2, 3))
    assert plan.gather is not None and plan.gather.tolist() == [3, 4, 0, 1, 2, 5, 6, 7]


def test_equal_segments_need_no_gather() -> None:
    plan = plan_grouping([4, 4, 4], step=16, device=CPU)
    assert plan.gather is None and plan.scatter is None and plan.batches == ((3, 4),)


def test_the_longest_segment_s_bound_only_grows() -> None:
    bound = LengthBound(64)
    lengths = [
        build_segments([n], device=CPU, causal=True, grouped=False, bound=bound).kernel_max_length
        for n in (1, 64, 65, 1000, 3)
    ]
    assert lengths == [64, 64, 128, 1024, 1024]


@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 3), (False, None)])
@pytest.mark.parametrize("lengths", [[7, 2, 7, 20, 1], [4, 4], [0, 5, 0]])
def test_sdpa_equals_masked_attention(causal: bool, window: int | None, lengths: list[int]) -> None:
    total = sum(lengths)
    torch.manual_seed(0)
    q = torch.randn(1, 4, total, 8, requires_grad=True)
    k, v = (torch.randn(1, 2, total, 8, requires_grad=True) for _ in range(2))
    segments = build_segments(lengths, device=CPU, causal=causal, grouped=True, bound=LengthBound(64))
    got, _ = packed_sdpa(
        torch.nn.Module(), q, k, v, None, cu_seq_lens_q=segments.cu_seqlens, segments=SegmentBook(entries=(segments,)),
        scaling=0.3, is_causal=causal, sliding_window=window,
    )  # fmt: skip
    number = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    distance = torch.arange(total)[:, None] - torch.arange(total)[None, :]
    mask = number[:, None] == number[None, :]
    if causal:
        mask &= distance >= 0
    if window is not None:
        mask &= distance < window
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    direction = torch.randn_like(wanted)
    for ours, theirs in zip(
        torch.autograd.grad((got * direction).sum(), (q, k, v)),
        torch.autograd.grad((wanted * direction).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_attention_finds_only_its_own_segments() -> None:
    segments = build_segments([2, 3], device=CPU, causal=True, grouped=True, bound=LengthBound(64))
    with pytest.raises(AssertionError, match="did not make"):
        SegmentBook(entries=(segments,)).find(segments.cu_seqlens.clone())


def test_choice_of_attention() -> None:
    assert choose_attention("auto", device="cpu", dtype=torch.bfloat16)[0] == "sdpa"
    assert choose_attention("auto", device="cuda", dtype=torch.float32)[0] == "sdpa"
    assert choose_attention("auto", device="cuda:0", dtype=torch.bfloat16)[0] == "varlen"
    assert choose_attention("sdpa", device="cuda", dtype=torch.bfloat16)[0] == "sdpa"
    with pytest.raises(UserError, match="'varlen' needs CUDA with bfloat16 or float16, not cpu with float32"):
        choose_attention("varlen", device="cpu", dtype=torch.float32)
    with pytest.raises(UserError, match="'flash' is unknown"):
        choose_attention("flash", device="cuda", dtype=torch.bfloat16)
    assert all("flash" in hf_name(name) for name in ("sdpa", "varlen", "flash_attention_2"))
