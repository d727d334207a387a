"""Which part of a model a weight belongs to, and what of a model is trained: from names and shapes alone, no torch.

    safetensors header (``stored_linears``) or modules (``lora.linear_layers``) -> LinearLayer -> ``choose_linears``

Invariants: the same choice is made before a process starts, from the header, and in every rank, from the modules; so a
target that matches nothing is refused before anything is loaded. Output heads and embeddings are never chosen.
Not here: making adapters (lora.py) and freezing (loading.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from rlinf_vlm.config.actor import PARTS, ModelConfig
from rlinf_vlm.models.families import FamilySpec
from rlinf_vlm.types import UserError

KEY = "actor.model.lora_target"
_DECODER_ROOTS = ("model.layers.", "model.embed_tokens.", "model.norm.")
"""Starts of names in folders from before transformers put the decoder under model.language_model."""
_NO_LINEAR = re.compile(r"(^|\.)(lm_head|gate|[^.]*embed[^.]*)\.weight$|\.experts\.")
"""Two-dimensional weights of other layers: heads, tables, and a mixture's router and experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearLayer:
    """One ``nn.Linear``: module path, part (one of PARTS, None for none of them), numbers of inputs and outputs."""

    path: str
    part: str | None
    inputs: int
    outputs: int

    @property
    def name(self) -> str:
        """The last piece of the path, e.g. q_proj."""
        return self.path.rpartition(".")[2]


def part_of(hf_name: str, spec: FamilySpec) -> str | None:
    """Which part a parameter belongs to: "merger", "vision_tower", "language_model", or None for none of them."""
    if hf_name.startswith(spec.merger_prefixes):
        return "merger"
    if hf_name.startswith(spec.vision_prefixes):
        return "vision_tower"
    return "language_model" if hf_name.startswith(spec.language_prefixes) else None


def stored_part(name: str, spec: FamilySpec) -> str | None:
    """``part_of`` for a name in a file, where older folders leave out ``model.`` or ``model.language_model.``.

    Example: ``visual.blocks.0.attn.qkv.weight`` of Qwen2.5-VL -> "vision_tower".
    """
    candidates = [name, f"model.{name}"]
    if name.startswith(_DECODER_ROOTS):
        candidates.append("model.language_model." + name.removeprefix("model."))
    return next((part for candidate in candidates if (part := part_of(candidate, spec))), None)


def stored_linears(shapes: Mapping[str, Sequence[int]], spec: FamilySpec) -> list[LinearLayer]:
    """The linear layers among the weights of a folder (``ModelFolder.shapes``), by the names that the files have.

    Told by name and by having two dimensions: exact for the families here, close for others.
    """
    return [
        LinearLayer(path=name.removesuffix(".weight"), part=stored_part(name, spec), inputs=shape[1], outputs=shape[0])
        for name, shape in shapes.items()
        if len(shape) == 2 and name.endswith(".weight") and not _NO_LINEAR.search(name)
    ]


def choose_linears(layers: Iterable[LinearLayer], targets: Sequence[str], frozen: Collection[str]) -> list[LinearLayer]:
    """The layers that get adapters, in the order given: those that ``targets`` name, outside ``frozen`` parts.

    A target is a part, a layer's name (in the language model) or part.name. UserError for a target that matches no
    layer, and when nothing is left.
    """
    layers = list(layers)
    chosen: set[str] = set()
    for target in targets:
        part, name = split_target(target)
        matched = {layer.path for layer in layers if layer.part == part and name in (None, layer.name)}
        if not matched:
            raise UserError(f"{KEY}: {target!r} names no linear layer; {_guess(target, layers)}{_inventory(layers)}")
        chosen |= matched
    left = [layer for layer in layers if layer.path in chosen and layer.part not in frozen]
    if not left:
        raise UserError(
            f"{KEY}={list(targets)} with {', '.join(f'actor.model.freeze.{part}=true' for part in sorted(frozen))} "
            "leaves no layer for adapters, so nothing to train; target another part, or do not freeze this one"
        )
    return left


def split_target(target: str) -> tuple[str, str | None]:
    """(part, layer's name or None for all of them). Example: "q_proj" -> ("language_model", "q_proj")."""
    part, dot, name = target.partition(".")
    if part in PARTS:
        return part, name if dot else None
    return "language_model", target


def adapter_size(layers: Iterable[LinearLayer], rank: int) -> int:
    """Parameters of the adapters of ``layers``: A is [rank, inputs], B is [outputs, rank]."""
    return sum(rank * (layer.inputs + layer.outputs) for layer in layers)


def adapted_layers(
    model: ModelConfig, shapes: Mapping[str, Sequence[int]], spec: FamilySpec
) -> list[LinearLayer] | None:
    """The layers of a folder that get adapters under ``model``; none without LoRA.

    None where the header does not suffice to say: no safetensors, names that belong to no known part, or a generic
    family, whose names in files need not be the model's, without a match. UserError as ``choose_linears`` otherwise.
    """
    if not model.is_lora:
        return []
    layers = stored_linears(shapes, spec)
    if not layers or any(layer.part is None for layer in layers):
        return None
    try:
        return choose_linears(layers, model.lora_target, frozen_parts(model))
    except UserError:
        if spec.hf_model_types:
            raise
        return None


def count_trained(model: ModelConfig, shapes: Mapping[str, Sequence[int]], spec: FamilySpec) -> int | None:
    """Parameters that are trained under ``model``, adapters included; None: not known before loading."""
    if not shapes:
        return None
    if model.is_lora:
        layers = adapted_layers(model, shapes, spec)
        return None if layers is None else adapter_size(layers, model.lora_rank)
    frozen = frozen_parts(model)
    return sum(math.prod(shape) for name, shape in shapes.items() if stored_part(name, spec) not in frozen)


def frozen_parts(model: ModelConfig) -> frozenset[str]:
    """The parts that actor.model.freeze names."""
    return frozenset(part for part in PARTS if getattr(model.freeze, part))


def _names(layers: Sequence[LinearLayer], part: str) -> list[str]:
    """Targets that name layers of ``part``, each once."""
    names = sorted({layer.name for layer in layers if layer.part == part})
    return names if part == "language_model" else [f"{part}.{name}" for name in names]


def _inventory(layers: Sequence[LinearLayer]) -> str:
    """ "there are language_model (down_proj, ...), vision_tower (vision_tower.qkv, ...)"."""
    found = [(part, _names(layers, part)) for part in PARTS]
    return "there are " + (", ".join(f"{part} ({', '.join(names)})" for part, names in found if names) or "none at all")


def _guess(target: str, layers: Sequence[LinearLayer]) -> str:
    """ "did you mean 'vision_tower.qkv'? " for "qkv", which stands in another part than the language model."""
    names = [*PARTS, *(name for part in PARTS for name in _names(layers, part))]
    last = target.rpartition(".")[2]
    same = [name for name in names if name.rpartition(".")[2] == last]
    guesses = same or get_close_matches(target, names, n=1)
    return f"did you mean {guesses[0]!r}? " if guesses else ""
