"""The actor of reinforcement learning: one rank that trains on sampled answers and sends its weights to the engines.

    StepAnswers + RankShare -> micro-batches -> [log-probabilities before the step, of the reference] -> advantages
    -> for each mini-batch: passes -> loss -> gradient, reduced once -> AdamW
    -> TrainedStep: metrics, and what was made of each token, for the record

The policy that is trained is the one that was sampled from: logits over the sampling temperature, and without the ids
that no engine may sample. Every rank makes the same passes in the same order, as in supervised fine-tuning. Nothing is
updated on answers that another model gave: where the engine's log-probabilities are not the trainer's, the step stops.
Not here: sampling, rewards, and which answers are trained on.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rlinf_vlm.config.resolve import Schedule
from rlinf_vlm.data.loader import RankStep
from rlinf_vlm.distributed.collectives import all_max, all_sum, sum_over_ranks
from rlinf_vlm.models.transfer import copy_to
from rlinf_vlm.rollout.records import RankShare, StepAnswers
from rlinf_vlm.rollout.trained import TrainedStep
from rlinf_vlm.types import LogitView, PushSettings, TokenScores, UserError, WeightBucket
from rlinf_vlm.workers.actor import ActorWorker
from rlinf_vlm.workers.meter import Phases, StepMeter
from rlinf_vlm.workers.model import Policy, to_device
from rlinf_vlm.workers.pushing import WeightSender
from rlinf_vlm.workers.reference import Reference, scoring
from rlinf_vlm.workers.rl_batch import AnswerBatch, empty_answers, trained_answers
from rlinf_vlm.workers.rl_loss import AnswerTokens, BatchLoss, Objective, token_metrics

MAX_LOGPROB_GAP = {"fp32": 0.05, "bf16": 0.2}
"""What rollout.max_logprob_gap=null stands for, by the dtype that the actor computes in."""


@dataclass(slots=True, kw_only=True)
class _Totals:
    """What is summed through a step on this rank; ``sums`` over tokens, on the device."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    gap_max: torch.Tensor | None = None
    tokens: int = 0
    loss: torch.Tensor | float = 0.0
    grad_norms: list[float] = field(default_factory=list)
    rate: float = 0.0
    before: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """(places, log-probabilities before the step) of each micro-batch that was trained on."""

    def add(self, found: BatchLoss, tokens: int) -> None:
        for name, value in found.sums.items():
            before = self.sums.get(name)
            self.sums[name] = value.double() if before is None else before + value.double()
        self.gap_max = found.gap_max if self.gap_max is None else torch.maximum(self.gap_max, found.gap_max)
        self.tokens += tokens
        self.loss = self.loss + found.loss.detach()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Step:
    """A step's micro-batches by mini-batch, of one number on all ranks, and what is known of their tokens.

    old, reference: log-probabilities of each micro-batch's tokens, None where they are not needed.
    """

    minibatches: list[list[AnswerBatch]]
    old: list[list[torch.Tensor]] | None
    reference: list[list[torch.Tensor]] | None
    advantages: torch.Tensor


class RLActor(ActorWorker):
    """One rank of the actor group."""

    _sender: WeightSender | None = None

    def start_training(
        self, schedule: Schedule, checkpoint: str | None = None, first_weights: str | None = None
    ) -> None:
        """Makes the optimizer, and the reference where the algorithm needs one; called once, before the first step.

        ``checkpoint``: as in supervised fine-tuning; ``first_weights``: what the run began with (see ``Policy``), also
        where it goes on from a checkpoint; None is the model folder.
        """
        algorithm = self.config.algorithm
        if not algorithm.sampling_params.temperature:
            raise UserError(
                "algorithm.sampling_params.temperature=0 always takes the likeliest token, which leaves nothing to "
                "learn from; set it above 0"
            )
        self._objective = Objective(algorithm)
        self._answered = self.feed.answered()
        self._banned = torch.tensor(self.feed.banned_ids, dtype=torch.int64, device=self.device)
        self._make_optimizer(schedule, checkpoint)
        self._reference = None
        if self._objective.needs_reference:
            self._reference = Reference(
                self.config.actor,
                self.shard,
                self.passes,
                self.device,
                self.context.rank,
                weights=None if first_weights is None else Path(first_weights),
                policy=self.policy,
            )

    def train_rollouts(self, step: int, answers: StepAnswers, share: RankShare) -> TrainedStep:
        """All updates of a step on its answers.

        UserError when the engine's log-probabilities are too far from the trainer's, when the gradient is not finite,
        and for rows that are not what was answered; a mini-batch without tokens to learn from is no update.
        """
        meter, phases, totals = StepMeter(self.device), Phases(self.device), _Totals()
        with phases.time("render"):
            minibatches = self._render(answers, share)
        work = self._scored(answers, minibatches, phases)
        lengths = [torch.cat([batch.counted_lengths for batch in part]) for part in work.minibatches]
        denominators = all_sum(*(self._objective.denominator(part) for part in lengths)) if lengths else ()
        with phases.time("update"):
            for number, denominator in enumerate(denominators):
                if denominator:
                    self._update_on(step, number, work, denominator, totals)
        metrics = self._metrics(share, work, totals, denominators, meter, phases)
        return TrainedStep(metrics=metrics, answers=trained_answers(answers, share, work.advantages, totals.before))

    def open_push(self, settings: PushSettings) -> None:
        """Connects to the engines; for nccl, rank 0 waits until all of them have come."""
        self._sender = WeightSender(self.config, self.policy, self.device, self.context.rank, settings)

    def push_endpoint(self) -> tuple[str, int]:
        """Address of rank 0 and a port that was free there a moment ago, for nccl's rendezvous."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return self.context.master_addr, probe.getsockname()[1]

    def push_plan(self, everything: bool) -> tuple[WeightBucket, ...]:
        """The buckets of the next push: all weights, or only what training changes. Every rank calls it."""
        return self._opened().plan(everything=everything)

    def send_bucket(self, index: int) -> Any:
        """Gathers a bucket's tensors and hands them over; every rank calls it. See ``WeightSender.send``."""
        return self._opened().send(index)

    def end_push(self) -> None:
        """Frees what the push took."""
        self._opened().end()

    def close(self) -> None:
        """Leaves the engines and the process group."""
        if self._sender is not None:
            self._sender.close()
        super().close()

    def _opened(self) -> WeightSender:
        assert self._sender is not None, "open_push comes first"
        return self._sender

    def _render(self, answers: StepAnswers, share: RankShare) -> list[list[AnswerBatch]]:
        """This rank's micro-batches of each mini-batch, with empty ones up to the number of the rank that has most."""
        minibatches = self._answered.minibatches(
            answers,
            share,
            banned=frozenset(self.feed.banned_ids),
            skip_truncated=self.config.algorithm.overlong.filter_truncated,
        )
        passes = all_max(*(max(1, len(part)) for part in minibatches)) if minibatches else ()
        return [
            [*part, *(empty_answers() for _ in range(int(most) - len(part)))]
            for part, most in zip(minibatches, passes, strict=True)
        ]

    def _scored(self, answers: StepAnswers, minibatches: list[list[AnswerBatch]], phases: Phases) -> _Step:
        """The step with what has to be known before its first update: log-probabilities, where needed, advantages."""
        old = reference = token_rewards = None
        objective = self._objective
        if len(minibatches) > 1 or objective.punishes_in_reward:
            with phases.time("old_logprobs"), scoring(self.policy) as policy:
                old = self._logprobs(policy, minibatches)
        if self._reference is not None:
            with phases.time("reference"), self._reference.scoring() as policy:
                reference = self._logprobs(policy, minibatches)
        if objective.punishes_in_reward:
            assert old is not None and reference is not None
            token_rewards = torch.zeros(sum(answers.lengths), dtype=torch.float64)
            for part, before, first in zip(minibatches, old, reference, strict=True):
                for batch, ours, theirs in zip(part, before, first, strict=True):
                    token_rewards[batch.places] = objective.token_rewards(ours, theirs).double().cpu()
            token_rewards = sum_over_ranks(token_rewards)
        advantages = objective.advantages(answers, token_rewards)
        # One update is strictly on-policy: its own pass is that of before.
        return _Step(
            minibatches=minibatches,
            old=old if len(minibatches) > 1 else None,
            reference=reference,
            advantages=advantages,
        )

    def _logprobs(self, policy: Policy, minibatches: Sequence[Sequence[AnswerBatch]]) -> list[list[torch.Tensor]]:
        view = self._view("off")
        return [
            [policy(to_device(batch.micro_batch, self.device), view).logprobs for batch in part] for part in minibatches
        ]

    def _view(self, entropy: Any) -> LogitView:
        temperature = self.config.algorithm.sampling_params.temperature
        return LogitView(temperature=temperature, banned=self._banned, entropy=entropy)

    def _update_on(self, step: int, number: int, work: _Step, denominator: float, totals: _Totals) -> None:
        """One optimizer update, on mini-batch ``number``."""
        view = self._view("gradient" if self.config.algorithm.entropy_bonus else "value")
        part = work.minibatches[number]
        for index, batch in enumerate(part):
            scores = self.policy(to_device(batch.micro_batch, self.device), view)
            tokens = self._tokens(work, number, index, scores)
            found = self._objective.loss(tokens, denominator)
            before = scores.logprobs.detach() if tokens.old_logprobs is None else tokens.old_logprobs
            totals.before.append((batch.places, before))
            self.policy.sharded.backward(found.loss, is_last=index == len(part) - 1)
            totals.add(found, batch.micro_batch.num_supervised)
        if not totals.grad_norms:  # what was summed so far is of the weights that sampled
            self._check_gap(step, totals)
        norm = self.policy.sharded.clip_gradients(self.config.actor.optim.clip_grad)
        totals.grad_norms.append(self._finite(step, norm))
        totals.rate = self._update(step)

    def _tokens(self, work: _Step, number: int, index: int, scores: TokenScores) -> AnswerTokens:
        batch = work.minibatches[number][index]
        return AnswerTokens(
            logprobs=scores.logprobs,
            entropy=scores.entropy,
            old_logprobs=None if work.old is None else work.old[number][index],
            reference_logprobs=None if work.reference is None else work.reference[number][index],
            engine_logprobs=copy_to(batch.engine_logprobs, self.device),
            advantages=copy_to(work.advantages[batch.places], self.device),
            counted=copy_to(batch.counted, self.device),
            lengths=copy_to(batch.lengths, self.device),
        )

    def _check_gap(self, step: int, totals: _Totals) -> None:
        """UserError when the trainer's model is not the one that the engine sampled from."""
        if self.config.runner.replay_rollouts is not None:
            return  # another run's answers: the gap says how far this one has gone from it
        gap, tokens = all_sum(float(totals.sums["gap"]), totals.tokens)
        precision = self.config.actor.compute_dtype
        limit = self.config.rollout.max_logprob_gap or MAX_LOGPROB_GAP[precision]
        if not gap / max(1.0, tokens) <= limit:  # NaN is none
            raise UserError(
                f"step {step + 1}: rollout/logprob_gap={gap / tokens:.4g}: on average, trainer and engine differ by "
                f"more than rollout.max_logprob_gap={limit:g} in the log-probability of a token, so they are not the "
                "same model; see whether rollout.mm_processor_kwargs gives other pixels than data.min_pixels and "
                f"data.max_pixels, rollout.dtype={self.config.rollout.dtype} fits the actor's {precision}, and the "
                "engine computes this model family alike; to go on all the same, raise rollout.max_logprob_gap"
            )

    def _metrics(
        self,
        share: RankShare,
        work: _Step,
        totals: _Totals,
        denominators: Sequence[float],
        meter: StepMeter,
        phases: Phases,
    ) -> dict[str, float]:
        names = sorted(totals.sums)
        tokens, loss, *values = all_sum(
            totals.tokens, float(totals.loss), *(float(totals.sums[name]) for name in names)
        )
        (gap_max,) = all_max(0.0 if totals.gap_max is None else float(totals.gap_max))
        updates = len(totals.grad_norms)
        batches = [batch.micro_batch for part in work.minibatches for batch in part]
        rows = RankStep(micro_batches=tuple(batches), num_samples=sum(len(part) for part in share.minibatches))
        scored = (work.old is not None or self._objective.punishes_in_reward) + (work.reference is not None)
        flops = self.policy.step_flops(rows, scored=scored)
        measured = meter.metrics(rows, flops=flops, peak=self.peak)
        kept = ("train/tokens", "train/images", "perf/tokens_per_second", "perf/mfu", "perf/peak_memory_gib")
        return {
            "train/loss": loss / max(1, updates),
            "train/grad_norm": sum(totals.grad_norms) / max(1, updates),
            "train/lr": totals.rate,
            "train/updates": updates,
            "train/skipped_updates": len(denominators) - updates,
            "train/micro_batches": len(batches),
            "train/answer_tokens": tokens,
            **token_metrics(
                dict(zip(names, values, strict=True)),
                tokens,
                corrected=self.config.algorithm.rollout_correction.enabled,
            ),
            "rollout/logprob_gap_max": gap_max,
            **{name: measured[name] for name in kept},
            "time/train": measured["time/step"],
            **phases.metrics(),
        }
