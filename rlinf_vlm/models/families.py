"""Which model families exist and what the rest of the package has to know of each, without loading any of them.

Dataflow: ``actor.model.model_type`` -> ``resolve_family`` -> ``FamilySpec`` -> ``loading.build_model``.
Invariants: importing this module loads no torch and no transformers; a spec is plain data.
Not here: the forward passes (``implementation`` names them) and reading checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlinf_vlm import registry


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilySpec:
    """What distinguishes a family.

    name: the name in the config; hf_model_types: accepted ``model_type`` of the checkpoint's config.json, empty = any;
    mrope: positions are 3-D (time, height, width); supports_packing: one row of many samples, else padded rows;
    vision_prefixes, merger_prefixes, language_prefixes: starts of parameter names for freezing, a merger prefix wins
    over a vision prefix; implementation: ``pkg.module:Class`` of the backbone (see ``policy.Backbone``); rounds_pixels:
    the vision tower rounds pixels to the dtype of its weights before anything else, so that they may come in it.

    Example: ``FamilySpec(name="mine", hf_model_types=("my_vl",), mrope=False, supports_packing=False,
    vision_prefixes=("model.vision_tower.",), merger_prefixes=("model.projector.",),
    language_prefixes=("model.language_model.", "lm_head."), implementation="rlinf_vlm.models.padded:PaddedBackbone")``
    """

    name: str
    hf_model_types: tuple[str, ...]
    mrope: bool
    supports_packing: bool
    vision_prefixes: tuple[str, ...]
    merger_prefixes: tuple[str, ...]
    language_prefixes: tuple[str, ...]
    implementation: str
    rounds_pixels: bool = False


_LANGUAGE = ("model.language_model.", "lm_head.")


def _qwen(name: str, hf_model_type: str, *, deepstack: bool) -> FamilySpec:
    mergers = ("model.visual.merger.",) + (("model.visual.deepstack_merger_list.",) if deepstack else ())
    return FamilySpec(
        name=name,
        hf_model_types=(hf_model_type,),
        mrope=True,
        supports_packing=True,
        vision_prefixes=("model.visual.",),
        merger_prefixes=mergers,
        language_prefixes=_LANGUAGE,
        implementation="rlinf_vlm.models.qwen_vl:QwenBackbone",
        rounds_pixels=True,
    )


QWEN2_VL = _qwen("qwen2_vl", "qwen2_vl", deepstack=False)
QWEN2_5_VL = _qwen("qwen2.5_vl", "qwen2_5_vl", deepstack=False)
QWEN3_VL = _qwen("qwen3_vl", "qwen3_vl", deepstack=True)
QWEN3_VL_MOE = _qwen("qwen3_vl_moe", "qwen3_vl_moe", deepstack=True)
AUTO = FamilySpec(
    name="auto",
    hf_model_types=(),
    mrope=False,
    supports_packing=False,
    vision_prefixes=("model.vision_tower.", "model.vision_model.", "model.visual.", "model.image_encoder."),
    merger_prefixes=(
        "model.multi_modal_projector.",
        "model.connector.",
        "model.aligner.",
        "model.vision_projection.",
        "model.visual.merger.",
    ),
    language_prefixes=("model.language_model.", "model.text_model.", "lm_head."),
    implementation="rlinf_vlm.models.padded:PaddedBackbone",
)

FAMILIES: dict[str, str] = {
    "qwen2_vl": "rlinf_vlm.models.families:QWEN2_VL",
    "qwen2.5_vl": "rlinf_vlm.models.families:QWEN2_5_VL",
    "qwen2_5_vl": "rlinf_vlm.models.families:QWEN2_5_VL",
    "qwen3_vl": "rlinf_vlm.models.families:QWEN3_VL",
    "qwen3_vl_moe": "rlinf_vlm.models.families:QWEN3_VL_MOE",
    "auto": "rlinf_vlm.models.families:AUTO",
}


def resolve_family(model_type: str) -> FamilySpec:
    """The spec of a family's name or of ``pkg.module:SPEC``; ValueError for an unknown name or for another thing."""
    spec = registry.resolve("model_type", model_type, FAMILIES)
    if not isinstance(spec, FamilySpec):
        raise ValueError(f"model_type {model_type!r} is a {type(spec).__name__}, not a FamilySpec")
    return spec


def family_for(hf_model_type: str) -> str:
    """The name of the family made for a checkpoint's ``model_type``; ``auto`` when none is."""
    for spec in (QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE):
        if hf_model_type in spec.hf_model_types:
            return spec.name
    return AUTO.name


def check_family(spec: FamilySpec, hf_model_type: str) -> None:
    """ValueError when the checkpoint's ``model_type`` is none of the family's; says which family it needs."""
    if spec.hf_model_types and hf_model_type not in spec.hf_model_types:
        raise ValueError(
            f"model_type {spec.name!r} takes checkpoints of type {', '.join(spec.hf_model_types)}, "
            f"but config.json says {hf_model_type!r}; set model_type: {family_for(hf_model_type)}"
        )
    if not spec.hf_model_types and family_for(hf_model_type) != AUTO.name:
        raise ValueError(
            f"model_type {spec.name!r} has no 3-D positions, which checkpoints of type {hf_model_type!r} need; "
            f"set model_type: {family_for(hf_model_type)}"
        )
