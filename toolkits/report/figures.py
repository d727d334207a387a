"""The charts as PNG files, for papers and slides; drawn with matplotlib, without a display.

Same lines, bands and thinning as in the page; a stacked chart of several groups has a plot for each. Matplotlib is
imported here only, and when something is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkits.report.groups import Group
from toolkits.report.panel import Line, Panel

COLOURS = ("#2f6fb5", "#d9722b", "#2f8f5b", "#b5446e", "#7a5fc0", "#8a6d1f", "#2b93a8", "#6b7280")
"""Those of the page in light mode."""
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
DPI = 150


def write_figures(panels: Sequence[Panel], groups: Sequence[Group], folder: Path) -> list[Path]:
    """One ``folder``/ID.png a panel; their paths."""
    from matplotlib.figure import Figure

    paths = []
    for panel in panels:
        plots = len(groups) if panel.stacked else 1
        figure = Figure(figsize=(6.4, 3.6 * plots))
        figure.subplots_adjust(left=0.11, right=0.98, bottom=0.14 / plots, top=1 - 0.09 / plots, hspace=0.35)
        axes = figure.subplots(plots, squeeze=False)[:, 0]
        if panel.stacked:
            for number, (axis, group) in enumerate(zip(axes, groups, strict=True)):
                _draw_stack(axis, panel, number, group.label if len(groups) > 1 else "")
        else:
            _draw_lines(axes[0], panel, groups)
        path = folder / f"{panel.id}.png"
        figure.savefig(path, dpi=DPI)
        paths.append(path)
    return paths


def _draw_lines(axis: Any, panel: Panel, groups: Sequence[Group]) -> None:
    drawn = 0
    faint = 0.15 * min(1.0, 4 / max(1, len(panel.lines) * len(groups)))  # many bands would hide the lines
    for place, line in enumerate(panel.lines):
        for number, (group, series) in enumerate(zip(groups, line.series, strict=True)):
            if series is None:
                continue
            colour = COLOURS[(number if len(groups) > 1 else place) % len(COLOURS)]
            dash = DASHES[(place if len(groups) > 1 else place // len(COLOURS)) % len(DASHES)]
            marker = "o" if len(series.first) <= 12 else ""
            label = _legend(line, group, panel, groups)
            axis.plot(
                series.middle, series.mean, color=colour, linestyle=dash, marker=marker, ms=3, lw=1.4, label=label
            )
            if series.low is not None and series.high is not None:
                axis.fill_between(series.middle, series.low, series.high, color=colour, alpha=faint, linewidth=0)
            drawn += 1
    values = np.concatenate([one.mean for line in panel.lines for one in line.series if one is not None])
    if panel.log and (values[np.isfinite(values)] > 0).any():
        axis.set_yscale("log", nonpositive="mask")
    elif panel.share:
        axis.set_ylim(bottom=0)
    axis.set(xlabel="step", title=panel.title)
    axis.title.set_fontsize(10)
    axis.grid(alpha=0.3)
    if drawn > 1 or panel.lines[0].label != panel.title:
        axis.legend(fontsize=7, loc="upper left", framealpha=0.6)


def _legend(line: Line, group: Group, panel: Panel, groups: Sequence[Group]) -> str:
    if len(groups) == 1:
        return line.label
    return group.label if len(panel.lines) == 1 else f"{group.label}: {line.label}"


def _draw_stack(axis: Any, panel: Panel, number: int, label: str) -> None:
    layers = [(line.label, line.series[number]) for line in panel.lines]
    there = [(name, series) for name, series in layers if series is not None]
    if there:
        steps = there[0][1].middle
        colours = [COLOURS[place % len(COLOURS)] for place, (_, series) in enumerate(layers) if series is not None]
        if len(steps) == 1:  # an area of one step would not be seen
            steps = np.array([steps[0] - 0.4, steps[0] + 0.4])
        values = [np.resize(series.mean, len(steps)) for _, series in there]
        axis.stackplot(steps, values, labels=[name for name, _ in there], colors=colours, alpha=0.85)
        axis.legend(fontsize=7, loc="upper right")
    axis.set(xlabel="step", title=panel.title + (f", {label}" if label else ""))
    axis.title.set_fontsize(10)
    axis.grid(alpha=0.3)
