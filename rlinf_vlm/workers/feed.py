"""The actor's rows: from the config's paths to rendered steps and evaluation batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

from rlinf_vlm.config.resolve import Batching, Schedule
from rlinf_vlm.config.schema import Config
from rlinf_vlm.data.kinds import make_kind
from rlinf_vlm.data.loader import (
    EvalBatch,
    EvalCollator,
    RankStep,
    RowReader,
    StepCollator,
    eval_batches,
    train_steps,
)
from rlinf_vlm.data.order import RankSteps, RowStream, eval_rows
from rlinf_vlm.data.rendering import PositionFn, Renderer, RenderOptions
from rlinf_vlm.data.sources import open_table
from rlinf_vlm.types import RankContext, UserError

Loaded = TypeVar("Loaded", RankStep, EvalBatch)


def render_options(config: Config, *, training: bool) -> RenderOptions:
    """The limits that a sample has to keep; when training packs, no sample may exceed the token budget."""
    data, actor = config.data, config.actor
    budget = actor.max_tokens_per_micro_batch if actor.packing and training else None
    bounded_by_budget = budget is not None and (data.max_length is None or budget < data.max_length)
    return RenderOptions(
        chat_template=data.apply_chat_template,
        max_prompt_length=data.max_prompt_length,
        max_length=budget if bounded_by_budget else data.max_length,
        last_turn_only=not training,
        max_length_name="actor.max_tokens_per_micro_batch" if bounded_by_budget else "data.max_length",
    )


class Feed:
    """The rows of one rank."""

    def __init__(self, config: Config, processor: Any, positions: PositionFn, context: RankContext) -> None:
        self._config = config
        self._context = context
        self._kind = make_kind(config.data)
        self._renderer = Renderer(processor, positions, render_options(config, training=True))
        self._eval_renderer = Renderer(processor, positions, render_options(config, training=False))
        self._eval_renderer.check_template()
        self._image_token_id = self._renderer.images.token_id
        paths, eval_paths = config.data.train_data_paths, config.data.eval_data_paths
        columns = [column for _, column in self._kind.required_columns()]
        self._train = None if paths is None else open_table(paths, "data.train_data_paths", columns=columns)
        self._eval = None if eval_paths is None else open_table(eval_paths, "data.eval_data_paths", columns=columns)

    @property
    def train_rows(self) -> int:
        """Rows of the training set; 0 without one."""
        return 0 if self._train is None else len(self._train)

    @property
    def eval_rows(self) -> int:
        """Rows of the evaluation set; 0 without one."""
        return 0 if self._eval is None else len(self._eval)

    def train(self, schedule: Schedule, batching: Batching) -> Iterator[RankStep]:
        """This rank's steps, from the run's start or the place where it goes on to its end."""
        assert self._train is not None, "training needs training rows"
        data = self._config.data
        stream = RowStream(
            rows=len(self._train),
            seed=self._config.actor.seed,
            shuffle=data.shuffle,
            block=data.shuffle_block_size,
        )
        steps = RankSteps(
            stream=stream,
            global_batch=batching.global_batch_size,
            total=schedule.total_samples,
            rank=self._context.rank,
            world_size=self._context.world_size,
            first=schedule.start.samples,
        )
        collator = StepCollator(
            image_token_id=self._image_token_id,
            micro_batch_size=batching.micro_batch_size,
            max_tokens=batching.max_tokens,
        )
        reader = RowReader(rows=self._train, kind=self._kind, renderer=self._renderer)
        return map(self._checked, train_steps(reader, steps, collator, data.num_workers))

    def evaluation(self, blank_images: bool = False) -> Iterator[EvalBatch]:
        """This rank's part of the evaluation rows; every rank gets the same number of batches.

        ``blank_images``: the same rows with nothing to see in their images.
        """
        assert self._eval is not None, "evaluation needs evaluation rows"
        world, size = self._context.world_size, self._config.actor.eval_batch_size
        longest = max(len(eval_rows(len(self._eval), rank, world)) for rank in range(world))
        renderer = self._eval_renderer
        if blank_images:
            renderer = Renderer(renderer.processor, renderer.positions, replace(renderer.options, blank_images=True))
        reader = RowReader(rows=self._eval, kind=self._kind, renderer=renderer, all_choices=True)
        batches = eval_batches(
            reader,
            eval_rows(len(self._eval), self._context.rank, world),
            size,
            -(-longest // size),
            EvalCollator(image_token_id=self._image_token_id),
            self._config.data.num_workers,
        )
        return map(self._checked, batches)

    def _checked(self, loaded: Loaded) -> Loaded:
        """``loaded``, unless something in it is not to be passed over: then UserError."""
        if loaded.failure is not None:
            raise UserError(loaded.failure)
        if loaded.bad_rows and self._config.data.on_bad_row == "error":
            reason = loaded.bad_rows[0].reason
            raise UserError(f"{reason}; mend the row, or set data.on_bad_row=drop to leave such rows out")
        return loaded
