"""One pass over the evaluation rows: scored by the model, judged in plain Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import torch

from rlinf_vlm.data.loader import EvalBatch
from rlinf_vlm.evaluation.answers import EvalRecord, SegmentScore, judge
from rlinf_vlm.types import IGNORE_INDEX, MicroBatch, Sample, TokenScores


@torch.no_grad()
def evaluate(
    score: Callable[[MicroBatch], TokenScores], batches: Iterable[EvalBatch], tokenizer: Any
) -> list[EvalRecord]:
    """The records of this rank's rows, in order. ``score`` runs once a batch, also on an empty one."""
    records: list[EvalRecord] = []
    for batch in batches:
        scores = score(batch.micro_batch)
        segments = score_segments(batch.samples, scores, tokenizer)
        records += _judge_rows(batch.samples, segments)
        records += [EvalRecord(row=bad.row, error=bad.reason) for bad in batch.bad_rows]
    return records


def score_segments(samples: Iterable[Sample], scores: TokenScores, tokenizer: Any) -> list[SegmentScore]:
    """Cuts the scores of a micro-batch into its samples. Scores are in the order of the samples' supervised tokens."""
    logprobs, argmax = scores.logprobs.double().cpu(), scores.argmax.cpu()
    found: list[SegmentScore] = []
    start = 0
    for sample in samples:
        target = sample.labels[sample.labels != IGNORE_INDEX]
        stop = start + len(target)
        greedy = argmax[start:stop]
        found.append(
            SegmentScore(
                row=sample.row,
                choice=sample.choice,
                logprob=float(logprobs[start:stop].sum()),
                num_tokens=len(target),
                exact=bool((greedy == target).all()),
                says=greedy_text(greedy.tolist(), target.tolist(), tokenizer),
            )
        )
        start = stop
    return found


def greedy_text(greedy: list[int], target: list[int], tokenizer: Any) -> str:
    """What greedy decoding says, up to its first difference from ``target``; "…" where it would go on."""
    pairs = enumerate(zip(greedy, target, strict=True))
    first = next((place for place, (said, wanted) in pairs if said != wanted), None)
    if first is None:
        return tokenizer.decode(target, skip_special_tokens=True).strip()
    text = tokenizer.decode(greedy[: first + 1], skip_special_tokens=True).strip()
    return text if greedy[first] in tokenizer.all_special_ids else text + "…"


def _judge_rows(samples: Iterable[Sample], segments: Iterable[SegmentScore]) -> list[EvalRecord]:
    """Groups neighbouring segments of one row."""
    records = []
    pairs = zip(samples, segments, strict=True)
    for _, group in groupby(pairs, key=lambda pair: pair[0].row):
        members = list(group)
        conversation = members[0][0].conversation
        assert conversation is not None, "a rendered row knows its conversation"
        records.append(
            judge(
                [segment for _, segment in members],
                question=conversation.question,
                answer=conversation.answer,
                choices=conversation.choices,
                choice_index=conversation.choice_index,
            )
        )
    return records
