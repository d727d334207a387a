"""What follows from a config: batch arithmetic, the schedule, memory. Pure functions of plain numbers.

``Config`` + world size + row counts -> ``Batching``, ``Schedule``, ``MemoryEstimate``. A contradiction raises UserError
with the keys, both values and the remedy. Reads no file and knows no machine: the caller brings the numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlinf_vlm.config.actor import ActorConfig
from rlinf_vlm.config.schema import Config, RunnerConfig
from rlinf_vlm.types import UserError

BYTES = {"fp32": 4, "bf16": 2}
MICRO_BATCH_SIZE = 4
"""What actor.micro_batch_size=null stands for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How one optimizer step is divided.

    Example: 2 ranks, global batch 16, micro batch 4: 8 samples a rank, 2 micro-batches a rank.
    """

    world_size: int
    global_batch_size: int
    micro_batch_size: int | None
    """Samples of a micro-batch; None when packing by tokens."""
    max_tokens: int | None
    """Token budget of a micro-batch; None when counting samples."""

    @property
    def samples_per_rank(self) -> int:
        """Samples of one rank in one optimizer step."""
        return self.global_batch_size // self.world_size

    @property
    def micro_batches_per_rank(self) -> int | None:
        """Forward and backward passes of one rank in one step; None when it depends on the lengths (packing)."""
        return None if self.micro_batch_size is None else self.samples_per_rank // self.micro_batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a run begins: finished optimizer steps, and samples of the training stream that they consumed."""

    step: int = 0
    samples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long the run is, in optimizer steps.

    The training rows of all epochs form one stream; each step takes the next G samples of it, G the global batch size.
    The last step of the run may be smaller; no row is left out. ``start``: what a resumed run has behind it.
    """

    start: Start
    train_rows: int
    total_samples: int
    """Samples of the whole run (the end of the stream)."""
    total_steps: int
    steps_per_epoch: float
    lr_horizon: int
    """Step at which the learning rate reaches min_lr."""
    warmup_steps: int
    notes: tuple[str, ...] = ()
    """What is unusual about it, for the plan."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.start.step >= self.total_steps

    def samples_after(self, step: int, per_step: int) -> int:
        """The data cursor after ``step`` finished steps of the run, each of ``per_step`` samples."""
        return min(self.total_samples, self.start.samples + (step - self.start.step) * per_step)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes on one rank while training."""

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    """Parameters gathered for computing, at their largest."""
    activations: int | None
    """What backward needs of a micro-batch at its largest; None where nothing bounds its tokens."""

    @property
    def total(self) -> int:
        """Sum of the parts that are known."""
        return self.weights + self.gradients + self.optimizer + self.gathered + (self.activations or 0)


def resolve_batching(actor: ActorConfig, world_size: int, *, packing: bool) -> Batching:
    """Checks that the global batch divides among the ranks and micro-batches."""
    batch, micro = actor.global_batch_size, actor.micro_batch_size or MICRO_BATCH_SIZE
    unit = world_size if packing else world_size * micro
    if batch % unit:
        shown = f"{world_size} ranks" if packing else f"{world_size} ranks * actor.micro_batch_size={micro} = {unit}"
        below, above = batch // unit * unit, (batch // unit + 1) * unit
        remedy = f"{below} or {above}" if below else str(above)
        raise UserError(f"actor.global_batch_size={batch} is no multiple of {shown}; set it to {remedy}")
    return Batching(
        world_size=world_size,
        global_batch_size=batch,
        micro_batch_size=None if packing else micro,
        max_tokens=actor.max_tokens_per_micro_batch if packing else None,
    )


def samples_per_step(config: Config) -> int:
    """Rows of the training stream that a step takes: samples, or prompts of reinforcement learning."""
    return config.actor.global_batch_size if config.runner.task_type == "sft" else config.data.rollout_batch_size


def check_run_length(runner: RunnerConfig) -> None:
    """A training run needs an end."""
    if runner.max_epochs == -1 and runner.max_steps == -1:
        raise UserError(
            "runner.max_epochs=-1 and runner.max_steps=-1 leave the run without an end; set one of them, "
            "for example runner.max_epochs=1"
        )


def check_task(config: Config) -> None:
    """What one task alone reads is not given to the other."""
    if config.runner.task_type != "sft":
        return
    only = {
        "runner.replay_rollouts": config.runner.replay_rollouts,
        "data.test_data_paths": config.data.test_data_paths,
    }
    for key, value in only.items():
        if value is not None:
            raise UserError(f"{key}={value!r} is read by task_type=reasoning only; set it to null")


def check_intervals(config: Config) -> None:
    """Evaluation needs rows to evaluate."""
    interval, best = config.runner.val_check_interval, config.runner.keep_best
    if best is not None and best.startswith("eval/") and interval == -1:
        raise UserError(
            f"runner.keep_best={best} needs evaluations, but runner.val_check_interval=-1 never evaluates; set it to "
            "runner.save_interval or a divisor of it"
        )
    if interval > 0 and config.data.eval_data_paths is None:
        raise UserError(
            f"runner.val_check_interval={interval} asks for evaluation but data.eval_data_paths=null has no rows; "
            "set data.eval_data_paths, or runner.val_check_interval=-1"
        )
    if config.runner.eval_image_ablation:
        _check_ablation(config)


def _check_ablation(config: Config) -> None:
    """Blank images need evaluations, and images to be blank."""
    data = config.data
    if data.train_data_paths is not None and config.runner.val_check_interval == -1:
        raise UserError(
            "runner.eval_image_ablation=true evaluates with blank images, but runner.val_check_interval=-1 never "
            "evaluates; set it to the steps between evaluations, or runner.eval_image_ablation=false"
        )
    if not data.image_keys and data.messages_key is None:  # chat messages can bring images of their own
        raise UserError(
            "runner.eval_image_ablation=true blanks images, but data.image_keys=[] reads none; name the image columns, "
            "or set runner.eval_image_ablation=false"
        )


def resolve_schedule(config: Config, train_rows: int, start: Start = Start()) -> Schedule:
    """Steps, horizon and warm-up for ``train_rows`` rows, from ``start`` on.

    A checkpoint at or past the end gives a finished schedule. Steps of another batch size behind ``start`` count as
    they were: what is left is cut into steps of this one. Prompts that dynamic sampling asked besides are no progress:
    the run has as many steps as without, and as many after a resume as before.
    """
    check_run_length(config.runner)
    optim, runner, batch = config.actor.optim, config.runner, samples_per_step(config)
    if train_rows < 1:
        raise UserError(
            f"data.train_data_paths={config.data.train_data_paths!r} has {train_rows} rows; give at least one"
        )
    # Reinforcement learning may ask more prompts than a step trains on, and counts those: the run is as long, resumed.
    behind = start.samples if runner.task_type == "sft" else start.step * batch
    by_epochs = runner.max_epochs * train_rows if runner.max_epochs > 0 else None
    by_steps = behind + (runner.max_steps - start.step) * batch if runner.max_steps > 0 else None
    total_samples = min(limit for limit in (by_epochs, by_steps) if limit is not None)
    total_steps = max(1, start.step + math.ceil((total_samples - behind) / batch))
    horizon, notes = _lr_horizon(config, total_steps)
    warmup = optim.lr_warmup_steps
    if optim.lr_warmup_steps_ratio:
        warmup = round(horizon * optim.lr_warmup_steps_ratio)
    if total_steps <= warmup:
        notes.append(f"the run's {total_steps} steps end inside the warm-up of {warmup} steps")
    return Schedule(
        start=start,
        train_rows=train_rows,
        total_samples=total_samples,
        total_steps=total_steps,
        steps_per_epoch=train_rows / batch,
        lr_horizon=horizon,
        warmup_steps=warmup,
        notes=tuple(notes),
    )


def _lr_horizon(config: Config, total_steps: int) -> tuple[int, list[str]]:
    """Horizon of the learning rate in steps, and what the user should know about it.

    RLinf's guide writes ``total_training_steps: ${runner.max_epochs}``, where epochs counted steps. A value equal to
    max_epochs is therefore read as "as long as the run, at least", and its warm-up may outlast a short trial run. Any
    other horizon has to be longer than the warm-up.
    """
    optim = config.actor.optim
    explicit = optim.total_training_steps or -1
    if explicit > 0 and explicit == config.runner.max_epochs:
        return max(explicit, total_steps), []
    horizon = explicit if explicit > 0 else total_steps
    if 0 < horizon <= optim.lr_warmup_steps:
        source = "actor.optim.total_training_steps" if explicit > 0 else "the run: runner.max_steps, runner.max_epochs"
        raise UserError(
            f"actor.optim.lr_warmup_steps={optim.lr_warmup_steps} does not end before the horizon of {horizon} steps "
            f"({source}); set it below {horizon}, or use actor.optim.lr_warmup_steps_ratio"
        )
    if horizon < total_steps:
        note = f"actor.optim.total_training_steps={horizon} is short of the run's {total_steps} steps: then min_lr"
        return horizon, [note]
    return horizon, []


def shard_size(actor: ActorConfig, world_size: int, ranks_per_node: int) -> int:
    """Ranks that share one copy of parameters and optimizer state (1: each rank holds all)."""
    fsdp = actor.fsdp_config
    if fsdp.sharding_strategy == "no_shard":
        return 1
    if fsdp.sharding_strategy != "hybrid_shard":
        return world_size
    size = fsdp.hybrid_shard_size or ranks_per_node
    if world_size % size:
        raise UserError(
            f"actor.fsdp_config.hybrid_shard_size={size} does not divide the {world_size} ranks of the actor; "
            f"set it to a divisor of {world_size}"
        )
    return size


def estimate_memory(
    actor: ActorConfig,
    *,
    parameters: int,
    trained: int,
    largest_block: int,
    outside: int,
    shard: int,
    reshard: bool,
    accumulate: bool,
    activations: int | None = None,
) -> MemoryEstimate:
    """Bytes on one rank for ``parameters`` parameters, ``trained`` of them trained, sharded over ``shard`` ranks.

    Adam holds two moments in the master precision. Gradients are accumulated unsharded in reduce_dtype between
    micro-batches (``accumulate``), hence the full count of what is trained; else a shard of them, and on their way two
    blocks and what is ``outside`` of blocks. With ``reshard`` one block of ``largest_block`` parameters is gathered at
    a time (two with prefetch) beside the ``outside``, which stays gathered; else all of them are.
    """
    master = BYTES[actor.model.precision]
    compute = BYTES[actor.compute_dtype]
    reduce = BYTES[actor.fsdp_config.mixed_precision.reduce_dtype] if actor.model.precision == "fp32" else master
    local = math.ceil(parameters / shard)
    in_use = 2 * largest_block + outside
    reduced = math.ceil(trained / shard) + min(trained, in_use)
    return MemoryEstimate(
        weights=local * master,
        gradients=(trained if accumulate else reduced) * reduce,
        optimizer=2 * math.ceil(trained / shard) * master,
        gathered=(min(parameters, in_use) if reshard else parameters) * compute,
        activations=activations,
    )
