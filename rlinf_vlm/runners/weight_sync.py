"""Weights from the actor to the engines, versioned, in buckets.

    actor.push_plan -> for each bucket: actor.send_bucket -> rollout.receive_bucket -> engines at ``version``

A version is the number of finished optimizer steps. What the engines have is known here: pushing a version that they
have does nothing; frozen parts go once, unless the engines lost them in their sleep. The tensors never come here.
"""

from __future__ import annotations

from dataclasses import replace

from rlinf_vlm.cluster.worker_group import WorkerGroup, wait_all
from rlinf_vlm.runners.rl_plan import RlPlan
from rlinf_vlm.runners.session import Clock
from rlinf_vlm.types import PushSettings


class WeightSync:
    """Keeps the engines of ``rollout`` at the weights of ``actor``."""

    def __init__(self, actor: WorkerGroup, rollout: WorkerGroup, plan: RlPlan, *, gpus_per_engine: int) -> None:
        """Connects both sides. ``plan`` has a transport."""
        assert plan.transport is not None, "there are engines to push to"
        self._actor = actor
        self._rollout = rollout
        self._sleeps = plan.sleeps
        self._together = plan.transport == "nccl"
        self._version: int | None = None
        self._asleep = False
        self._has_frozen = False
        self._connect(PushSettings(transport=plan.transport), gpus_per_engine)

    def push(self, version: int) -> float:
        """The engines generate with the weights of ``version`` when this returns; seconds that it took."""
        if version == self._version and not self._asleep:
            return 0.0
        clock = Clock()
        buckets = self._actor.call("push_plan", not self._has_frozen)[0]
        self._rollout.call("begin_push")
        for index, bucket in enumerate(buckets):
            if self._together:
                sent = self._actor.start("send_bucket", index)
                wait_all([sent, self._rollout.start("receive_bucket", bucket, None)])
            else:
                handles = merged(self._actor.call("send_bucket", index))
                self._rollout.call("receive_bucket", bucket, handles)
        self._rollout.call("finish_push", version)
        self._actor.call("end_push")
        self._version, self._asleep, self._has_frozen = version, False, True
        return clock.seconds()

    def rest(self) -> None:
        """The engines give their memory back, where the plan says so, until the next push."""
        if self._sleeps and not self._asleep:
            self._rollout.call("sleep")
            self._asleep, self._has_frozen = True, False

    def _connect(self, settings: PushSettings, gpus_per_engine: int) -> None:
        engines = self._rollout.world_size
        if settings.transport != "nccl":
            self._actor.call("open_push", settings)
            self._rollout.call("open_push", settings)
            return
        address, port = self._actor.call("push_endpoint", ranks=[0])[0]
        settings = replace(settings, address=address, port=port, world_size=1 + engines * gpus_per_engine)
        own = [(replace(settings, first_rank=1 + rank * gpus_per_engine),) for rank in range(engines)]
        # They meet: neither returns before the other has come.
        wait_all([self._actor.start("open_push", settings), self._rollout.start_each("open_push", own)])


def merged(handles: list[object]) -> object:
    """What the engines are told of a bucket: the one path, or all ranks' handles by GPU."""
    known = [handle for handle in handles if handle is not None]
    if known and all(isinstance(handle, dict) for handle in known):
        return {gpu: handle for part in known for gpu, handle in part.items()}  # type: ignore[attr-defined]
    return known[0] if known else None
