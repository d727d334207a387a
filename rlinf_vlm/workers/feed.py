"""The actor's rows: from the config's paths to rendered steps and evaluation batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch

from rlinf_vlm.config.actor import ActorConfig
from rlinf_vlm.config.passes import Passes
from rlinf_vlm.config.resolve import Batching, Schedule
from rlinf_vlm.config.schema import Config
from rlinf_vlm.data.kinds import make_kind
from rlinf_vlm.data.loader import (
    Ahead,
    EvalBatch,
    EvalCollator,
    RankStep,
    StepCollator,
    eval_batches,
    train_steps,
)
from rlinf_vlm.data.order import RankSteps, RowStream, eval_rows
from rlinf_vlm.data.processor import load_processor
from rlinf_vlm.data.reading import BatchReader, RowReader, Share
from rlinf_vlm.data.rendering import PositionFn, Renderer, RenderOptions
from rlinf_vlm.data.sources import open_table
from rlinf_vlm.models.families import resolve_family
from rlinf_vlm.rollout.prompts import banned_ids
from rlinf_vlm.types import RankContext, UserError
from rlinf_vlm.workers.rl_batch import AnsweredFeed

Loaded = TypeVar("Loaded", RankStep, EvalBatch)


def _pixel_dtype(actor: ActorConfig) -> torch.dtype | None:
    """What pixels travel in: half the bytes where the vision tower rounds them to bfloat16 first thing anyway."""
    rounds = resolve_family(actor.model.model_type).rounds_pixels
    return torch.bfloat16 if rounds and actor.compute_dtype == "bf16" else None


def open_processor(config: Config) -> Any:
    """The model folder's processor, with the bounds that ``data`` sets to images."""
    model = config.actor.model
    return load_processor(
        model.model_path,
        min_pixels=config.data.min_pixels,
        max_pixels=config.data.max_pixels,
        trust_remote_code=model.trust_remote_code,
    )


def render_options(config: Config, *, training: bool, budget: int | None) -> RenderOptions:
    """The limits that a sample has to keep; ``budget``: tokens of a packed micro-batch, which no sample may exceed."""
    data = config.data
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

    def __init__(
        self,
        config: Config,
        processor: Any,
        positions: PositionFn,
        context: RankContext,
        batching: Batching,
        passes: Passes,
    ) -> None:
        self._config = config
        self._context = context
        self._batching = batching
        self._share_images = passes.share_images
        self._by_cost = passes.balance_tokens
        self._pixel_dtype = _pixel_dtype(config.actor)
        self._ahead = Ahead(num_workers=config.data.num_workers, pin_memory=torch.device(context.device).type == "cuda")
        self._kind = make_kind(config.data)
        self._renderer = Renderer(
            processor, positions, render_options(config, training=True, budget=batching.max_tokens)
        )
        self._eval_renderer = Renderer(processor, positions, render_options(config, training=False, budget=None))
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

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Ids that no answer may hold."""
        return banned_ids(self._renderer.processor)

    def train(self, schedule: Schedule, feature_weight: float) -> Iterator[RankStep]:
        """This rank's steps, from the run's start or the place where it goes on to its end.

        ``feature_weight``: what the vision tower costs of an image token, in units of what the language model costs of
        a token; read where ranks share a step by cost.
        """
        assert self._train is not None, "training needs training rows"
        data = self._config.data
        stream = RowStream(
            rows=len(self._train),
            seed=self._config.actor.seed,
            shuffle=data.shuffle,
            block=data.shuffle_block_size,
        )
        rank, world = self._context.rank, self._context.world_size
        share = None
        if self._by_cost:
            assert self._batching.max_tokens is not None, "a step is shared by cost where it is packed"
            budget = self._batching.max_tokens
            share = Share(rank=rank, world_size=world, feature_weight=feature_weight, max_tokens=budget)
        steps = RankSteps(
            stream=stream,
            global_batch=self._batching.global_batch_size,
            total=schedule.total_samples,
            # By cost, each rank is shown the whole step and finds its own part.
            rank=0 if share else rank,
            world_size=1 if share else world,
            first=schedule.start.samples,
        )
        reader = BatchReader(
            reader=RowReader(rows=self._train, kind=self._kind, renderer=self._renderer),
            share=share,
        )
        return map(self._checked, train_steps(reader, steps, self.collator(), self._ahead))

    def collator(self) -> StepCollator:
        """Samples of a step -> micro-batches, as the run divides them."""
        return StepCollator(
            image_token_id=self._image_token_id,
            micro_batch_size=self._batching.micro_batch_size,
            max_tokens=self._batching.max_tokens,
            share_images=self._share_images,
            pixel_dtype=self._pixel_dtype,
        )

    def answered(self) -> AnsweredFeed:
        """What makes samples of answers to the training rows."""
        assert self._train is not None, "training needs training rows"
        renderer = self._renderer
        # One each: a renderer's cache of images is not for several threads.
        renderers = [
            Renderer(renderer.processor, renderer.positions, renderer.options)
            for _ in range(max(1, self._config.data.num_workers))
        ]
        return AnsweredFeed(
            [RowReader(rows=self._train, kind=self._kind, renderer=own) for own in renderers], self.collator()
        )

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
            BatchReader(reader=reader),
            eval_rows(len(self._eval), self._context.rank, world),
            size,
            -(-longest // size),
            EvalCollator(
                image_token_id=self._image_token_id, share_images=self._share_images, pixel_dtype=self._pixel_dtype
            ),
            self._ahead,
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
