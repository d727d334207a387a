"""Answers become samples: the ids that the engine gave after the prompt that it was asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rlinf_vlm.data.loader import StepCollator
from rlinf_vlm.data.reading import RowReader
from rlinf_vlm.data.rendering import Renderer, RenderOptions
from rlinf_vlm.rollout.batching import divide
from rlinf_vlm.rollout.records import Rollout, digest
from rlinf_vlm.types import IGNORE_INDEX, Conversation, RowError, UserError
from rlinf_vlm.workers.rl_batch import AnsweredFeed, answer_sample
from tests.rollouts import rollout, scored
from tests.unit.data.builders import png, talk

ANSWERS = ("red", "it is red", "what colour is it? red")


def grid_positions(input_ids: torch.Tensor, images: Any) -> torch.Tensor:
    """Positions that depend on the whole sample, and on its images."""
    return (torch.arange(len(input_ids)) * (1 + len(images)) + len(input_ids)).expand(3, -1)


class Rows:
    """Row i: a question with i pictures; the last row cannot be read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return {"index": index}

    def locate(self, index: int) -> tuple[str, int]:
        return "rows.json", index

    def folder_of(self, index: int) -> None:
        return None


class Kind:
    def convert(self, row: Any) -> Conversation:
        if row["index"] == 3:
            raise RowError("is broken")
        images = tuple(png((40 * number, 0, 0)) for number in range(row["index"]))
        return talk(("user", "what colour is it?"), ("assistant", ANSWERS[row["index"]]), images=images)


def readers(processor: Any, count: int = 1) -> tuple[Rows, list[RowReader]]:
    rows = Rows(4)
    made = [Renderer(processor, grid_positions, RenderOptions()) for _ in range(count)]
    return rows, [RowReader(rows=rows, kind=Kind(), renderer=renderer) for renderer in made]


def answer(reader: RowReader, row: int, ids: tuple[int, ...], member: int = 0, **fields: Any) -> Rollout:
    prompt = reader.prompt(row)
    made = rollout(row, member, length=len(ids), prompt=prompt.prompt_length, token_ids=ids, **fields)
    return replace(made, prompt_digest=digest(prompt.input_ids.tolist()))


def test_a_sample_is_the_rendering_of_the_whole_conversation(processor):
    """Where the answer's ids are those of its text: what supervised fine-tuning would have seen."""
    _, (reader,) = readers(processor)
    for row in range(3):
        whole = reader[row][0]
        ids = tuple(whole.labels[whole.labels != IGNORE_INDEX].tolist())
        sample = answer_sample(reader.prompt(row), answer(reader, row, ids), reader.renderer)
        length = len(sample.input_ids)
        assert length == len(whole.input_ids) - 1, "the template's newline after the turn is nobody's answer"
        assert torch.equal(sample.input_ids, whole.input_ids[:length])
        assert torch.equal(sample.labels, whole.labels[:length])
        assert torch.equal(sample.position_ids, grid_positions(sample.input_ids, whole.images))
        assert [image.key for image in sample.images] == [image.key for image in whole.images]
        assert sample.prompt_length == whole.prompt_length


def feed(processor: Any, threads: int = 1, **collator: Any) -> tuple[Rows, AnsweredFeed, RowReader]:
    rows, made = readers(processor, threads)
    settings: dict[str, Any] = {"micro_batch_size": 2, "max_tokens": None, **collator}
    image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    return rows, AnsweredFeed(made, StepCollator(image_token_id=image_token, **settings)), made[0]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_tokens_of_a_micro_batch_know_their_places_in_the_step(processor, threads):
    """Two mini-batches of rows 0 and 1, and 2; one answer is empty and one was cut off."""
    rows, answered, reader = feed(processor, threads)
    lengths = {0: (3, 2), 1: (0, 4), 2: (5, 1)}
    given = []
    for row, pair in lengths.items():
        for member, length in enumerate(pair):
            reason = "length" if (row, member) == (1, 1) else "stop"
            one = answer(reader, row, tuple(range(20, 20 + length)), member, finish_reason=reason)
            given.append(replace(scored(row, member), rollout=one))
    rows.read.clear()
    answers, (share,) = divide(given, world_size=1, n_minibatches=2)
    first, second = answered.minibatches(answers, share, banned=(), skip_truncated=True)
    assert sorted(rows.read) == [0, 1, 2], "each row is rendered once for all its answers"
    batches = [*first, *second]
    places = torch.cat([batch.places for batch in batches])
    assert sorted(places.tolist()) == list(range(15))
    starts = dict(zip([(item.rollout.row, item.rollout.member) for item in given], (0, 3, 5, 5, 9, 14), strict=True))
    for batch in batches:
        assert int(batch.lengths.sum()) == batch.micro_batch.num_supervised == len(batch.engine_logprobs)
        assert (batch.lengths > 0).all()
        labels = batch.micro_batch.labels[batch.micro_batch.labels != IGNORE_INDEX]
        for token, place, engine, counted in zip(
            labels, batch.places, batch.engine_logprobs, batch.counted, strict=True
        ):
            owner = max((start, key) for key, start in starts.items() if start <= place and length_of(lengths, key))[1]
            offset = int(place) - starts[owner]
            assert int(token) == 20 + offset
            assert float(engine) == pytest.approx(-1.0 / (offset + 3))
            assert float(counted) == (0.0 if owner == (1, 1) else 1.0)
    assert sum(int(batch.counted_lengths.sum()) for batch in batches) == 11
    kept = answered.minibatches(answers, share, banned=(), skip_truncated=False)
    assert sum(int(batch.counted_lengths.sum()) for part in kept for batch in part) == 15


def length_of(lengths: dict[int, tuple[int, ...]], key: tuple[int, int]) -> int:
    return lengths[key[0]][key[1]]


def test_an_image_of_a_group_is_there_once(processor):
    _, answered, reader = feed(processor, micro_batch_size=None, max_tokens=4096)
    given = [replace(scored(2, member), rollout=answer(reader, 2, (20, 21), member)) for member in range(4)]
    answers, (share,) = divide(given, world_size=1, n_minibatches=1)
    (part,) = answered.minibatches(answers, share, banned=(), skip_truncated=False)
    assert [(batch.micro_batch.num_images, len(batch.lengths)) for batch in part] == [(2, 4)]


def refused(processor: Any, one: Any, banned: tuple[int, ...] = (), **collator: Any) -> str:
    _, answered, _ = feed(processor, **collator)
    answers, (share,) = divide([replace(scored(one.row), rollout=one)], world_size=1, n_minibatches=1)
    with pytest.raises((UserError, ValueError)) as caught:
        answered.minibatches(answers, share, banned=banned, skip_truncated=False)
    return f"{caught.type.__name__}: {caught.value}"


def test_what_cannot_be_trained_on_says_why(processor):
    _, (reader,) = readers(processor)
    good = answer(reader, 1, (20, 21))
    assert refused(processor, replace(good, prompt_length=7)).startswith("UserError: row 1: its prompt has")
    assert refused(processor, replace(good, prompt_digest=7)).startswith("UserError: row 1: its prompt has")
    assert refused(processor, replace(good, row=3)).startswith(
        "UserError: rows.json row 3: is broken; it could be read"
    )
    assert refused(processor, good, banned=(21,)).startswith("ValueError: row 1: the answer holds the token 21")
    long = refused(processor, good, micro_batch_size=None, max_tokens=20)
    assert long.startswith("UserError: actor.max_tokens_per_micro_batch=20 is less than the")


def test_numbers_of_another_step_are_refused(processor):
    _, answered, reader = feed(processor)
    answers, (share,) = divide([replace(scored(1), rollout=answer(reader, 1, (20, 21)))], world_size=1, n_minibatches=1)
    with pytest.raises(ValueError, match="answer 0 of the step"):
        answered.minibatches(replace(answers, lengths=(3,)), share, banned=(), skip_truncated=False)
