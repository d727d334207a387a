"""A chart as data: what the page draws, and the pictures beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toolkits.report.curves import Series


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A metric in a panel: its name, how the legend calls it, and its series by group (None: the group has none)."""

    metric: str
    label: str
    series: tuple[Series | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A chart. stacked: the lines are layers of one total, a chart for each group."""

    id: str
    title: str
    note: str
    lines: tuple[Line, ...]
    share: bool = False
    log: bool = False
    stacked: bool = False

    def as_json(self) -> dict[str, Any]:
        """For the page."""
        lines = [
            {
                "metric": line.metric,
                "label": line.label,
                "series": [None if series is None else series.as_json() for series in line.series],
            }
            for line in self.lines
        ]
        flags = {"share": self.share, "log": self.log, "stacked": self.stacked}
        return {"id": self.id, "title": self.title, "note": self.note, "lines": lines, **flags}
