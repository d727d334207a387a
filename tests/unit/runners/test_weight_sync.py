"""Which weights are pushed when: once a version, frozen parts once, all of them after a sleep."""

from __future__ import annotations

from typing import Any

from rlinf_vlm.runners.rl_plan import RlPlan
from rlinf_vlm.runners.weight_sync import WeightSync, merged


class Group:
    """Notes what is called."""

    def __init__(self, name: str, calls: list[Any]) -> None:
        self.name = name
        self.calls = calls
        self.world_size = 2

    def call(self, method: str, *args: Any, ranks: Any = None) -> list[Any]:
        shown = [] if method == "open_push" else list(args)
        self.calls.append((self.name, method, *shown))
        if method == "push_plan":
            return [("all", "of it")] * 2 if args[0] else [("trained",)] * 2
        return ["path", None] if method == "send_bucket" else [None, None]


def made(*, sleeps: bool) -> tuple[WeightSync, list[Any]]:
    calls: list[Any] = []
    plan = RlPlan(transport="shm", sleeps=sleeps, engines=2, prompts=1, answers=2, reasons={})
    sync = WeightSync(Group("actor", calls), Group("rollout", calls), plan, gpus_per_engine=1)  # type: ignore[arg-type]
    calls.clear()
    return sync, calls


def sent(calls: list[Any]) -> list[Any]:
    return [call[2] for call in calls if call[1] == "receive_bucket"]


def test_the_whole_model_first_then_what_is_trained():
    sync, calls = made(sleeps=False)
    sync.push(0)
    assert calls == [
        ("actor", "push_plan", True),
        ("rollout", "begin_push"),
        ("actor", "send_bucket", 0),
        ("rollout", "receive_bucket", "all", "path"),
        ("actor", "send_bucket", 1),
        ("rollout", "receive_bucket", "of it", "path"),
        ("rollout", "finish_push", 0),
        ("actor", "end_push"),
    ]
    calls.clear()
    assert sync.push(0) == 0.0
    assert calls == []
    sync.rest()
    sync.push(1)
    assert sent(calls) == ["trained"]
    assert ("rollout", "sleep") not in calls


def test_after_a_sleep_everything_is_sent_again():
    sync, calls = made(sleeps=True)
    sync.push(3)
    calls.clear()
    sync.rest()
    sync.rest()
    assert calls == [("rollout", "sleep")]
    sync.push(3)
    assert sent(calls) == ["all", "of it"]


def test_handles_of_all_ranks_by_gpu():
    assert merged([{"a": 1}, {"b": 2}]) == {"a": 1, "b": 2}
    assert merged(["path", None]) == "path"
    assert merged([None, None]) is None
