"""Named settings of the trainer: the recommended one, each switch off alone, and other precisions and sizes.

A setting is a list of overrides. Of the switches in ``actor.*`` those that this workload cannot show (no two rows share
an image, nothing is frozen, the model is no mixture) are not in the default table; ``--only`` takes them all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.workload import RowLengths
from rlinf_vlm.registry import nearest
from rlinf_vlm.types import UserError

RECOMMENDED = "recommended"
LARGE_BUDGET = 16384
"""Tokens of a large micro-batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """overrides of the trainer's config; shown: in the default table on a GPU; on_cpu: in that on a CPU."""

    overrides: tuple[str, ...]
    shown: bool = True
    on_cpu: bool = False


def all_settings(*, unpacked_rows: int) -> dict[str, Setting]:
    """Name -> setting, the recommended one first. ``unpacked_rows``: rows of a micro-batch that is not packed."""
    return {
        RECOMMENDED: Setting(overrides=(), on_cpu=True),
        "no-packing": Setting(
            overrides=("actor.packing=false", f"actor.micro_batch_size={unpacked_rows}"), on_cpu=True
        ),
        "sdpa": Setting(overrides=("actor.model.attn_implementation=sdpa",)),
        "no-compile": Setting(overrides=("actor.passes.compile=false",)),
        "conv3d": Setting(overrides=("actor.passes.linear_patch_embed=false",)),
        "odd-vision-mlp": Setting(overrides=("actor.passes.pad_vision_mlp=false",)),
        "all-logits": Setting(overrides=("actor.passes.chunked_loss=false",)),
        "plain-adamw": Setting(overrides=("actor.passes.fused_optimizer=false",)),
        "reduce-each": Setting(overrides=("actor.fsdp_config.accumulate_unsharded=false",)),
        "full-shard": Setting(overrides=("actor.fsdp_config.sharding_strategy=full_shard",)),
        "recompute-all": Setting(overrides=("actor.fsdp_config.gradient_checkpointing=true",)),
        "bf16": Setting(overrides=("actor.model.precision=bf16",)),
        "16k": Setting(overrides=(f"actor.max_tokens_per_micro_batch={LARGE_BUDGET}",)),
        "bf16-16k": Setting(
            overrides=("actor.model.precision=bf16", f"actor.max_tokens_per_micro_batch={LARGE_BUDGET}")
        ),
        "images-not-shared": Setting(overrides=("actor.passes.share_images=false",), shown=False),
        "frozen-recorded": Setting(overrides=("actor.passes.frozen_vision_no_grad=false",), shown=False),
        "experts-looped": Setting(overrides=("actor.passes.grouped_experts=false",), shown=False),
    }


def choose_settings(settings: Mapping[str, Setting], only: str | None, *, small: bool) -> dict[str, Setting]:
    """The settings of ``only`` (names with commas between; None: the default table). Raises UserError for a name that
    is none."""
    if only is None:
        return {name: setting for name, setting in settings.items() if (setting.on_cpu if small else setting.shown)}
    chosen = {}
    for text in only.split(","):
        name = text.strip()
        if name not in settings:
            guess = nearest(name, settings)
            hint = f"; did you mean {guess!r}?" if guess else ""
            raise UserError(f"--only={only}: {name!r} is no setting{hint} (known: {', '.join(settings)})")
        chosen[name] = settings[name]
    return chosen


def unpacked_rows(lengths: Sequence[RowLengths], samples: int, tokens: int) -> int:
    """Rows of an unpacked micro-batch: the largest divisor of ``samples`` that takes ``tokens`` on average at most."""
    mean = sum(row.tokens for row in lengths) / len(lengths)
    return max(size for size in range(1, samples + 1) if samples % size == 0 and (size == 1 or size * mean <= tokens))
