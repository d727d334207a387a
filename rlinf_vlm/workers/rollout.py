"""The rollout worker: one engine that answers rows of the run's data with the weights that were last pushed to it.

    PromptRef -> PromptReader (row, rendered as the trainer renders it) -> Engine -> Answers

Token in, token out: the engine is given ids and pictures, and must have seen the ids that the trainer will see; what it
says is handed on as ids with their log-probabilities. A plain class: the worker group builds it in a process. Does not
score, and decides nothing about which prompts are asked or when weights come.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch

from rlinf_vlm.config.schema import Config
from rlinf_vlm.data.kinds import make_kind
from rlinf_vlm.data.reading import BadRow
from rlinf_vlm.data.rendering import Renderer
from rlinf_vlm.data.sources import open_table
from rlinf_vlm.rollout.prompts import Prompt, PromptReader, banned_ids
from rlinf_vlm.rollout.records import Answers, DroppedPrompt, PromptRef, Rollout, Sampling, digest
from rlinf_vlm.types import PushSettings, RankContext, UserError, WeightBucket
from rlinf_vlm.workers.engine import Answered, Engine
from rlinf_vlm.workers.feed import open_processor, render_options
from rlinf_vlm.workers.model import position_builder

ENGINE_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
RECEIVER = "rlinf_vlm.workers.engine_weights.PushReceiver"
"""What vLLM's worker class is extended by, in vLLM's notation."""
SEED_BITS = 62
CPU_BATCHED_TOKENS = 8192
"""Tokens that an engine on a CPU computes at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutFacts:
    """What is known once data and engine are loaded. Lengths and kv_cache_tokens count tokens."""

    train_rows: int
    eval_rows: int
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
        self._train = self._open(renderer, data.train_data_paths, "data.train_data_paths")
        self._eval = self._open(renderer, data.eval_data_paths, "data.eval_data_paths")
        arguments = engine_arguments(self.config, pixel_options(self.config, processor), on_gpu=self._on_gpu)
        self._engine = Engine(
            arguments,
            banned=banned_ids(processor),
            stop=sorted({end_of_turn, self._tokenizer.eos_token_id} - {None}),
            on_gpu=self._on_gpu,
            num_threads=self.context.num_threads,
        )
        return RolloutFacts(
            train_rows=0 if self._train is None else len(self._train),
            eval_rows=0 if self._eval is None else len(self._eval),
            max_model_len=int(arguments["max_model_len"]),
            kv_cache_tokens=self._engine.kv_cache_tokens,
            seconds=time.perf_counter() - started,
        )

    def generate(self, prompts: Sequence[PromptRef], sampling: Sampling, evaluation: bool) -> Answers:
        """Answers to ``prompts``, which are rows of the evaluation or of the training data, in their order.

        All are in the engine at once. A row that cannot be used is dropped, or with data.on_bad_row=error a UserError.
        """
        started = time.perf_counter()
        reader = self._eval if evaluation else self._train
        assert reader is not None, "rows are asked of data that there are"
        dropped: list[DroppedPrompt] = []
        asked: list[tuple[PromptRef, Prompt, Future[Answered]]] = []
        rollouts: list[Rollout] = []
        try:
            for ref in prompts:  # the engine is at work while the next rows are rendered
                prompt = reader[ref.row]
                if isinstance(prompt, BadRow):
                    dropped.append(self._dropped(ref, prompt))
                else:
                    asked.append((ref, prompt, self.engine.submit(prompt, sampling, answer_seed(ref.seed))))
            for ref, prompt, future in asked:
                rollouts += self._rollouts(ref, prompt, self.engine.result(future))
        finally:
            for _, _, future in asked:
                future.cancel()  # after an error; those that are done stay as they are
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
        """Ends the engine."""
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

    def _dropped(self, ref: PromptRef, bad: BadRow) -> DroppedPrompt:
        if self.config.data.on_bad_row == "error":
            raise UserError(f"{bad.reason}; mend the row, or set data.on_bad_row=drop to leave such rows out")
        return DroppedPrompt(row=ref.row, group=ref.group, reason=bad.reason)

    def _rollouts(self, ref: PromptRef, prompt: Prompt, answered: Answered) -> list[Rollout]:
        """The answers to one prompt. UserError where the engine saw another prompt than the trainer."""
        if answered.seen_ids != prompt.seen_ids:
            raise UserError(
                f"row {ref.row}: the engine made {len(answered.seen_ids)} tokens of the prompt, the trainer "
                f"{len(prompt.seen_ids)}, or other ones: they process images differently; set "
                "rollout.mm_processor_kwargs=null, and bound images by data.min_pixels and data.max_pixels"
            )
        assert self._version is not None, "an engine that answers has been pushed to"
        texts = self._tokenizer.batch_decode([one.token_ids for one in answered.completions], skip_special_tokens=True)
        return [
            Rollout(
                row=ref.row,
                group=ref.group,
                member=member,
                prompt_length=len(prompt.seen_ids),
                prompt_digest=digest(prompt.seen_ids),
                token_ids=one.token_ids,
                logprobs=one.logprobs,
                text=text,
                finish_reason=one.finish_reason,
                version=self._version,
                question=prompt.question,
                answer=prompt.answer,
            )
            for member, (one, text) in enumerate(zip(answered.completions, texts, strict=True))
        ]


def answer_seed(seed: int) -> int:
    """The seed of a prompt's first answer; those of its others follow it. Prompts of neighbouring seeds share none."""
    return random.Random(seed).getrandbits(SEED_BITS)


def pixel_options(config: Config, processor: Any) -> dict[str, Any] | None:
    """The engine's image options: those of the config, or those that the trainer's ``processor`` has been set to."""
    data = config.data
    if config.rollout.mm_processor_kwargs is not None:
        return dict(config.rollout.mm_processor_kwargs)
    if data.min_pixels is None and data.max_pixels is None:
        return None
    size = dict(processor.image_processor.size)
    return {"size": {edge: size[edge] for edge in ("shortest_edge", "longest_edge")}}


def engine_arguments(config: Config, pixels: Mapping[str, Any] | None, *, on_gpu: bool) -> dict[str, Any]:
    """Arguments of vLLM's AsyncEngineArgs. Raises UserError when the prompts' length is not bounded."""
    data, algorithm, rollout, actor = config.data, config.algorithm, config.rollout, config.actor
    if data.max_prompt_length is None:
        raise UserError(
            "data.max_prompt_length=null, but an engine has to know how long a prompt can be; set it to the tokens of "
            "the longest one, image tokens included"
        )
    answer = max(algorithm.sampling_params.max_new_tokens, algorithm.eval_sampling_params.max_new_tokens)
    dtype = actor.compute_dtype if rollout.dtype == "auto" else rollout.dtype
    arguments: dict[str, Any] = {
        "model": os.path.expanduser(actor.model.model_path),
        "trust_remote_code": actor.model.trust_remote_code,
        "load_format": "dummy",
        "dtype": ENGINE_DTYPES[dtype],
        "max_model_len": data.max_prompt_length + answer,
        "max_num_seqs": rollout.max_num_seqs,
        "tensor_parallel_size": rollout.tensor_parallel_size,
        "enforce_eager": not on_gpu if rollout.enforce_eager == "auto" else rollout.enforce_eager,
        "enable_prefix_caching": rollout.prefix_caching,
        # An image takes a token at least, so no prompt that fits has more of them.
        "limit_mm_per_prompt": {"image": data.max_prompt_length, "video": 0},
        "logprobs_mode": "processed_logprobs",  # of the distribution that was drawn from
        "generation_config": "vllm",  # not the model folder's, which may punish repetitions
        "worker_extension_cls": RECEIVER,
    }
    if rollout.tensor_parallel_size > 1:
        # Processes of its own: inside a worker vLLM would otherwise ask Ray for GPUs, which this worker has already.
        arguments["distributed_executor_backend"] = "mp"
    if pixels is not None:
        arguments["mm_processor_kwargs"] = dict(pixels)
    if on_gpu:
        arguments["gpu_memory_utilization"] = rollout.gpu_memory_utilization
        arguments["enable_sleep_mode"] = rollout.sleep is not False
    else:
        arguments["kv_cache_memory_bytes"] = int(rollout.kv_cache_gib * 2**30)
        # A prompt that is computed in parts makes vLLM turn back its random generator, which a CPU's cannot.
        arguments["enable_chunked_prefill"] = False
        arguments["max_num_batched_tokens"] = max(CPU_BATCHED_TOKENS, arguments["max_model_len"])
    return {**arguments, **rollout.engine_kwargs}
