"""The actor: one rank that trains, evaluates and saves the model under FSDP2.

    Feed -> RankStep -> micro-batches -> model -> token log-probabilities -> loss -> gradient, reduced once -> AdamW

Every rank runs the same passes in the same order; a rank with fewer micro-batches runs empty ones, so that no
collective is left waiting. A plain class: the worker group builds it in a process and calls its methods on all ranks.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from rlinf_vlm.algorithms.losses import sft_loss
from rlinf_vlm.algorithms.lr_schedule import learning_rate
from rlinf_vlm.config.passes import Passes
from rlinf_vlm.config.resolve import Batching, Schedule
from rlinf_vlm.config.schema import Config
from rlinf_vlm.data.loader import RankStep
from rlinf_vlm.data.packing import empty_micro_batch
from rlinf_vlm.distributed.collectives import all_max, all_sum, start_process_group, stop_process_group
from rlinf_vlm.distributed.fsdp import make_adamw
from rlinf_vlm.distributed.rng import make_deterministic, seed_everything
from rlinf_vlm.evaluation.answers import EvalRecord
from rlinf_vlm.types import MicroBatch, RankContext, TokenScores, UserError
from rlinf_vlm.workers.evaluator import evaluate
from rlinf_vlm.workers.feed import Feed, open_processor
from rlinf_vlm.workers.meter import StepMeter, matmul_peak
from rlinf_vlm.workers.model import DTYPES, Policy, position_builder, to_device
from rlinf_vlm.workers.saving import ActorSaver, restore_optimizer, restore_random_state


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorFacts:
    """What is known once data and model are loaded."""

    train_rows: int
    eval_rows: int
    parameters: int
    trained_parameters: int
    attention: str
    """The attention in use and why."""


class ActorWorker:
    """One rank of the actor group."""

    def __init__(self, context: RankContext, config: Config, batching: Batching, shard: int, passes: Passes) -> None:
        self.context = context
        self.config = config
        self.batching = batching
        self.shard = shard
        self.passes = passes
        self.device = torch.device(context.device)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the loading processes are forked
        if context.num_threads:
            torch.set_num_threads(context.num_threads)
        disable_progress_bar()
        # Each tensor from a loading process is an open file here; at the usual limit of 1,024 the loader hangs.
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        if config.actor.deterministic:
            make_deterministic()
        seed_everything(config.actor.seed + context.rank)  # ranks draw different dropout masks
        start_process_group(context)

    def load(self, weights: str | None = None) -> ActorFacts:
        """Opens the data and builds the sharded model; ``weights``: of a checkpoint, see ``Policy``."""
        model = self.config.actor.model
        processor = open_processor(self.config)
        self.tokenizer = processor.tokenizer
        self.feed = Feed(self.config, processor, position_builder(model), self.context, self.batching, self.passes)
        checkpoint = None if weights is None else Path(weights)
        self.policy = Policy(self.config.actor, self.shard, self.passes, self.device, self.context.rank, checkpoint)
        self.peak = matmul_peak(self.device, DTYPES[self.config.actor.compute_dtype])
        return ActorFacts(
            train_rows=self.feed.train_rows,
            eval_rows=self.feed.eval_rows,
            parameters=self.policy.num_parameters,
            trained_parameters=self.policy.num_trained,
            attention=self.policy.attention,
        )

    def start_training(self, schedule: Schedule, checkpoint: str | None = None) -> None:
        """Makes the optimizer and starts loading rows; called once, before the first step.

        ``checkpoint``: the global_step_N folder whose optimizer and random state to go on with.
        """
        self.steps = self.feed.train(schedule, self.policy.feature_weight)
        self._make_optimizer(schedule, checkpoint)

    def train_step(self, step: int) -> dict[str, float]:
        """One optimizer step over the global batch; returns its metrics, the same on every rank."""
        meter = StepMeter(self.device)
        rows = meter.next(self.steps)
        supervised, passes = self._totals(step, rows)
        nll = torch.zeros((), device=self.device)
        for micro_batch, is_last in self._passes(rows, passes):
            scores = self._score(micro_batch)
            loss = sft_loss(scores.logprobs, supervised)
            self.policy.sharded.backward(loss, is_last=is_last)
            nll += loss.detach()
        grad_norm = self._finite(step, self.policy.sharded.clip_gradients(self.config.actor.optim.clip_grad))
        rate = self._update(step)
        return {
            "train/loss": all_sum(nll.item())[0],
            "train/grad_norm": grad_norm,
            "train/lr": rate,
            "train/supervised_tokens": supervised,
            "train/micro_batches": passes,
            **meter.metrics(rows, flops=self.policy.step_flops(rows), peak=self.peak),
        }

    def evaluate(self, blank_images: bool = False) -> list[EvalRecord]:
        """The records of this rank's part of the evaluation rows, or of the same rows with blank images."""
        self.policy.module.eval()
        batches = self.feed.evaluation(blank_images)
        records = evaluate(self._score, batches, self.tokenizer)
        self.policy.sharded.release()
        self.policy.module.train()
        return records

    def begin_save(self, folder: str, partial: str, state: dict[str, Any]) -> None:
        """Starts to write the checkpoint ``folder`` by way of ``partial``; ``state`` goes to its state.json."""
        self.saver.begin(Path(folder), Path(partial), state)

    def finished_save(self, *, wait: bool) -> float | None:
        """Seconds that the checkpoint took to write, once it is finished; None before, or when there is none."""
        return self.saver.finished(wait=wait)

    def close(self) -> None:
        """Leaves the process group."""
        stop_process_group()

    def _make_optimizer(self, schedule: Schedule, checkpoint: str | None) -> None:
        """Optimizer and saver, from the checkpoint's state where there is one."""
        optim = self.config.actor.optim
        self.schedule = schedule
        self.optimizer = make_adamw(
            self.policy.module,
            betas=(optim.adam_beta1, optim.adam_beta2),
            eps=optim.adam_eps,
            weight_decay=optim.weight_decay,
            decay_norm_and_bias=optim.decay_norm_and_bias,
            fused=self.passes.fused_optimizer,
        )
        self.saver = ActorSaver(self.config, self.policy, self.optimizer)
        if checkpoint is not None:
            restore_optimizer(Path(checkpoint), self.policy, self.optimizer)
            restore_random_state(Path(checkpoint), self.context.rank, self.config.actor.seed)

    def _totals(self, step: int, rows: RankStep) -> tuple[float, int]:
        """Supervised tokens of the whole step, and how many passes the rank with the most micro-batches makes."""
        supervised, dropped = all_sum(sum(batch.num_supervised for batch in rows.micro_batches), len(rows.bad_rows))
        if not supervised:
            reason = f" ({rows.bad_rows[0].reason})" if rows.bad_rows else ""
            raise UserError(
                f"step {step + 1}: {dropped:.0f} of {self.config.actor.global_batch_size} rows cannot be used and none "
                f"is left to learn from{reason}; mend the data or raise the limit"
            )
        passes, division, opposite = all_max(len(rows.micro_batches), rows.division, -rows.division)
        if division != -opposite:
            raise UserError(
                f"step {step + 1}: the ranks divide the step's rows differently, so that rows would be missed or read "
                "twice: a file differs between machines, or could not be read on one of them; give all of them the "
                "same files, or set actor.balance_tokens=false"
            )
        return supervised, max(1, int(passes))

    def _passes(self, rows: RankStep, passes: int) -> Iterator[tuple[MicroBatch, bool]]:
        """``passes`` micro-batches, empty ones after this rank's own; and whether it is the last."""
        for index in range(passes):
            own = index < len(rows.micro_batches)
            yield rows.micro_batches[index] if own else empty_micro_batch(), index == passes - 1

    def _score(self, micro_batch: MicroBatch) -> TokenScores:
        return self.policy(to_device(micro_batch, self.device))

    def _update(self, step: int) -> float:
        """Applies the gradient; returns the learning rate it was applied with."""
        optim = self.config.actor.optim
        rate = learning_rate(
            step,
            peak=optim.lr,
            minimum=optim.min_lr,
            shape=optim.lr_scheduler,
            warmup_steps=self.schedule.warmup_steps,
            horizon=self.schedule.lr_horizon,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return rate

    def _finite(self, step: int, grad_norm: float) -> float:
        if not math.isfinite(grad_norm):
            raise UserError(
                f"step {step + 1}: the gradient norm is {grad_norm}; training on would only spread it. Lower "
                f"actor.optim.lr={self.config.actor.optim.lr:g} or lengthen the warm-up, and check the data"
            )
        return grad_norm
