"""Memory as a ladder: the fastest way to compute that fits, by estimate. Pure functions.

``ActorConfig`` + ``Circumstances`` (what is known of the machine, the model and the batch) -> ``MemoryLevel``: whether
parameters stay gathered, gradients unsharded, and how many layers are computed again in backward; each with its reason.
What the config asks for is taken; of the rest the fastest that fits, or the leanest where nothing does.
Not here: the estimate of one way (resolve.estimate_memory) but for its activations, and every other ``auto``
(passes.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from rlinf_vlm.config.actor import ActorConfig
from rlinf_vlm.config.resolve import MemoryEstimate, estimate_memory

USABLE = 0.9
"""Part of a device's memory that a plan may fill: the rest is for allocator and kernels, and the estimate's error."""
GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a plan depends on beside the config.

    packs: the family runs packed rows; packing: this run does, in training; world_size: ranks; has_experts: it is a
    mixture; vision_mlp: inner width of the vision tower's gated MLP, None where it has none or nothing is known;
    adapted_mlp: that MLP gets adapters; parameters, trained, largest_block, hidden_size, num_layers: of the model, None
    or 0 where not known; outside: parameters outside of blocks (embeddings, output head, merger); tokens: most tokens
    of a micro-batch, None where nothing bounds them; shard: ranks that share one copy; memory: bytes of one rank's
    device, None where not known.
    """

    on_gpu: bool
    trains: bool
    packs: bool
    packing: bool
    world_size: int
    has_experts: bool
    vision_mlp: int | None
    adapted_mlp: bool
    parameters: int | None
    trained: int | None
    largest_block: int
    outside: int
    hidden_size: int
    num_layers: int
    tokens: int | None
    shard: int
    memory: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLevel:
    """One way to spend memory."""

    reshard: bool
    accumulate: bool
    checkpointed: float
    estimate: MemoryEstimate | None
    why_sharding: str = ""
    why_accumulate: str = ""
    why_checkpointing: str = ""


def memory_level(actor: ActorConfig, facts: Circumstances) -> MemoryLevel:
    """The fastest way to spend memory that fits, among those that the config allows; the leanest if none does."""
    fsdp = actor.fsdp_config
    reshards = (False, True) if fsdp.sharding_strategy == "auto" else (_reshards(fsdp.sharding_strategy),)
    accumulates = (True, False) if fsdp.accumulate_unsharded == "auto" else (fsdp.accumulate_unsharded,)
    requested = None if fsdp.gradient_checkpointing == "auto" else float(fsdp.gradient_checkpointing)
    fractions = (0.0, 1.0) if requested is None else (requested,)
    if not facts.trains:  # nothing to recompute and no gradients: only gathering is left to decide
        fractions, accumulates = fractions[:1], accumulates[:1]
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
        outside=facts.outside,
        shard=facts.shard,
        reshard=reshard,
        accumulate=accumulate,
        activations=activation_bytes(
            actor, tokens=facts.tokens, hidden=facts.hidden_size, layers=facts.num_layers, checkpointed=fraction
        )
        if facts.trains
        else None,
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
) -> MemoryLevel:
    """The level with its reasons; ``trouble`` where the memory did not decide."""
    fsdp = actor.fsdp_config
    known = facts.parameters is not None
    estimate = _estimate(actor, facts, reshard, accumulate, fraction) if known else None
    of = "" if facts.memory is None else f" of {facts.memory / GIB:.0f} GiB"
    fits = trouble or f"about {estimate.total / GIB:.0f}{of} GiB".replace(" GiB GiB", " GiB") if estimate else trouble
    gathers = "gathered again for each use" if reshard else "gathered once a step"
    reduces = f"reduced once a step; {fits}" if accumulate else f"reduced after each micro-batch; {fits}"
    recomputes = fits
    if not facts.trains:
        gathers = "gathered again for each use" if reshard else "stay gathered"
        reduces = recomputes = "nothing is trained"
    return MemoryLevel(
        reshard=reshard,
        accumulate=accumulate,
        checkpointed=fraction,
        estimate=estimate,
        why_sharding=f"{gathers}; {fits}" if fsdp.sharding_strategy == "auto" else f"requested; {gathers}",
        why_accumulate=reduces if fsdp.accumulate_unsharded == "auto" else "requested",
        why_checkpointing=recomputes if fsdp.gradient_checkpointing == "auto" else "requested",
    )


def activation_bytes(
    actor: ActorConfig, *, tokens: int | None, hidden: int, layers: int, checkpointed: float
) -> int | None:
    """Of one micro-batch at its largest, a part ``checkpointed`` of its layers recomputed; None when its tokens are
    unbounded or the model's sizes (0) not known."""
    if tokens is None or not hidden or not layers:
        return None
    kept = ACTIVATION_BYTES[actor.compute_dtype]
    # A recomputed layer keeps its input, and one layer at a time is there in full.
    inputs = 4 if actor.compute_dtype == "fp32" else 2
    whole = layers * (1 - checkpointed) + min(1.0, layers * checkpointed)
    return int(tokens * hidden * (kept * whole + inputs * layers * checkpointed))


ACTIVATION_BYTES = {"fp32": 160, "bf16": 80}
"""Activations a token, per unit of hidden size and layer, without checkpointing. Measured on a 3B model in bf16:
5.8 MB a token at hidden 2048 and 36 layers, vision tower included."""
