"""vLLM behind plain calls: prompts in, tokens with log-probabilities out; weights in, caches empty.

    Prompt --answer--> Answered        all in flight at once; the engine batches them as they come and go
    begin_push -> receive (a bucket each) -> finish_push

The engine runs in processes of its own, children of this one and in its process group; a thread runs their event loop
here, so that a call waits for its result as any call does. vLLM is imported when an engine starts, here and, for the
engine's side of a push, in ``engine_weights``: nowhere else.

Invariants: nothing is generated before a whole push; no call waits for an engine that is dead. Does not read rows,
render, or know versions.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import itertools
import logging
import os
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from rlinf_vlm.registry import nearest
from rlinf_vlm.rollout.prompts import Prompt
from rlinf_vlm.rollout.records import FinishReason, Sampling
from rlinf_vlm.types import PushSettings, UserError, WeightBucket
from rlinf_vlm.workers.push_messages import bucket_message

T = TypeVar("T")

ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # While it starts it looks at all that torch has, what is deprecated included.
    "PYTHONWARNINGS": "ignore:`torch.distributed.reduce_op`:FutureWarning",
    # Handles of GPU memory hold types that its messages do not take otherwise. The sockets are this machine's own.
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
}
"""Set unless the user has."""
CPU_ENVIRONMENT = {
    # Its warnings on a CPU are about libraries that nobody misses.
    "VLLM_LOGGING_LEVEL": "ERROR",
    # Left to itself it would bind its threads to cores that the trainer runs on, and leave one unused.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # One process instead of two that wait for each other spinning: starts in 27 s instead of 48 s on two cores.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
}
NEWER_ARGUMENTS = {
    # Its constants would be buffers of the model, which an engine that starts without weights fills at random.
    "mm_device_do_normalize": False,
}
"""Arguments for those versions of vLLM that have them."""
BAN = -100.0
"""What is added to the logits of banned ids: the least that vLLM takes."""
POLL_S = 1.0
"""How often a waiting call looks whether the engine lives."""
CLOSE_S = 1.0
"""How long the engine's processes may take to end by themselves."""
SLEEP_LEVEL = 2
"""Weights are not kept aside: they are pushed again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One answer. seen_ids: of the prompt, as the engine saw them, image tokens expanded; token_ids [L], logprobs [L]:
    of each token, of the distribution that it was drawn from."""

    seen_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


class Engine:
    """One vLLM engine, its weights not yet pushed."""

    def __init__(
        self,
        arguments: Mapping[str, Any],
        *,
        banned: Sequence[int],
        stop: Sequence[int],
        on_gpu: bool,
        num_threads: int,
    ) -> None:
        """arguments: of vLLM's AsyncEngineArgs; banned: ids that are never sampled; stop: ids that end an answer,
        beside those that the model folder's generation_config.json names; num_threads: of an engine on a CPU, 0 for its
        own choice. Raises UserError when vLLM refuses the arguments, RuntimeError when the engine does not start."""
        _set_environment(on_gpu=on_gpu, num_threads=num_threads)
        self._banned = dict.fromkeys(banned, BAN)
        self._stop = list(stop)
        self._requests = itertools.count()
        self._llm: Any = None
        self._pushing: Literal["no", "some", "all"] = "no"
        self._is_filled = False
        self._is_asleep = False
        self._transport = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()
        self._llm = self._call(self._started(dict(arguments)))
        self._rpc("live_as_long_as", os.getpid())

    async def _started(self, arguments: dict[str, Any]) -> Any:
        import vllm
        from vllm.usage.usage_lib import UsageContext

        known = {field.name for field in dataclasses.fields(vllm.AsyncEngineArgs)}
        arguments = {**{name: value for name, value in NEWER_ARGUMENTS.items() if name in known}, **arguments}
        for name in sorted(arguments.keys() - known):
            guess = nearest(name, known)
            hint = f"; did you mean {guess!r}?" if guess else ""
            raise UserError(f"rollout.engine_kwargs has the key {name!r}, which vLLM {vllm.__version__} has not{hint}")
        try:
            settings = vllm.AsyncEngineArgs(**arguments).create_engine_config(UsageContext.LLM_CLASS)
        except (ValueError, TypeError, OSError) as error:
            raise UserError(
                f"vLLM refuses the engine's arguments ({_one_line(error)}); change rollout.*, or where it is about "
                "lengths, data.max_prompt_length and max_new_tokens"
            ) from error
        try:
            return vllm.AsyncLLMEngine.from_vllm_config(settings, disable_log_stats=True)
        except RuntimeError as error:
            raise RuntimeError(
                f"the engine did not start: {_one_line(error)} Its own words are in the log. Where it lacks memory, "
                "change rollout.gpu_memory_utilization (on a CPU rollout.kv_cache_gib) or data.max_pixels"
            ) from error

    @property
    def kv_cache_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        cache = self._llm.vllm_config.cache_config
        return int(cache.num_gpu_blocks or 0) * int(cache.block_size)

    async def answer(self, prompt: Prompt, sampling: Sampling, *, seed: int, max_new_tokens: int) -> Answered:
        """One answer to ``prompt`` of at most ``max_new_tokens``, ``sampling``'s own number and limit not being read.

        Awaited on the caller's event loop; cancelled, it is taken from the engine. Raises RuntimeError when the engine
        has no weights, or died.
        """
        if not self._is_filled:
            raise RuntimeError("the engine has no weights: push them first")
        from vllm.v1.engine.exceptions import EngineDeadError

        waiting = asyncio.wrap_future(self._start(self._answered(prompt, sampling, seed, max_new_tokens)))
        try:
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=POLL_S)
                if not waiting.done() and self._llm is not None and self._llm.errored:
                    raise RuntimeError(DEAD)
            return waiting.result()
        except EngineDeadError as error:
            raise RuntimeError(DEAD) from error
        finally:
            waiting.cancel()

    def _wait(self, future: concurrent.futures.Future[T]) -> T:
        """What ``future`` comes to. Raises RuntimeError when the engine died."""
        from vllm.v1.engine.exceptions import EngineDeadError

        while True:
            try:
                return future.result(timeout=POLL_S)
            except EngineDeadError as error:
                raise RuntimeError(DEAD) from error
            except concurrent.futures.TimeoutError:
                if future.done():
                    raise
                if self._llm is not None and self._llm.errored:
                    future.cancel()
                    raise RuntimeError(DEAD) from None

    async def _answered(self, prompt: Prompt, sampling: Sampling, seed: int, max_new_tokens: int) -> Answered:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        request: dict[str, Any] = {"prompt_token_ids": list(prompt.token_ids)}
        if prompt.images:
            request["multi_modal_data"] = {"image": list(prompt.images)}
        settings = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=max_new_tokens,
            seed=seed,
            logprobs=0,
            logit_bias=self._banned,
            stop_token_ids=self._stop,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        outputs = self._llm.generate(request, settings, str(next(self._requests)))
        (output,) = [output async for output in outputs]
        (said,) = output.outputs
        if said.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"the engine ended an answer for the reason {said.finish_reason!r}")
        chosen = zip(said.token_ids, said.logprobs or (), strict=True)
        return Answered(
            seen_ids=tuple(output.prompt_token_ids),
            token_ids=tuple(said.token_ids),
            logprobs=tuple(float(found[token].logprob) for token, found in chosen),
            finish_reason=cast(FinishReason, said.finish_reason),
        )

    def open_push(self, settings: PushSettings) -> None:
        """Makes ready for pushes; over nccl, waits for the sender."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        self._transport = settings.transport
        self._rpc("push_open", settings.transport)
        meeting: dict[str, Any] = {}
        if settings.transport == "nccl":
            meeting = {
                "master_address": settings.address,
                "master_port": settings.port,
                "rank_offset": settings.first_rank,
                "world_size": settings.world_size,
            }
        self._call(self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=meeting)))

    def begin_push(self) -> None:
        """Wakes the weights; buckets can come."""
        if self._is_asleep:
            self._call(self._llm.wake_up(tags=["weights"]))
        self._pushing = "some" if self._is_filled else "all"
        self._call(self._llm.start_weight_update())

    def receive(self, bucket: WeightBucket, handles: Any) -> None:
        """Loads one bucket; ``handles``: where it is, see ``bucket_message``."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        message = bucket_message(self._transport, bucket, handles)
        self._call(self._llm.update_weights(WeightTransferUpdateRequest(update_info=message)))

    def finish_push(self) -> None:
        """Ends the push: wakes the KV cache and empties all caches, whose contents came of other weights.

        Raises RuntimeError that names weights which did not come, of the first push or one after a sleep, or came in
        part, and those that the engine does not know.
        """
        found = {problem for part in self._rpc("push_problems", self._pushing == "all") for problem in part}
        if found:
            shown = "; ".join(sorted(found)[:5])
            raise RuntimeError(f"the push to the engine does not fit its model, at {len(found)} places: {shown}")
        self._call(self._llm.finish_weight_update())
        if self._is_asleep:
            self._call(self._llm.wake_up(tags=["kv_cache"]))
        for reset in (self._llm.reset_prefix_cache, self._llm.reset_mm_cache, self._llm.reset_encoder_cache):
            self._call(reset())
        self._pushing, self._is_filled, self._is_asleep = "no", True, False

    def sleep(self) -> None:
        """Gives the memory of weights and KV cache back, until the next push, which has to bring every weight."""
        if not self._is_asleep:
            self._call(self._llm.sleep(level=SLEEP_LEVEL))
            self._is_asleep, self._is_filled = True, False

    def close(self) -> None:
        """Ends the engine's processes."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.shutdown(timeout=CLOSE_S)
            self._start(asyncio.sleep(POLL_S / 10)).result()  # what still waits for the engine sees that it is over
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_S)

    def _rpc(self, method: str, *arguments: Any) -> list[Any]:
        """What ``PushReceiver.method`` gives in each of the engine's processes."""
        return self._call(self._llm.collective_rpc(method, args=arguments))

    def _start(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._wait(self._start(coroutine))


DEAD = "the engine's process has died; its own last words are in the log above, or the system was out of memory"


def _set_environment(*, on_gpu: bool, num_threads: int) -> None:
    """What vLLM, in this process and its children, reads of the environment, unless the user has set it."""
    settings = {**ENVIRONMENT, **({} if on_gpu else CPU_ENVIRONMENT)}
    if not on_gpu and num_threads:
        settings["OMP_NUM_THREADS"] = str(num_threads)
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    # It warns while it is imported, before it has read its level.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
