"""Which charts the report has, and their lines.

    metrics of the groups' runs + PANELS --make_panels--> Panel (lines by group) .. + one Panel of each other metric

A panel takes every metric that its patterns match, so settings and words that a config names have their lines without
a change here; a panel without a metric is not there. A metric is in one panel: the first that takes it. What no panel
takes has a small chart of its own, or is listed as a constant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from toolkits.report.curves import series_of
from toolkits.report.groups import Group, members
from toolkits.report.panel import Line, Panel
from toolkits.report.records import Metric, Run
from toolkits.report.step_time import OUTSIDE, step_time

MAX_LINES = 16
"""Metrics of a panel that are drawn: those with the greatest last values, where there are more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelSpec:
    """A kind of chart. patterns: of whole metric names; their groups name the line (see ``_named``); words: for a part
    of a name, another; share: values are between 0 and 1; log: logarithmic axis; idle: metrics that are always 0 are
    not drawn."""

    id: str
    title: str
    patterns: tuple[str, ...]
    note: str = ""
    words: Mapping[str, str] = field(default_factory=dict)
    share: bool = False
    log: bool = False
    idle: bool = False


_SPLIT = r"(?P<split>eval|test)/(?:(?P<setting>[^/]+)/)?"
_ANY = r"(?P<split>rollout|train|eval|test)/(?:(?P<setting>[^/]+)/)?"
SPLITS = {"eval": "evaluation", "test": "test", "rollout": "training", "train": "training"}
SPLIT_ORDER = ("training", "evaluation", "test")
PANELS = (
    PanelSpec(
        id="reward",
        title="Reward",
        patterns=(_ANY + "(?P<what>reward_mean)",),
        words={"reward_mean": ""},
        note="Mean over the answers that could be judged.",
    ),
    PanelSpec(
        id="accuracy",
        title="Accuracy",
        patterns=(
            _SPLIT + "(?P<what>accuracy|sampled_accuracy|choice_accuracy|accuracy_blank_image)",
            "(?P<split>rollout)/(?P<what>accuracy)",
        ),
        words={
            "accuracy": "greedy",
            "sampled_accuracy": "sampled",
            "choice_accuracy": "choice",
            "accuracy_blank_image": "greedy, grey image",
        },
        share=True,
    ),
    PanelSpec(
        id="pass_at_k",
        title="pass@k",
        patterns=(_SPLIT + r"(?P<what>pass@\d+)",),
        share=True,
        note="Share of rows with at least one right answer among k: the unbiased estimate.",
    ),
    PanelSpec(id="loss", title="Loss", patterns=(r"(?P<split>train|eval|test)/(?P<what>loss)",), words={"loss": ""}),
    PanelSpec(
        id="response_length",
        title="Response length (tokens)",
        patterns=(_ANY + "(?P<what>response_length|response_length_max)",),
        words={"response_length": "mean", "response_length_max": "longest"},
    ),
    PanelSpec(
        id="truncation",
        idle=True,
        title="How answers ended (share of answers)",
        patterns=(_ANY + "(?P<what>truncated|max_turns|env_error|completed)",),
        words={"max_turns": "turns used up", "env_error": "environment failed", "completed": "completed"},
    ),
    PanelSpec(
        id="turns",
        idle=True,
        title="Turns of a conversation",
        patterns=(_ANY + "(?P<what>turns(?:_\\w+)?)",),
        words={"turns": ""},
    ),
    PanelSpec(
        id="reflection",
        idle=True,
        title="Reflection ratios",
        patterns=(_ANY + r"(?P<what>reflection_ratio\w*|correct_ratio_in\w*)",),
        words={
            "reflection_ratio": "answers that reflect",
            "reflection_ratio_in_correct_answers": "right answers that reflect",
            "reflection_ratio_in_incorrect_answers": "wrong answers that reflect",
            "correct_ratio_in_reflection_texts": "reflecting answers that are right",
            "correct_ratio_in_no_reflection_texts": "answers without reflection that are right",
        },
        share=True,
        note="An answer reflects when it has one of the reflection words.",
    ),
    PanelSpec(
        id="reflection_words",
        idle=True,
        title="Reflection words (occurrences)",
        patterns=(r"(?:(?P<split>eval|test|rollout)/)?reflection/(?P<what>.+)",),
    ),
    PanelSpec(
        id="reflection_answers",
        idle=True,
        title="Answers with a reflection word (number)",
        patterns=(r"(?:(?P<split>eval|test|rollout)/)?reflection_answers/(?P<what>.+)",),
    ),
    PanelSpec(
        id="repetition", idle=True, title="Repetition (share)", patterns=(_ANY + r"(?P<what>repetition|repeating)",)
    ),
    PanelSpec(
        id="logprob_gap",
        title="Log-probability gap, trainer and engine (nats)",
        patterns=("rollout/(?P<what>logprob_gap|logprob_gap_max)",),
        words={"logprob_gap": "mean", "logprob_gap_max": "largest"},
        log=True,
        note="Absolute difference, a token; looked at before the step's first update.",
    ),
    PanelSpec(
        id="kl",
        idle=True,
        title="Divergence (nats)",
        patterns=(r"(?:train|rollout)/(?P<what>kl\w*)",),
        words={"kl_old": "from the policy that sampled"},
    ),
    PanelSpec(id="entropy", title="Entropy (nats)", patterns=("train/(?P<what>entropy)",), words={"entropy": ""}),
    PanelSpec(
        id="grad_norm",
        title="Gradient norm",
        patterns=("train/(?P<what>grad_norm)",),
        words={"grad_norm": ""},
        log=True,
    ),
    PanelSpec(id="lr", title="Learning rate", patterns=("train/(?P<what>lr)",), words={"lr": ""}),
    PanelSpec(
        id="clipping", idle=True, title="Clipped tokens (share)", patterns=(r"train/clip_fraction_(?P<what>\w+)",)
    ),
    PanelSpec(
        id="groups",
        title="Groups that teach nothing (share)",
        patterns=("rollout/(?P<what>zero_std_groups)",),
        words={"zero_std_groups": "all answers have one reward"},
        share=True,
    ),
    PanelSpec(
        id="throughput",
        title="Tokens a second",
        patterns=("perf/(?P<what>tokens_per_second)",),
        words={"tokens_per_second": ""},
    ),
)
PANEL_IDS = frozenset({*(spec.id for spec in PANELS), "reward_parts", "step_time"})
"""Of all panels that there can be."""


def make_panels(
    runs: Sequence[Run], groups: Sequence[Group], parts: Iterable[str] = ()
) -> tuple[list[Panel], list[Panel], dict[str, float]]:
    """(the panels, a panel of each other metric, the metrics that never change with their value). parts: names of the
    reward's parts."""
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    bounds = {f"{name}_{end}" for name in names for end in ("low", "high")}
    left = [name for name in names if name not in bounds or name.startswith("train/clip_fraction")]
    panels = []
    for spec in (PANELS[0], *_parts_spec(parts), *PANELS[1:]):
        taken = [
            name
            for name in left
            if any(re.fullmatch(pattern, name) for pattern in spec.patterns)
            and not (spec.idle and _constant(runs, name) == 0)
        ]
        left = [name for name in left if name not in taken]
        if taken:
            taken.sort(key=lambda name: SPLIT_ORDER.index(SPLITS.get(name.partition("/")[0], "training")))
            panels.append(_panel(spec, taken, runs, groups))
    times = [name for name in left if name.startswith("time/")]
    breakdown = step_time(runs, groups, times)
    if breakdown is not None:
        panels.append(breakdown)
    others, constants = [], {}
    for name in left:
        value = _constant(runs, name)
        if value is not None:
            constants[name] = value
        elif not (breakdown and name.startswith("time/") and name.removeprefix("time/") not in OUTSIDE):
            others.append(_lone(name, runs, groups))
    return panels, others, constants


def _parts_spec(parts: Iterable[str]) -> list[PanelSpec]:
    """The panel of the reward's parts, where it has any."""
    names = "|".join(re.escape(part) for part in sorted(parts))
    if not names:
        return []
    note = "Mean over the judged answers that have the part; unweighted."
    return [
        PanelSpec(id="reward_parts", title="Parts of the reward", patterns=(_ANY + f"(?P<what>{names})",), note=note)
    ]


def _panel(spec: PanelSpec, names: Sequence[str], runs: Sequence[Run], groups: Sequence[Group]) -> Panel:
    note, gaps = spec.note, 0
    if len(names) > MAX_LINES:
        most = sorted(names, key=lambda name: -max(_last(run.metrics.get(name)) for run in runs))[:MAX_LINES]
        note = f"{note} The {MAX_LINES} greatest of {len(names)}.".strip()
        names = [name for name in names if name in most]
    labels, measure = _labels(spec, names)
    title = f"{spec.title}: {measure}" if measure else spec.title
    lines = []
    for name, label in zip(names, labels, strict=True):
        series = tuple(series_of(members(runs, group), name) for group in groups)
        gaps += sum(one.gaps for one in series if one is not None)
        lines.append(Line(metric=name, label=label, series=series))
    if gaps:
        note = f"{note} {gaps} value{'s' if gaps > 1 else ''} not finite: gaps.".strip()
    return Panel(id=spec.id, title=title, note=note, lines=tuple(lines), share=spec.share, log=spec.log)


def _labels(spec: PanelSpec, names: Iterable[str]) -> tuple[list[str], str]:
    """(what the legend calls each of ``names``: split, setting and measure, less what all lines share; the measure that
    all share, which the title, that is of several, does not say)."""
    named = [_named(spec, name) for name in names]
    shared = [len({parts[place] for parts in named}) == 1 for place in range(3)]
    labels = []
    for parts in named:
        kept = [part for part, same in zip(parts, shared, strict=True) if part and not (same and len(named) > 1)]
        labels.append(", ".join(kept or [part for part in parts if part]) or spec.title)
    return labels, named[0][2] if shared[2] and len(named) > 1 else ""


def _named(spec: PanelSpec, name: str) -> tuple[str, str, str]:
    found = next(found for pattern in spec.patterns if (found := re.fullmatch(pattern, name)))
    parts = found.groupdict()
    what = parts.get("what") or ""
    split = SPLITS.get(parts.get("split") or "", "")
    setting = (parts.get("setting") or "").replace("_", " ")
    if what == "accuracy" and (setting or name.startswith("rollout/")):  # of sampled answers
        return split, setting, "" if setting else "sampled"
    return split, setting, spec.words.get(what, what.replace("_", " "))


def _lone(name: str, runs: Sequence[Run], groups: Sequence[Group]) -> Panel:
    identifier = re.sub(r"\W+", "_", name)
    return _panel(PanelSpec(id=identifier, title=name, patterns=(re.escape(name),)), [name], runs, groups)


def _constant(runs: Sequence[Run], name: str) -> float | None:
    """The one value that all runs have at all steps; None where there are several, or one that is not finite."""
    values = np.concatenate([run.metrics[name].values for run in runs if name in run.metrics])
    return float(values[0]) if np.isfinite(values).all() and (values == values[0]).all() else None


def _last(metric: Metric | None) -> float:
    value = -np.inf if metric is None else metric.last()
    return value if np.isfinite(value) else -np.inf
