"""What reinforcement learning did to the test accuracy, over several seeds: a table, and a figure.

    for seed in 1 2 3; do bash examples/run_vlm_rl.sh actor.seed=$seed; done
    python benchmarks/rl_curve.py logs/RUN1 logs/RUN2 logs/RUN3 [--out curve.png]

A line a run: greedy and sampled accuracy at the first and the last evaluation with their 95 % intervals, and minutes.
The figure (with --out; needs matplotlib) has the accuracies over the steps, a line a run.
Exit status: 0, or 2 for a folder without two evaluations.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a script: on the path is this file's folder instead of the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.results import Table
from rlinf_vlm.types import UserError

KINDS = {"greedy": "eval/accuracy", "sampled": "eval/sampled_accuracy"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One run. steps: of its evaluations; values: metric -> one value an evaluation; minutes: of its steps and
    evaluations."""

    name: str
    steps: tuple[int, ...]
    values: dict[str, tuple[float, ...]]
    minutes: float


def read_curve(folder: Path) -> Curve:
    """The evaluations in a run folder's metrics.jsonl. Raises UserError where there are not two of them."""
    file = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    found = [line for line in lines if "eval/accuracy" in line]
    if len(found) < 2:
        raise UserError(
            f"{folder}: {len(found)} evaluations, a curve needs two; give the folder of a run that evaluates"
        )
    names = [f"{metric}{end}" for metric in KINDS.values() for end in ("", "_low", "_high")]
    return Curve(
        name=folder.name,
        steps=tuple(line["step"] for line in found),
        values={name: tuple(line[name] for line in found) for name in names if name in found[0]},
        minutes=sum(line.get("time/step", 0.0) + line.get("time/eval", 0.0) for line in lines) / 60,
    )


def table_of(curves: Sequence[Curve]) -> Table:
    """One line a run."""
    rows = []
    for curve in curves:
        cells = [_shown(curve, metric, place) for metric in KINDS.values() for place in (0, -1)]
        rows.append((curve.name, *cells, str(curve.steps[-1]), f"{curve.minutes:.1f}"))
    columns = ("run", *(f"{kind}, {when}" for kind in KINDS for when in ("before", "after")), "steps", "minutes")
    return Table(title="Test accuracy [95 % interval]", columns=columns, rows=tuple(rows), notes=())


def draw(curves: Sequence[Curve], out: Path) -> None:
    """The accuracies over the steps as a picture."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("--out draws with matplotlib, which is not installed; pip install matplotlib") from error
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for (kind, metric), style in zip(KINDS.items(), ("-", "--"), strict=True):
        for number, curve in enumerate(curves):
            if metric in curve.values:
                label = f"{kind}, {curve.name}"
                axes.plot(curve.steps, curve.values[metric], style, color=f"C{number}", marker="o", label=label)
                low, high = (curve.values[f"{metric}_{end}"] for end in ("low", "high"))
                axes.fill_between(curve.steps, low, high, color=f"C{number}", alpha=0.12, linewidth=0)
    axes.set(xlabel="step", ylabel="test accuracy", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(out, dpi=120)


def _shown(curve: Curve, metric: str, place: int) -> str:
    if metric not in curve.values:
        return "-"
    value, low, high = (curve.values[f"{metric}{end}"][place] for end in ("", "_low", "_high"))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description="Test accuracy of reinforcement learning over several runs.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--out", type=Path, help="draw the curves into this file (png, svg, pdf)")
    parser.add_argument("--markdown", action="store_true", help="print the table for a README")
    options = parser.parse_args(arguments)
    try:
        curves = [read_curve(folder) for folder in options.runs]
        table_of(curves).show(markdown=options.markdown)
        if options.out is not None:
            draw(curves, options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
