"""Whether the engines can start as configured, as far as that is known before one does.

    Config + ModelFolder -> nothing, or UserError

An engine takes half a minute and more before it refuses its arguments. What needs no vLLM to know is told here:
lengths, the cache, names of arguments. Neither vLLM nor torch is imported; of vLLM's sources the names are read.
Not here: values of engine_kwargs, and the memory of GPUs, which the engines measure when they start.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from pathlib import Path

from rlinf_vlm.config.memory import GIB
from rlinf_vlm.config.resolve import BYTES
from rlinf_vlm.config.schema import Config
from rlinf_vlm.models.folder import ModelFolder
from rlinf_vlm.registry import nearest
from rlinf_vlm.types import UserError

ARGUMENTS = Path("engine", "arg_utils.py")
ARGUMENT_CLASSES = ("EngineArgs", "AsyncEngineArgs")
"""Where, below vLLM's package, the arguments of its engines are declared."""
OWN = ("model", "logprobs_mode", "worker_extension_cls")
"""Arguments without which an engine's answers could not be trained on, nor weights be pushed to it."""
ANY_LENGTH = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
"""With it, vLLM takes more tokens than the model's config has positions."""


def check_engine(config: Config, model: ModelFolder) -> None:
    """The checks that hold on any machine. Raises UserError."""
    unknown = sorted(config.rollout.engine_kwargs.keys() - known_arguments()) if known_arguments() else []
    if unknown:
        guess = nearest(unknown[0], known_arguments())
        hint = f"; did you mean {guess!r}?" if guess else "; take it out"
        raise UserError(f"rollout.engine_kwargs has the key {unknown[0]!r}, which the installed vLLM has not{hint}")
    own = [name for name in OWN if name in config.rollout.engine_kwargs]
    if own:
        raise UserError(f"rollout.engine_kwargs has the key {own[0]!r}, which this trainer sets itself; take it out")
    longest, key = longest_sequence(config)
    if 0 < model.max_positions < longest and not os.environ.get(ANY_LENGTH):
        raise UserError(
            f"data.max_prompt_length={config.data.max_prompt_length} and {key}={_answer(config)[0]}{_room(config)} "
            f"make {longest} tokens, but {model.path} has positions for {model.max_positions} "
            "(max_position_embeddings); lower one of them"
        )


def check_cache(config: Config, model: ModelFolder, host_memory: int | None) -> None:
    """The KV cache of an engine on a CPU: the host has it (``host_memory`` bytes, None: not known), and the longest
    prompt with its answer fits in. Raises UserError."""
    given = config.rollout.kv_cache_gib
    if host_memory is not None and given * GIB >= host_memory:
        raise UserError(
            f"rollout.kv_cache_gib={given:g} is more than this machine's memory of {host_memory / GIB:.1f} GiB; lower "
            "it (1 to 4 will do for small models)"
        )
    longest, key = longest_sequence(config)
    dtype = config.actor.compute_dtype if config.rollout.dtype == "auto" else config.rollout.dtype
    needed = longest * model.kv_values * BYTES[dtype]
    if given * GIB < needed:
        raise UserError(
            f"rollout.kv_cache_gib={given:g} is less than the {needed / GIB:.2g} GiB of one prompt and its answer, "
            f"{longest} tokens (data.max_prompt_length + {key}{_room(config)}); raise it"
        )


def longest_sequence(config: Config) -> tuple[int, str]:
    """Tokens of the longest conversation, and the key that bounds what is generated in it."""
    answer, key = _answer(config)
    return (config.data.max_prompt_length or 0) + answer + config.env.observation_room, key


def _answer(config: Config) -> tuple[int, str]:
    """Most tokens that are generated in a conversation, and the key that says so."""
    algorithm = config.algorithm
    return max(
        (algorithm.sampling_params.max_new_tokens, "algorithm.sampling_params.max_new_tokens"),
        (algorithm.eval_sampling_params.max_new_tokens, "algorithm.eval_sampling_params.max_new_tokens"),
        key=lambda bound: bound[0],
    )


def _room(config: Config) -> str:
    """What observations add, for a message; "" where there are none."""
    env = config.env
    if not env.observation_room:
        return ""
    return f" and (env.max_turns - 1) x env.max_observation_tokens={env.observation_room}"


def known_arguments() -> frozenset[str]:
    """Names of the installed vLLM's engine arguments; empty where its sources do not show them."""
    package = importlib.util.find_spec("vllm")
    folders = [] if package is None else list(package.submodule_search_locations or ())
    files = [Path(folder) / ARGUMENTS for folder in folders]
    return frozenset().union(*(_declared(file) for file in files if file.is_file()))


def _declared(file: Path) -> set[str]:
    """The fields of the classes of arguments in a Python file."""
    classes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    return {
        field.target.id
        for node in classes
        if node.name in ARGUMENT_CLASSES
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }
