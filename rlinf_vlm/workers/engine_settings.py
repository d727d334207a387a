"""What vLLM's engine is told when it starts: from the run's config, the trainer's processor and the machine.

Pure: loads no vLLM, whose names for things stand here as plain text.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from rlinf_vlm.config.schema import Config
from rlinf_vlm.types import UserError

ENGINE_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
RECEIVER = "rlinf_vlm.workers.engine_weights.PushReceiver"
"""What vLLM's worker class is extended by, in vLLM's notation."""
CPU_BATCHED_TOKENS = 8192
"""Tokens that an engine on a CPU computes at a time."""


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
    told = config.env.observation_room
    answer = max(algorithm.sampling_params.max_new_tokens, algorithm.eval_sampling_params.max_new_tokens)
    dtype = actor.compute_dtype if rollout.dtype == "auto" else rollout.dtype
    arguments: dict[str, Any] = {
        "model": os.path.expanduser(actor.model.model_path),
        "trust_remote_code": actor.model.trust_remote_code,
        "load_format": "dummy",
        "dtype": ENGINE_DTYPES[dtype],
        "max_model_len": data.max_prompt_length + answer + told,
        "max_num_seqs": rollout.max_num_seqs,
        "tensor_parallel_size": rollout.tensor_parallel_size,
        "enforce_eager": not on_gpu if rollout.enforce_eager == "auto" else rollout.enforce_eager,
        "enable_prefix_caching": rollout.prefix_caching,
        # An image takes a token at least, so nothing that fits has more of them.
        "limit_mm_per_prompt": {"image": data.max_prompt_length + told, "video": 0},
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
