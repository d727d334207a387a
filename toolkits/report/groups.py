"""Runs that differ by their seed alone are one group; what else differs names the groups.

    Runs --group_runs--> Groups (label, runs)        Runs --differences--> table: key -> each run's value

Invariants: a run is in exactly one group; groups stand in the order of their first runs; labels are distinct. A run
without a config is a group by itself. Plain Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkits.report.records import Run

SEED = "actor.seed"
NO_DIFFERENCE = (
    SEED,
    "runner.logger.log_path",
    "runner.resume_dir",
    "runner.resume_force",
    "runner.dry_run",
    "runner.report",
)
"""Settings that do not part two runs: where they write, how they were started, and the seed."""
LABEL_KEYS = 3
"""Settings that a group's label names at most."""
LABEL_LENGTH = 24
"""Characters of a value in a label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Runs of one config. runs: their places in the report's list of runs."""

    label: str
    runs: tuple[int, ...]


def group_runs(runs: Sequence[Run]) -> tuple[Group, ...]:
    """The groups of ``runs``."""
    flat = [flatten(run.config) for run in runs]
    members: dict[Any, list[int]] = {}
    for place, settings in enumerate(flat):
        shared = tuple(sorted((key, repr(value)) for key, value in settings.items() if key not in NO_DIFFERENCE))
        members.setdefault(shared or ("no config", place), []).append(place)
    firsts = [places[0] for places in members.values()]
    keys = [key for key in differing([flat[place] for place in firsts]) if key not in NO_DIFFERENCE]
    labels = [_label(runs[place], flat[place], keys) for place in firsts]
    groups = []
    for number, (label, places) in enumerate(zip(labels, members.values(), strict=True)):
        if labels.count(label) > 1:
            label = f"{label} ({runs[firsts[number]].label})"
        groups.append(Group(label=label, runs=tuple(places)))
    return tuple(groups)


def members(runs: Sequence[Run], group: Group) -> list[Run]:
    """The runs of a group."""
    return [runs[place] for place in group.runs]


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(key, value of each run) of every setting that is not the same in all ``runs``; "-" where a run has it not."""
    flat = [flatten(run.config) for run in runs]
    return [(key, [shown(tree[key]) if key in tree else "-" for tree in flat]) for key in differing(flat)]


def differing(trees: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of flat ``trees`` whose value is not the same in all, in the order of their first appearance."""
    keys = dict.fromkeys(key for tree in trees for key in tree)
    return [key for key in keys if len({repr(tree[key]) if key in tree else None for tree in trees}) > 1]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}} -> {"a.b": 1}``; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def shown(value: Any) -> str:
    """A setting as YAML would have it, on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def _label(run: Run, settings: Mapping[str, Any], keys: Sequence[str]) -> str:
    """What tells a run's group from the others, or what it is where there is no other."""
    if not keys or not settings:
        return str(run.setting("runner.logger.experiment_name") or run.label)
    named = []
    for key in keys[:LABEL_KEYS]:
        value = shown(settings[key]) if key in settings else "-"
        cut = value if len(value) <= LABEL_LENGTH else f"..{value[-LABEL_LENGTH:]}"
        named.append(f"{_short(key, keys)}={cut}")
    more = len(keys) - LABEL_KEYS
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def _short(key: str, keys: Sequence[str]) -> str:
    """The last part of a key, with the part before it where another key ends alike."""
    *before, last = key.split(".")
    alike = sum(other.split(".")[-1] == last for other in keys) > 1
    return f"{before[-1]}.{last}" if alike and before else last
