"""Where the seconds of a step go: layers that add up to time/step.

A part that has parts of its own (training: rendering, update) is shown by these; what a step's parts leave of it is a
layer too. Of several runs: the means.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkits.report.curves import Series, mean_of, thin
from toolkits.report.groups import Group, members
from toolkits.report.panel import Line, Panel
from toolkits.report.records import Run

TOTAL = "time/step"
NESTED = {"render": "train", "update": "train", "old_logprobs": "train", "reference": "train"}
"""A part of a step's time -> the part that it is inside of."""
OUTSIDE = ("step", "eval", "test", "save", "save_write")
"""Times that are no parts of a step."""


def step_time(runs: Sequence[Run], groups: Sequence[Group], names: Sequence[str]) -> Panel | None:
    """The layers of metrics ``names`` (time/..) for each group; None without a time/step."""
    if TOTAL not in names:
        return None
    parts = [name.removeprefix("time/") for name in names]
    stacks = [_stack(members(runs, group), [part for part in parts if part not in OUTSIDE]) for group in groups]
    labels = list(dict.fromkeys(label for stack in stacks for label in stack))
    lines = [Line(metric=f"time/{one}", label=one, series=tuple(stack.get(one) for stack in stacks)) for one in labels]
    note = "Parts of a step, one on the other" + (", mean over a group's runs." if len(runs) > len(groups) else ".")
    return Panel(id="step_time", title="Step time (seconds)", note=note, lines=tuple(lines), stacked=True)


def _stack(runs: Sequence[Run], parts: Sequence[str]) -> dict[str, Series]:
    """Layer -> its seconds at each step that has a time/step."""
    total = mean_of(runs, TOTAL)
    if total is None:
        return {}
    steps, seconds = total
    inside = {NESTED[part] for part in parts if NESTED.get(part) in parts}
    layers = {part: _at(runs, part, steps) for part in parts if part not in inside}
    for outer in sorted(inside):
        named = sum((values for part, values in layers.items() if NESTED.get(part) == outer), np.zeros(len(steps)))
        layers[f"{outer}, rest"] = np.maximum(_at(runs, outer, steps) - named, 0.0)
    layers["rest"] = np.maximum(np.nan_to_num(seconds) - sum(layers.values(), np.zeros(len(steps))), 0.0)
    made = {name: thin(Series(first=steps, last=steps, mean=values)) for name, values in layers.items() if values.any()}
    # A layer's least and greatest value have no place in a stack.
    return {name: Series(first=one.first, last=one.last, mean=one.mean) for name, one in made.items()}


def _at(runs: Sequence[Run], part: str, steps: np.ndarray) -> np.ndarray:
    """Seconds of ``part`` at ``steps``; 0 where it is not on record."""
    found = mean_of(runs, f"time/{part}")
    if found is None:
        return np.zeros(len(steps))
    known = dict(zip(found[0].tolist(), np.nan_to_num(found[1]).tolist(), strict=True))
    return np.array([known.get(step, 0.0) for step in steps.tolist()])
