"""The rollout worker: one engine that answers rows of the run's data with the weights that were last pushed to it.

    PromptRef -> PromptReader (row, rendered as the trainer renders it) -> ``converse``: Engine and environment in turn
    -> Answers

Token in, token out: the engine is given ids and pictures, and must have seen the ids that the trainer will see, in
every turn; what it says is handed on as ids with their log-probabilities. All conversations are under way at once. A
plain class: the worker group builds it in a process. Does not score, and decides nothing about which prompts are asked
or when weights come.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlinf_vlm.config.rl import EnvConfig
from rlinf_vlm.config.schema import Config
from rlinf_vlm.data.kinds import make_kind
from rlinf_vlm.data.reading import BadRow
from rlinf_vlm.data.rendering import Renderer
from rlinf_vlm.data.sources import open_table
from rlinf_vlm.data.turns import TurnRenderer
from rlinf_vlm.envs import find_builder
from rlinf_vlm.envs.protocol import EnvSample
from rlinf_vlm.rollout.converse import TurnLimits, converse
from rlinf_vlm.rollout.coroutines import Coroutines
from rlinf_vlm.rollout.dialogue import Dialogue, ObservationLimits, Said
from rlinf_vlm.rollout.prompts import Prompt, PromptReader, RowPrompt, banned_ids
from rlinf_vlm.rollout.records import Answers, DroppedPrompt, PromptRef, Rollout, Sampling, Split
from rlinf_vlm.types import PushSettings, RankContext, UserError, WeightBucket
from rlinf_vlm.workers.engine import Engine
from rlinf_vlm.workers.engine_settings import engine_arguments, pixel_options
from rlinf_vlm.workers.feed import open_processor, render_options
from rlinf_vlm.workers.model import position_builder

SEED_BITS = 62


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutFacts:
    """What is known once data and engine are loaded. rows: of each split that there is; lengths and kv_cache_tokens
    count tokens."""

    rows: Mapping[Split, int]
    max_model_len: int
    kv_cache_tokens: int
    seconds: float
    """That the engine took to start."""

    def __str__(self) -> str:
        """One line for the log."""
        return (
            f"prompt and answer up to {self.max_model_len:,} tokens, room for {self.kv_cache_tokens:,} in its cache, "
            f"started in {self.seconds:.0f} s"
        )


class RolloutWorker:
    """One rank of the rollout group."""

    def __init__(self, context: RankContext, config: Config) -> None:
        self.context = context
        self.config = config
        self._on_gpu = torch.device(context.device).type == "cuda"
        self._engine: Engine | None = None
        self._coroutines = Coroutines()
        self._version: int | None = None
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        if context.num_threads:
            torch.set_num_threads(context.num_threads)

    def load(self) -> RolloutFacts:
        """Opens the data and starts the engine, whose weights have yet to be pushed. Raises UserError."""
        started = time.perf_counter()
        data, model = self.config.data, self.config.actor.model
        processor = open_processor(self.config)
        self._tokenizer = processor.tokenizer
        options = render_options(self.config, training=False, budget=None)
        renderer = Renderer(processor, position_builder(model), options)
        end_of_turn = renderer.check_template()
        self._turn_renderer = TurnRenderer(renderer)
        self._process = lambda content: renderer.images(content, None)
        self._longest_token = max(map(len, self._tokenizer.get_vocab()))
        self._observation_limits = ObservationLimits(
            prompt_tokens=data.max_prompt_length or 0, observation_tokens=self.config.env.max_observation_tokens
        )
        self._build_env = find_builder(self.config.env.name)
        self._rows: dict[Split, PromptReader | None] = {
            "train": self._open(renderer, data.train_data_paths, "data.train_data_paths"),
            "eval": self._open(renderer, data.eval_data_paths, "data.eval_data_paths"),
            "test": self._open(renderer, data.test_data_paths, "data.test_data_paths"),
        }
        arguments = engine_arguments(self.config, pixel_options(self.config, processor), on_gpu=self._on_gpu)
        self._engine = Engine(
            arguments,
            banned=banned_ids(processor),
            stop=sorted({end_of_turn, self._tokenizer.eos_token_id} - {None}),
            on_gpu=self._on_gpu,
            num_threads=self.context.num_threads,
        )
        return RolloutFacts(
            rows={split: len(reader) for split, reader in self._rows.items() if reader is not None},
            max_model_len=int(arguments["max_model_len"]),
            kv_cache_tokens=self._engine.kv_cache_tokens,
            seconds=time.perf_counter() - started,
        )

    def generate(self, prompts: Sequence[PromptRef], sampling: Sampling, split: Split) -> Answers:
        """``sampling.n`` answers to each of ``prompts``, which are rows of the ``split``, in their order.

        A row that cannot be used is dropped, or with data.on_bad_row=error a UserError.
        """
        started = time.perf_counter()
        rollouts, dropped = asyncio.run(self._answers(prompts, sampling, split))
        return Answers(rollouts=tuple(rollouts), dropped=tuple(dropped), seconds=time.perf_counter() - started)

    def open_push(self, settings: PushSettings) -> None:
        """Makes ready for pushes; over nccl, waits for the actor's rank 0."""
        self.engine.open_push(settings)

    def begin_push(self) -> None:
        """Wakes the engine's weights; buckets can come."""
        self.engine.begin_push()

    def receive_bucket(self, bucket: WeightBucket, handles: Any) -> None:
        """Loads one bucket. ``handles``: of shm the file's path, of ipc {uuid of a GPU: handle}, of nccl None."""
        self.engine.receive(bucket, handles)

    def finish_push(self, version: int) -> None:
        """The engine answers with the weights of ``version`` from here on. Errors: see ``Engine.finish_push``."""
        self.engine.finish_push()
        self._version = version

    def sleep(self) -> None:
        """Gives the engine's memory back until the next push, which has to bring every weight. Nothing on a CPU."""
        if self._on_gpu:
            self.engine.sleep()

    def close(self) -> None:
        """Ends the engine, and what environments still do."""
        self._coroutines.close()
        if self._engine is not None:
            self._engine.close()

    @property
    def engine(self) -> Engine:
        """The engine, once it is loaded."""
        assert self._engine is not None, "load() comes first"
        return self._engine

    def _open(self, renderer: Renderer, paths: str | tuple[str, ...] | None, key: str) -> PromptReader | None:
        if paths is None:
            return None
        kind = make_kind(self.config.data)
        rows = open_table(paths, key, columns=[column for _, column in kind.required_columns()])
        return PromptReader(rows, kind, renderer)

    async def _answers(
        self, prompts: Sequence[PromptRef], sampling: Sampling, split: Split
    ) -> tuple[list[Rollout], list[DroppedPrompt]]:
        reader = self._rows[split]
        assert reader is not None, "rows are asked of data that there are"
        dropped: list[DroppedPrompt] = []
        tasks: list[asyncio.Task[Rollout]] = []
        try:
            for ref in prompts:  # the engine is at work while the next rows are rendered
                asked = reader[ref.row]
                if isinstance(asked, BadRow):
                    dropped.append(self._dropped(ref, asked))
                    continue
                for member in range(sampling.n):
                    tasks.append(asyncio.create_task(self._converse(ref, member, asked, sampling, split)))
                await asyncio.sleep(0)
            return list(await asyncio.gather(*tasks)), dropped
        finally:
            for task in tasks:
                task.cancel()  # after an error; those that are done stay as they are
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _converse(
        self, ref: PromptRef, member: int, asked: RowPrompt, sampling: Sampling, split: Split
    ) -> Rollout:
        """One answer. UserError where the engine saw other ids than the trainer."""
        row, config = asked.conversation, self.config
        dialogue = Dialogue(asked, self._turn_renderer, self._process, self._observation_limits, self._longest_token)
        seed = answer_seed(ref.seed) + member

        async def speak(prompt: Prompt, turn: int, max_new_tokens: int) -> Said:
            answered = await self.engine.answer(
                prompt, sampling, seed=turn_seed(seed, turn), max_new_tokens=max_new_tokens
            )
            _check_seen(ref.row, turn, answered.seen_ids, prompt.seen_ids)
            return Said(
                token_ids=answered.token_ids,
                logprobs=answered.logprobs,
                text=self._tokenizer.decode(answered.token_ids, skip_special_tokens=True),
                finish_reason=answered.finish_reason,
            )

        sample = EnvSample(
            row=ref.row,
            question=row.question,
            answer=row.answer,
            choices=row.choices,
            images=asked.prompt.images,
            evaluation=split != "train",
        )
        args, limits = env_options(config.env, split), turn_limits(config, sampling)
        ended = await converse(dialogue, self._build_env, sample, args, speak, limits, self._coroutines)
        assert self._version is not None, "an engine that answers has been pushed to"
        return Rollout(
            row=ref.row,
            group=ref.group,
            member=member,
            prompt_length=dialogue.prompt_length,
            prompt_digest=dialogue.prompt_digest,
            turns=dialogue.turns,
            outcome=ended.outcome,
            outcome_detail=ended.detail,
            env_info=ended.info,
            version=self._version,
            question=row.question,
            answer=row.answer,
            choices=row.choices,
        )

    def _dropped(self, ref: PromptRef, bad: BadRow) -> DroppedPrompt:
        if self.config.data.on_bad_row == "error":
            raise UserError(f"{bad.reason}; mend the row, or set data.on_bad_row=drop to leave such rows out")
        return DroppedPrompt(row=ref.row, group=ref.group, reason=bad.reason)


def _check_seen(row: int, turn: int, engine_ids: Sequence[int], trainer_ids: Sequence[int]) -> None:
    """UserError where the engine saw another prompt than the trainer."""
    if engine_ids != trainer_ids:
        raise UserError(
            f"row {row}, turn {turn + 1}: the engine made {len(engine_ids)} tokens of what it was asked, the trainer "
            f"{len(trainer_ids)}, or other ones: they process images differently; set "
            "rollout.mm_processor_kwargs=null, and bound images by data.min_pixels and data.max_pixels"
        )


def turn_limits(config: Config, sampling: Sampling) -> TurnLimits:
    """What a conversation may take."""
    env = config.env
    return TurnLimits(
        max_turns=env.max_turns,
        turn_tokens=env.max_new_tokens or sampling.max_new_tokens,
        conversation_tokens=sampling.max_new_tokens,
        seconds=env.time_limit,
    )


def env_options(env: EnvConfig, split: Split) -> dict[str, Any]:
    """The environment's arguments."""
    return dict(env.options) if split == "train" else {**env.options, **env.eval_options}


def answer_seed(seed: int) -> int:
    """The seed of a prompt's first answer; those of its others follow it. Prompts of neighbouring seeds share none."""
    return random.Random(seed).getrandbits(SEED_BITS)


def turn_seed(seed: int, turn: int) -> int:
    """The seed of turn ``turn`` of the answer with ``seed``; that of the first turn is the answer's own."""
    return seed if turn == 0 else random.Random(f"{seed}:{turn}").getrandbits(SEED_BITS)
