"""Builds the policy from a checkpoint folder, freezes parts of it, and lists the blocks that sharding wraps.

Dataflow: folder -> transformers model (weights on the CPU, or none: parameters on the meta device) -> backbone of the
family -> ``VisionLanguageModel``.
Invariants: a checkpoint that lacks a weight, or has one that the model does not, is an error; buffers (rotary
frequencies) are real and float32 even where parameters are on the meta device; tied parameters stay one parameter.
Not here: moving to a device, sharding, and writing checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from rlinf_vlm import registry
from rlinf_vlm.config.passes import PLAIN, ModelPasses
from rlinf_vlm.models.compiled import compile_function
from rlinf_vlm.models.families import FamilySpec, check_family
from rlinf_vlm.models.lora import LoraSettings, add_adapters
from rlinf_vlm.models.parts import part_of
from rlinf_vlm.models.policy import VisionLanguageModel
from rlinf_vlm.models.token_scores import CHUNK, pick_labels, pick_viewed
from rlinf_vlm.types import TokenScores, UserError

_SHOWN = 5


def build_model(
    model_path: str | Path,
    spec: FamilySpec,
    *,
    dtype: torch.dtype,
    attention: str,
    on_meta: bool = False,
    trust_remote_code: bool = False,
    lora: LoraSettings | None = None,
    passes: ModelPasses = PLAIN,
) -> VisionLanguageModel:
    """The policy of the checkpoint in ``model_path``, in training mode.

    dtype: of the parameters; attention: a name that ``attention.choose_attention`` gave; on_meta: no weights are read,
    parameters are on the meta device; lora: adds adapters and freezes the rest. UserError for a folder that does not
    exist or does not fit ``spec`` or the model, and for adapters that match no layer.
    """
    from transformers import AutoConfig

    path = Path(model_path)
    if not (path / "config.json").is_file():
        raise UserError(f"model_path {path}: no config.json there; give the folder of a Hugging Face checkpoint")
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    try:
        check_family(spec, config.model_type)
    except ValueError as error:
        raise UserError(f"model_path {path}: {error}") from error
    if on_meta:
        hf = empty_model(config, dtype=dtype, trust_remote_code=trust_remote_code)
    else:
        hf = load_weights(path, config, dtype=dtype, trust_remote_code=trust_remote_code)
    if lora is not None:
        add_adapters(hf, spec, lora)
    return wrap_model(hf, spec, attention=attention, passes=passes)


def wrap_model(hf: Any, spec: FamilySpec, *, attention: str, passes: ModelPasses = PLAIN) -> VisionLanguageModel:
    """The policy around a transformers model that exists already; changes that model (see the backbone)."""
    if TokenScores not in _pytree.SUPPORTED_NODES:
        # FSDP2 hooks the backward pass onto the tensors that it finds in the root's output.
        _pytree.register_dataclass(TokenScores)
    backbone = registry.load_dotted(spec.implementation)(hf, attention, passes)
    model = VisionLanguageModel(
        hf,
        spec,
        backbone,
        chunk=CHUNK if passes.chunked_loss else None,
        pick=compile_function(pick_labels) if passes.compile else pick_labels,
        pick_view=compile_function(pick_viewed) if passes.compile else pick_viewed,
    )
    model.train()
    if passes.checkpointed:
        model.set_gradient_checkpointing(passes.checkpointed)
    return model


def load_weights(path: Path, config: Any, *, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """The transformers model with the folder's weights, on the CPU; UserError unless the weights fit exactly."""
    from transformers import AutoModelForImageTextToText

    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            path, config=config, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"model_path {path}: {str(error).strip().splitlines()[0]}") from error
    hf, info = loaded
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in info[what])
        if keys:
            more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
            raise UserError(
                f"model_path {path}: {what.replace('_', ' ')} for {type(hf).__name__}: "
                f"{', '.join(keys[:_SHOWN])}{more}; "
                "the weights belong to another config.json"
            )
    return hf


def empty_model(config: Any, *, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """The transformers model with parameters on the meta device and real buffers."""
    from transformers import AutoModelForImageTextToText

    with parameters_on_meta():
        hf = AutoModelForImageTextToText.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
        hf.tie_weights()
    return hf


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Inside, every parameter given to a module goes to the meta device; buffers stay what they are."""
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        original(module, name, param)

    nn.Module.register_parameter = register  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def freeze(
    model: VisionLanguageModel,
    spec: FamilySpec,
    *,
    vision_tower: bool = False,
    merger: bool = False,
    language_model: bool = False,
) -> int:
    """Freezes the parts given as True and returns how many parameters (numbers, not tensors) are still trained.

    A tied output projection belongs to the language model. UserError when a part has no parameters in this model or
    nothing is left to train.
    """
    chosen = {"vision_tower": vision_tower, "merger": merger, "language_model": language_model}
    frozen = dict.fromkeys(chosen, 0)
    for name, parameter in model.named_parameters():
        part = part_of(model.hf_state_name(name), spec)
        if part is not None and chosen[part]:
            parameter.requires_grad_(False)
            frozen[part] += 1
    for part, wanted in chosen.items():
        if wanted and not frozen[part]:
            roots = sorted({".".join(model.hf_state_name(name).split(".")[:2]) for name, _ in model.named_parameters()})
            raise UserError(
                f"freeze {part}: family {spec.name!r} finds none of its parameters among {', '.join(roots)}"
            )
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if not trained:
        raise UserError("every parameter is frozen: leave vision_tower, merger or language_model trainable")
    return trained


def blocks_in_order(model: VisionLanguageModel) -> list[nn.Module]:
    """The modules that sharding wraps one by one, in the order in which they run: vision blocks, decoder layers."""
    vision, decoder = model.blocks()
    return [*vision, *decoder]
