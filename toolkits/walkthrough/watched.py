"""The trainer's actor and objective, noting what goes by: nothing that they compute is changed.

    RLActor -> ``WatchedActor``, Objective -> ``WatchedObjective``; both write into ``Watched``

Noted are what the objective is given and gives, the micro-batches, the norm of each gradient, and one weight before and
after each update. Not here: what is made of it (``replay``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from rlinf_vlm.config.rl import AlgorithmConfig
from rlinf_vlm.rollout.records import StepAnswers
from rlinf_vlm.workers.rl_actor import RLActor
from rlinf_vlm.workers.rl_batch import AnswerBatch
from rlinf_vlm.workers.rl_loss import AnswerTokens, BatchLoss, Objective


@dataclass(slots=True, kw_only=True)
class Watched:
    """What went by: token_rewards [N of the step] or None; scored: (old, reference) of each micro-batch; losses: what
    each pass was given and gave."""

    token_rewards: torch.Tensor | None = None
    scored: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    losses: list[tuple[AnswerTokens, float, BatchLoss]] = field(default_factory=list)
    updates: list[dict[str, Any]] = field(default_factory=list)
    batches: list[AnswerBatch] = field(default_factory=list)


class WatchedObjective(Objective):
    """The trainer's objective, noting what it is asked."""

    def __init__(self, config: AlgorithmConfig, watched: Watched) -> None:
        super().__init__(config)
        self._watched = watched

    def advantages(self, answers: StepAnswers, token_rewards: torch.Tensor | None) -> torch.Tensor:
        """See ``Objective``."""
        self._watched.token_rewards = token_rewards
        return super().advantages(answers, token_rewards)

    def token_rewards(self, logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
        """See ``Objective``."""
        self._watched.scored.append((logprobs, reference_logprobs))
        return super().token_rewards(logprobs, reference_logprobs)

    def loss(self, tokens: AnswerTokens, step_denominator: float) -> BatchLoss:
        """See ``Objective``."""
        found = super().loss(tokens, step_denominator)
        self._watched.losses.append((tokens, step_denominator, found))
        return found


class WatchedActor(RLActor):
    """The trainer's actor, noting its micro-batches, gradient norms and one weight."""

    watched: Watched
    weight: tuple[str, torch.nn.Parameter, int] | None = None
    """The name, parameter and place in it of the weight whose first gradient is the largest."""

    def watch(self) -> Watched:
        """Starts to note; after ``start_training``."""
        self.watched = Watched()
        self._objective = WatchedObjective(self.config.algorithm, self.watched)
        return self.watched

    def _render(self, *arguments: Any) -> list[list[AnswerBatch]]:
        minibatches = super()._render(*arguments)
        self.watched.batches += [batch for part in minibatches for batch in part]
        return minibatches

    def _finite(self, step: int, grad_norm: float) -> float:
        self.watched.updates.append({"grad_norm": grad_norm})
        return super()._finite(step, grad_norm)

    def _update(self, step: int) -> float:
        self.weight = self.weight or self._largest()
        _, parameter, place = self.weight
        gradient = float(_flat(parameter.grad)[place])
        # AdamW has no state before its first update.
        state = self.optimizer.state.get(parameter, {})
        moments = [float(_flat(state[key])[place]) if key in state else 0.0 for key in ("exp_avg", "exp_avg_sq")]
        before, count = float(_flat(parameter)[place]), int(state.get("step", 0))
        rate = super()._update(step)
        self.watched.updates[-1] |= {
            "weight": before,
            "weight_after": float(_flat(parameter)[place]),
            "gradient": gradient,
            "moment1": moments[0],
            "moment2": moments[1],
            "updates_before": count,
        }
        return rate

    def _largest(self) -> tuple[str, torch.nn.Parameter, int]:
        named = [(name, value) for name, value in self.policy.module.named_parameters() if value.grad is not None]
        name, parameter = max(named, key=lambda item: float(_flat(item[1].grad).abs().max()))
        return self.policy.module.hf_state_name(name), parameter, int(_flat(parameter.grad).abs().argmax())

    def decay(self) -> float:
        """The weight decay of the weight that is watched."""
        assert self.weight is not None
        groups = self.optimizer.param_groups
        return next(group["weight_decay"] for group in groups if any(p is self.weight[1] for p in group["params"]))

    def weight_name(self) -> str:
        """The name of the weight that is watched, with its place in the tensor."""
        assert self.weight is not None
        name, parameter, place = self.weight
        index = torch.unravel_index(torch.tensor(place), parameter.shape)
        return f"{name}[{', '.join(str(int(value)) for value in index)}]"


def _flat(tensor: Any) -> torch.Tensor:
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach().flatten()
