"""Sampled answers become micro-batches: the prompt rendered here once more, the engine's ids after it.

    RankShare -> rows, rendered on threads, each once -> prompt ids + the answer's ids = Sample -> micro-batches

What is trained on is what the engine saw: its ids, never its text tokenised again. The prompt is rendered from its row,
so that no picture travels, and must have the ids that were answered. An answer without tokens teaches nothing and goes
into no micro-batch. A step's tokens are numbered through all its answers, in the order of ``StepAnswers``, so that what
is known of the whole step (advantages) finds the tokens of a micro-batch wherever they are.
Not here: rewards and advantages, and what is computed of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import torch

from rlinf_vlm.data.loader import StepCollator
from rlinf_vlm.data.packing import collate, empty_micro_batch
from rlinf_vlm.data.reading import BadRow, RowReader
from rlinf_vlm.data.rendering import Renderer
from rlinf_vlm.rollout.records import RankShare, Rollout, StepAnswers, check_same_prompt
from rlinf_vlm.rollout.trained import TrainedAnswer, answers_of
from rlinf_vlm.types import IGNORE_INDEX, MicroBatch, RowError, Sample, UserError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnswerBatch:
    """S answers with N tokens in all, that go through the model in one pass; on the host.

    micro_batch: its supervised tokens are the answers'; lengths [S] int64: tokens of each answer; places [N] int64: of
    each token among the tokens of the step; engine_logprobs [N] float32: as the engine told them; counted [N] float32:
    1, or 0 for tokens that the loss leaves out; counted_lengths [S] int64: ``lengths``, and 0 for answers left out.
    """

    micro_batch: MicroBatch
    lengths: torch.Tensor
    places: torch.Tensor
    engine_logprobs: torch.Tensor
    counted: torch.Tensor
    counted_lengths: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """An answer as a sample, and the place of its first token among the step's."""

    sample: Sample
    rollout: Rollout
    first_token: int


def empty_answers() -> AnswerBatch:
    """A micro-batch without answers, see ``empty_micro_batch``."""
    none = torch.zeros(0, dtype=torch.int64)
    return AnswerBatch(
        micro_batch=empty_micro_batch(),
        lengths=none,
        places=none,
        engine_logprobs=torch.zeros(0),
        counted=torch.zeros(0),
        counted_lengths=none,
    )


class AnsweredFeed:
    """Makes one rank's micro-batches of answers to rows."""

    def __init__(self, readers: Sequence[RowReader], collator: StepCollator) -> None:
        """readers: of the same rows, one for each thread that renders; collator: how samples are divided."""
        self._readers = readers
        self._collator = collator

    def minibatches(
        self, answers: StepAnswers, share: RankShare, *, banned: Collection[int], skip_truncated: bool
    ) -> list[list[AnswerBatch]]:
        """The micro-batches of each mini-batch; a list may be empty.

        banned: ids that no answer may hold; skip_truncated: the loss leaves out answers that came to the limit.
        UserError when a row cannot be read any more, renders to another prompt than was answered, or when an answer
        does not fit into the token budget; ValueError when ``share`` is no part of ``answers`` or holds banned ids.
        """
        first_tokens = list(accumulate(answers.lengths, initial=0))
        prompts = self._prompts(list({rollout.row: None for part in share.minibatches for rollout in part}))
        found = []
        for part, first in zip(share.minibatches, share.places, strict=True):
            placed = []
            for place, rollout in enumerate(part, first):
                if len(rollout.token_ids) != answers.lengths[place]:
                    raise ValueError(f"answer {place} of the step has not {len(rollout.token_ids)} tokens")
                _check_answer(rollout, banned)
                if rollout.token_ids:
                    sample = answer_sample(prompts[rollout.row], rollout, self._readers[0].renderer)
                    placed.append(_Placed(sample=sample, rollout=rollout, first_token=first_tokens[place]))
            found.append(self._divided(placed, skip_truncated))
        return found

    def _prompts(self, rows: Sequence[int]) -> dict[int, Sample]:
        """Each row's prompt, rendered once."""
        shares = [rows[start :: len(self._readers)] for start in range(len(self._readers))]

        def render(reader: RowReader, own: Sequence[int]) -> list[Sample | BadRow]:
            return [reader.prompt(row) for row in own]

        if len(self._readers) == 1:
            rendered = [render(self._readers[0], rows)]
        else:
            with ThreadPoolExecutor(len(self._readers), thread_name_prefix="render") as pool:
                rendered = list(pool.map(render, self._readers, shares))
        prompts: dict[int, Sample] = {}
        for item in (item for part in rendered for item in part):
            if isinstance(item, BadRow):
                raise UserError(
                    f"{item.reason}; it could be read where it was answered: the files or data.* settings have changed "
                    "since, or differ between machines; use those that the rollouts were made with"
                )
            prompts[item.row] = item
        return prompts

    def _divided(self, placed: Sequence[_Placed], skip_truncated: bool) -> list[AnswerBatch]:
        """The micro-batches of a mini-batch's answers."""
        samples = [item.sample for item in placed]
        collator, budget = self._collator, self._collator.max_tokens
        longest = max((len(sample.input_ids) for sample in samples), default=0)
        if budget is not None and longest > budget:
            raise UserError(
                f"actor.max_tokens_per_micro_batch={budget} is less than the {longest} tokens of a prompt and its "
                "answer; raise it, or lower data.max_prompt_length or algorithm.sampling_params.max_new_tokens"
            )
        found = []
        for group in collator.groups(samples) if samples else []:
            chosen = [placed[index] for index in group]
            try:
                batch = collate(
                    [item.sample for item in chosen],
                    collator.image_token_id,
                    share_images=collator.share_images,
                    pixel_dtype=collator.pixel_dtype,
                )
            except RowError as error:
                raise UserError(f"row {chosen[0].sample.row}: {error}") from error
            found.append(_answer_batch(batch, chosen, skip_truncated))
        return found


def answer_sample(prompt: Sample, rollout: Rollout, renderer: Renderer) -> Sample:
    """``prompt``, as rendered, with the turns of ``rollout`` after it. What the policy generated is supervised, in
    every turn; what it was told is not.

    Raises UserError unless it is the prompt that was answered, and its observations' pictures have as many tokens here.
    """
    check_same_prompt(rollout, prompt.input_ids.tolist())
    kept = prompt.input_ids[: rollout.prompt_length]
    ids, labels = [kept], [torch.full_like(kept, IGNORE_INDEX)]
    images = list(prompt.images)
    for turn in rollout.turns:
        told = torch.tensor(turn.context_ids, dtype=torch.int64)
        said = torch.tensor(turn.token_ids, dtype=torch.int64)
        ids += [told, said]
        labels += [torch.full_like(told, IGNORE_INDEX), said]
        shown = [renderer.images(content, None) for content in turn.images]
        features, tokens = sum(image.num_features for image in shown), int((told == renderer.images.token_id).sum())
        if features != tokens:
            raise UserError(
                f"row {rollout.row}: the pictures of an observation have {features} tokens here and {tokens} where it "
                "was shown; data.min_pixels, data.max_pixels or the model have changed since: use those that the "
                "rollouts were made with"
            )
        images += shown
    input_ids = torch.cat(ids)
    return Sample(
        row=prompt.row,
        input_ids=input_ids,
        labels=torch.cat(labels),
        position_ids=renderer.positions(input_ids, images),
        images=tuple(images),
        prompt_length=len(kept),
    )


def trained_answers(
    answers: StepAnswers,
    share: RankShare,
    advantages: torch.Tensor,
    before: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[TrainedAnswer, ...]:
    """What a rank's training made of its answers; those whose mini-batch was no update are left out.

    advantages [N]: of all tokens of the step; before: (places, log-probabilities) of each micro-batch.
    """
    logprobs = torch.full((sum(answers.lengths),), torch.nan)
    for places, values in before:
        logprobs[places] = values.float().cpu()
    first_tokens = list(accumulate(answers.lengths, initial=0))
    found: list[TrainedAnswer] = []
    for part, first in zip(share.minibatches, share.places, strict=True):
        own = slice(first_tokens[first], first_tokens[first + len(part)])
        if not logprobs[own].isnan().any():
            found += answers_of(part, advantages[own].tolist(), logprobs[own].tolist())
    return tuple(found)


def _answer_batch(batch: MicroBatch, chosen: Sequence[_Placed], skip_truncated: bool) -> AnswerBatch:
    lengths = torch.tensor([len(item.rollout.token_ids) for item in chosen])
    counts = torch.tensor([not (skip_truncated and item.rollout.finish_reason == "length") for item in chosen])
    return AnswerBatch(
        micro_batch=batch,
        lengths=lengths,
        places=torch.cat(
            [torch.arange(item.first_token, item.first_token + len(item.rollout.token_ids)) for item in chosen]
        ),
        engine_logprobs=torch.tensor([value for item in chosen for value in item.rollout.logprobs]),
        counted=counts.float().repeat_interleave(lengths),
        counted_lengths=lengths * counts,
    )


def _check_answer(rollout: Rollout, banned: Collection[int]) -> None:
    found = next((token for token in rollout.token_ids if token in banned), None)
    if found is not None:
        raise ValueError(
            f"row {rollout.row}: the answer holds the token {found}, which stands for images and which no engine may "
            "sample"
        )
