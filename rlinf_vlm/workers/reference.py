"""The reference of reinforcement learning: the model that the run began with, for the divergence from it.

Without adapters it is a second sharded model, in the dtype of computing, never trained. With adapters it is the model
that trains with its adapters scaled by 0: their base. Not here: what is made of the divergence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from rlinf_vlm.config.actor import ActorConfig
from rlinf_vlm.config.passes import Passes
from rlinf_vlm.models.lora import without_adapters
from rlinf_vlm.types import UserError
from rlinf_vlm.workers.model import Policy


@contextmanager
def scoring(policy: Policy) -> Iterator[Policy]:
    """Inside, ``policy`` scores without gradient or dropout; after it, nothing is left gathered."""
    was_training = policy.module.training
    policy.module.eval()
    with torch.no_grad():
        yield policy
    policy.sharded.release()
    policy.module.train(was_training)


class Reference:
    """The weights that a run began with. Every rank makes one."""

    def __init__(
        self,
        actor: ActorConfig,
        shard: int,
        passes: Passes,
        device: torch.device,
        rank: int,
        *,
        weights: Path | None,
        policy: Policy,
    ) -> None:
        """``weights``: see ``Policy``, as they were at the run's beginning, not where it goes on; policy: what trains.

        UserError for adapters that were not fresh at the beginning.
        """
        self._has_adapters = actor.model.is_lora
        if self._has_adapters:
            if weights is not None:
                raise UserError(
                    f"algorithm.kl_beta needs the model that the run began with, which has the adapters of {weights}; "
                    "only their base can be computed beside them: merge them into a model folder "
                    "(toolkits/ckpt_convertor), or set algorithm.kl_beta=0"
                )
            self._policy = policy
            return
        precise = actor.model.model_copy(update={"precision": actor.compute_dtype})
        frozen = actor.model_copy(update={"model": precise})
        self._policy = Policy(frozen, shard, passes, device, rank, weights)
        self._policy.module.requires_grad_(False)

    @contextmanager
    def scoring(self) -> Iterator[Policy]:
        """Inside, what is given computes the reference's scores."""
        module = self._policy.module
        with without_adapters(module.hf) if self._has_adapters else nullcontext(), scoring(self._policy) as policy:
            yield policy
