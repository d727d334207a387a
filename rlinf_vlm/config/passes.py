"""How a run computes: the plan's answer to every ``auto`` of ``actor.*``, each with its reason. Pure functions.

``ActorConfig`` + ``Circumstances`` (what is known of the machine, the model and the batch) -> ``Passes``, which the
ranks follow and ``runner.dry_run=true`` shows. What is asked for explicitly is taken, or is a UserError where it cannot
work. Memory is an estimate: of what fits by it, the fastest is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlinf_vlm.config.actor import ActorConfig, Switch
from rlinf_vlm.config.resolve import MemoryEstimate, estimate_memory
from rlinf_vlm.types import UserError

USABLE = 0.9
"""Part of a device's memory that a plan may fill: the rest is for allocator and kernels, and the estimate's error."""
ALIGNMENT, PADDED_TO = 8, 64
"""bf16 matrix products are fast for widths that are multiples of 8 (16 bytes); padding goes to a multiple of 64."""
GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a plan depends on beside the config.

    packs: the family runs packed rows; packing: this run does, in training; world_size: ranks; has_experts: it is a
    mixture; vision_mlp: inner width of the vision tower's gated MLP, None where it has none or nothing is known;
    parameters, trained, largest_block, hidden_size, num_layers: of the model, None or 0 where not known; tokens: most
    tokens of a micro-batch, None where nothing bounds them; shard: ranks that share one copy; memory: bytes of one
    rank's device, None where not known.
    """

    on_gpu: bool
    trains: bool
    packs: bool
    packing: bool
    world_size: int
    has_experts: bool
    vision_mlp: int | None
    parameters: int | None
    trained: int | None
    largest_block: int
    hidden_size: int
    num_layers: int
    tokens: int | None
    shard: int
    memory: int | None


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

    def decide(name: str, default: bool, why: str) -> bool:
        choice: Switch = getattr(actor.passes, name)
        reasons[f"passes.{name}"] = why if choice == "auto" else "requested"
        return default if choice == "auto" else choice

    frozen = (actor.model.freeze.vision_tower and actor.model.freeze.merger) or actor.model.is_lora
    level = _memory_level(actor, facts)
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
        pad_vision_mlp=decide("pad_vision_mlp", *_padding(actor, facts)),
        chunked_loss=decide("chunked_loss", True, "the loss needs no other logits"),
        frozen_vision_no_grad=decide(
            "frozen_vision_no_grad",
            True,
            "where nothing in the tower is trained" if frozen else "the tower is trained: nothing to leave out",
        ),
        grouped_experts=decide(
            "grouped_experts",
            facts.has_experts,
            "one product for all experts" if facts.has_experts else "no mixture of experts",
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


def _balance(actor: ActorConfig, facts: Circumstances) -> tuple[bool, str]:
    if actor.balance_tokens is False:
        return False, "requested"
    if not facts.packing:
        if actor.balance_tokens is True:
            raise UserError(
                "actor.balance_tokens=true shares a step by tokens, but micro-batches count samples; set it to auto, "
                "or actor.packing=true without actor.micro_batch_size"
            )
        return False, "samples are counted, not tokens"
    if facts.world_size == 1:
        return False, "one rank"
    return True, "ranks share a step by cost: tokens and image tokens, measured ahead"


def _compile(actor: ActorConfig, facts: Circumstances) -> tuple[bool, str]:
    if not facts.packs:
        if actor.passes.compile is True:
            raise UserError(
                f"actor.passes.compile=true, but model_type={actor.model.model_type!r} is run by transformers' own "
                "forward, whose shapes change with each micro-batch; set it to auto or false"
            )
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
    if not facts.on_gpu or actor.compute_dtype != "bf16":
        return False, "no tensor cores in bf16"
    return True, f"{width:,} is no multiple of 8: computed as {padded_width(width):,}"


def padded_width(width: int) -> int:
    """The next multiple of ``PADDED_TO``. Example: ``padded_width(3420) == 3456``"""
    return -(-width // PADDED_TO) * PADDED_TO


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    """One way to spend memory."""

    reshard: bool
    accumulate: bool
    checkpointed: float
    estimate: MemoryEstimate | None
    why_sharding: str = ""
    why_accumulate: str = ""
    why_checkpointing: str = ""


def _memory_level(actor: ActorConfig, facts: Circumstances) -> _Level:
    """The fastest way to spend memory that fits, among those that the config allows; the leanest if none does."""
    fsdp = actor.fsdp_config
    reshards = (False, True) if fsdp.sharding_strategy == "auto" else (_reshards(fsdp.sharding_strategy),)
    accumulates = (True, False) if fsdp.accumulate_unsharded == "auto" else (fsdp.accumulate_unsharded,)
    requested = None if fsdp.gradient_checkpointing == "auto" else float(fsdp.gradient_checkpointing)
    fractions = (0.0, 1.0) if requested is None else (requested,)
    # From fast to lean: gathering again costs least, then recomputing, then reducing each micro-batch.
    ways = [(r, a, f) for a in accumulates for f in fractions for r in reshards]
    if facts.memory is None or facts.parameters is None:
        reshard, accumulate, fraction = ways[0]
        if fsdp.sharding_strategy == "auto":
            reshard = True
        return _reasoned(
            actor, facts, reshard, accumulate, fraction, "the model's size or the device's memory is not known"
        )
    usable = facts.memory * USABLE
    for reshard, accumulate, fraction in ways:
        if _estimate(actor, facts, reshard, accumulate, fraction).total <= usable:
            if requested is None and fraction:
                fraction = _smallest_fraction(actor, facts, reshard, accumulate, usable)
            return _reasoned(actor, facts, reshard, accumulate, fraction, "")
    reshard, accumulate, fraction = ways[-1]
    short = f"the leanest, and yet more than {USABLE:.0%} of {facts.memory / GIB:.0f} GiB by the estimate"
    return _reasoned(actor, facts, reshard, accumulate, fraction, short)


def _reshards(strategy: str) -> bool:
    return strategy in ("full_shard", "hybrid_shard")


def _estimate(
    actor: ActorConfig, facts: Circumstances, reshard: bool, accumulate: bool, fraction: float
) -> MemoryEstimate:
    assert facts.parameters is not None, "the model's size is known"
    return estimate_memory(
        actor,
        parameters=facts.parameters,
        trained=_trained(facts),
        largest_block=facts.largest_block,
        shard=facts.shard,
        reshard=reshard,
        accumulate=accumulate,
        activations=activation_bytes(
            actor, tokens=facts.tokens, hidden=facts.hidden_size, layers=facts.num_layers, checkpointed=fraction
        ),
    )


def _trained(facts: Circumstances) -> int:
    """An upper bound where it is not known."""
    assert facts.parameters is not None, "the model's size is known"
    if not facts.trains:
        return 0
    return facts.parameters if facts.trained is None else facts.trained


def _smallest_fraction(
    actor: ActorConfig, facts: Circumstances, reshard: bool, accumulate: bool, usable: float
) -> float:
    """The smallest number of tenths of the layers whose recomputing makes it fit."""
    tenths = (number / 10 for number in range(1, 11))
    return next(part for part in tenths if _estimate(actor, facts, reshard, accumulate, part).total <= usable)


def _reasoned(
    actor: ActorConfig, facts: Circumstances, reshard: bool, accumulate: bool, fraction: float, trouble: str
) -> _Level:
    """The level with its reasons; ``trouble`` where the memory did not decide."""
    fsdp = actor.fsdp_config
    known = facts.parameters is not None
    estimate = _estimate(actor, facts, reshard, accumulate, fraction) if known else None
    of = "" if facts.memory is None else f" of {facts.memory / GIB:.0f} GiB"
    fits = trouble or f"about {estimate.total / GIB:.0f}{of} GiB".replace(" GiB GiB", " GiB") if estimate else trouble
    gathers = "gathered again for each use" if reshard else "gathered once a step"
    reduces = "reduced once a step" if accumulate else "reduced after each micro-batch"
    if not facts.trains:
        reduces = "nothing is trained"
    return _Level(
        reshard=reshard,
        accumulate=accumulate,
        checkpointed=fraction,
        estimate=estimate,
        why_sharding=f"{gathers}; {fits}" if fsdp.sharding_strategy == "auto" else f"requested; {gathers}",
        why_accumulate=f"{reduces}; {fits}" if fsdp.accumulate_unsharded == "auto" else "requested",
        why_checkpointing=fits if fsdp.gradient_checkpointing == "auto" else "requested",
    )


def activation_bytes(
    actor: ActorConfig, *, tokens: int | None, hidden: int, layers: int, checkpointed: float
) -> int | None:
    """Of one micro-batch at its largest, a part ``checkpointed`` of its layers recomputed; None when unbounded."""
    if tokens is None:
        return None
    kept = ACTIVATION_BYTES[actor.compute_dtype]
    # A recomputed layer keeps its input, and one layer at a time is there in full.
    inputs = 4 if actor.compute_dtype == "fp32" else 2
    whole = layers * (1 - checkpointed) + min(1.0, layers * checkpointed)
    return int(tokens * hidden * (kept * whole + inputs * layers * checkpointed))


ACTIVATION_BYTES = {"fp32": 160, "bf16": 80}
"""Activations a token, per unit of hidden size and layer, without checkpointing. Measured on a 3B model in bf16:
5.8 MB a token at hidden 2048 and 36 layers, vision tower included."""
