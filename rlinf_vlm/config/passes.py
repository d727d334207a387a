"""How a run computes: the plan's answer to every ``auto`` of ``actor.*``, each with its reason. Pure functions.

``ActorConfig`` + ``Circumstances`` (what is known of the machine, the model and the batch) -> ``Passes``, which the
ranks follow and ``runner.dry_run=true`` shows. What is asked for explicitly is taken, or is a UserError where it cannot
work; where nothing comes of it, the reason says so. What depends on memory is decided in memory.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlinf_vlm.config.actor import ActorConfig, Switch
from rlinf_vlm.config.memory import Circumstances, memory_level
from rlinf_vlm.config.resolve import MemoryEstimate
from rlinf_vlm.types import UserError

ALIGNMENT, PADDED_TO = 8, 64
"""bf16 matrix products are fast for widths that are multiples of 8 (16 bytes); padding goes to a multiple of 64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPasses:
    """What of it a model does in its forward; the defaults work everywhere. checkpointed: part of the layers of each
    tower that are computed again in backward; the rest as in ``PassesConfig``, decided."""

    linear_patch_embed: bool = True
    compile: bool = False
    pad_vision_mlp: bool = False
    chunked_loss: bool = True
    frozen_vision_no_grad: bool = True
    grouped_experts: bool = True
    checkpointed: float = 0.0


PLAIN = ModelPasses()
"""The defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """What the ranks do.

    share_images, fused_optimizer: as in ``PassesConfig``, decided; balance_tokens: ranks share a step by cost; reshard:
    free gathered parameters after each use; accumulate: keep unsharded gradients until a step's last micro-batch;
    memory: None where the model's size is not known; reasons: dotted key below ``actor.`` -> why.
    """

    model: ModelPasses
    share_images: bool
    fused_optimizer: bool
    balance_tokens: bool
    reshard: bool
    accumulate: bool
    memory: MemoryEstimate | None
    reasons: Mapping[str, str]

    def switch(self, name: str) -> bool:
        """What became of ``actor.passes.<name>``."""
        return getattr(self.model if hasattr(self.model, name) else self, name)


def choose_packing(actor: ActorConfig, *, packs: bool) -> tuple[bool, str]:
    """(whether micro-batches are filled by tokens, why)."""
    if actor.packing != "auto":
        return actor.packing, "requested"
    if not packs:
        return False, f"model_type={actor.model.model_type} runs padded rows"
    if actor.micro_batch_size is not None:
        return False, f"micro_batch_size={actor.micro_batch_size} is given"
    return True, "micro-batches of even cost, whatever the lengths"


def choose_passes(actor: ActorConfig, facts: Circumstances) -> Passes:
    """Decides every switch; UserError for a request that cannot work."""
    reasons: dict[str, str] = {}

    def decide(name: str, default: bool, why: str, *, idle: bool = False) -> bool:
        """``idle``: there is nothing here that it could change."""
        choice: Switch = getattr(actor.passes, name)
        asked = f"requested, changes nothing: {why}" if choice is True and idle else "requested"
        reasons[f"passes.{name}"] = why if choice == "auto" else asked
        return default if choice == "auto" else choice

    if not facts.packs:
        _refuse_packed_only(actor)

    level = memory_level(actor, facts)
    balances, reasons["balance_tokens"] = _balance(actor, facts)
    reasons["fsdp_config.sharding_strategy"] = level.why_sharding
    reasons["fsdp_config.accumulate_unsharded"] = level.why_accumulate
    reasons["fsdp_config.gradient_checkpointing"] = level.why_checkpointing
    model = ModelPasses(
        linear_patch_embed=decide(
            "linear_patch_embed",
            facts.packs,
            "its stride is its kernel" if facts.packs else "the model's own forward runs",
        ),
        compile=decide("compile", *_compile(actor, facts)),
        pad_vision_mlp=decide("pad_vision_mlp", *_padding(actor, facts), idle=not _is_odd(facts)),
        chunked_loss=decide("chunked_loss", True, "the loss needs no other logits"),
        frozen_vision_no_grad=decide(
            "frozen_vision_no_grad",
            True,
            _recording(actor, facts),
        ),
        grouped_experts=decide(
            "grouped_experts",
            facts.has_experts,
            "one product for all experts" if facts.has_experts else "no mixture of experts",
            idle=not facts.has_experts,
        ),
        checkpointed=level.checkpointed,
    )
    return Passes(
        model=model,
        share_images=decide("share_images", True, "an image gives one set of features"),
        fused_optimizer=decide("fused_optimizer", True, "one kernel reads all once"),
        balance_tokens=balances,
        reshard=level.reshard,
        accumulate=level.accumulate,
        memory=level.estimate,
        reasons=reasons,
    )


def _refuse_packed_only(actor: ActorConfig) -> None:
    """Switches of the packed forward, asked for where transformers' own runs."""
    for name, why in (
        ("compile", ", whose shapes change with each micro-batch"),
        ("linear_patch_embed", ""),
        ("pad_vision_mlp", ""),
        ("grouped_experts", ""),
    ):
        if getattr(actor.passes, name) is True:
            raise UserError(
                f"actor.passes.{name}=true, but model_type={actor.model.model_type!r} is run by transformers' own "
                f"forward{why}; set it to auto or false"
            )


def _recording(actor: ActorConfig, facts: Circumstances) -> str:
    """What leaving out the recording for backward comes to."""
    freeze = actor.model.freeze
    if not facts.trains:
        return "nothing is trained"
    if (freeze.vision_tower and freeze.merger) or actor.model.is_lora:
        return "where nothing in the tower is trained"
    return "the tower is trained: nothing to leave out"


def _balance(actor: ActorConfig, facts: Circumstances) -> tuple[bool, str]:
    if actor.balance_tokens is False:
        return False, "requested"
    if not facts.trains:
        return False, "nothing is trained"
    if not facts.packing:
        if actor.balance_tokens is True:
            raise UserError(
                "actor.balance_tokens=true shares a step by tokens, but micro-batches count samples; set it to auto, "
                "or set actor.packing=true"
            )
        return False, "samples are counted, not tokens"
    if facts.world_size == 1:
        return False, "one rank"
    return True, "ranks share a step by cost: tokens and image tokens, measured ahead"


def _compile(actor: ActorConfig, facts: Circumstances) -> tuple[bool, str]:
    if not facts.packs:
        return False, "the model's own forward runs, with other shapes each time"
    if not facts.on_gpu:
        return False, "on a CPU, compiling takes longer than it saves"
    if not facts.trains:
        return False, "an evaluation is over before compiling has paid"
    if actor.deterministic:
        return False, "deterministic=true: compiled kernels depend on the lengths met first"
    if actor.compute_dtype != "bf16" or actor.model.attn_implementation == "sdpa":
        return False, "without a variable-length kernel, attention's shapes change with each micro-batch"
    return True, "fewer passes over memory between the matrix products"


def _padding(actor: ActorConfig, facts: Circumstances) -> tuple[bool, str]:
    width = facts.vision_mlp
    if width is None or width % ALIGNMENT == 0:
        return False, "no vision MLP of an odd width" if width is None else f"its width {width:,} is a multiple of 8"
    if facts.adapted_mlp:
        return False, "its layers have adapters, which are as wide as they are"
    if not facts.on_gpu or actor.compute_dtype != "bf16":
        return False, "no tensor cores in bf16"
    return True, f"{width:,} is no multiple of 8: computed as {padded_width(width):,}"


def _is_odd(facts: Circumstances) -> bool:
    """Whether there is a vision MLP that padding would change."""
    return facts.vision_mlp is not None and facts.vision_mlp % ALIGNMENT != 0 and not facts.adapted_mlp


def padded_width(width: int) -> int:
    """The next multiple of ``PADDED_TO``. Example: ``padded_width(3420) == 3456``"""
    return -(-width // PADDED_TO) * PADDED_TO
