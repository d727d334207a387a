"""A run's figures, and those of several runs together, as tables for people and as JSON for programs.

    RunFigures --tables--> rich tables: training answers, words, evaluations, settings
               --as_json--> plain data

A cell is empty where a figure is not there: a ratio without denominator, a metric that a run did not have. Long runs
show every so many steps, and say so. Nothing is computed here but the spread over runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from rlinf_vlm.evaluation.recorded import Evaluation, RunFigures
from rlinf_vlm.evaluation.spread import Spread, spreads

MOST_ROWS = 40
"""Steps that a table shows."""
STEP_COLUMNS = {
    "accuracy": "rollout/accuracy",
    "length": "rollout/response_length",
    "clipped": "rollout/truncated",
    "repetition": "rollout/repetition",
    "repeating": "rollout/repeating",
    "reflecting": "rollout/reflection_ratio",
    "of correct": "rollout/reflection_ratio_in_correct_answers",
    "of incorrect": "rollout/reflection_ratio_in_incorrect_answers",
    "correct if reflecting": "rollout/correct_ratio_in_reflection_texts",
    "correct if not": "rollout/correct_ratio_in_no_reflection_texts",
}
EVALUATION_COLUMNS = {
    "rows": "samples",
    "accuracy": "accuracy",
    "choice accuracy": "choice_accuracy",
    "length": "response_length",
    "clipped": "truncated",
    "repeating": "repeating",
    "reflecting": "reflection_ratio",
    "correct if reflecting": "correct_ratio_in_reflection_texts",
    "correct if not": "correct_ratio_in_no_reflection_texts",
}
WHOLE = ("response_length", "samples")
"""Figures that are no shares."""
_PASS = re.compile(r"(?:(?P<setting>.+)/)?pass@(?P<k>\d+)")

Figure = float | Spread
Rows = Mapping[Any, Mapping[str, Figure]]


def run_tables(run: RunFigures) -> dict[str, Table]:
    """Heading -> table of one run; those without a row are left out."""
    return _tables(str(run.folder), run.steps, run.evaluations, run.epochs, run.words)


def spread_tables(runs: Sequence[RunFigures]) -> dict[str, Table]:
    """The same of several runs: mean and deviation of each figure at each step."""
    steps, evaluations = over_runs(runs)
    epochs = {step: epoch for run in runs for step, epoch in run.epochs.items()}
    title = f"{len(runs)} runs, mean ± standard deviation"
    return _tables(title, steps, evaluations, epochs, ())


def over_runs(
    runs: Sequence[RunFigures],
) -> tuple[dict[int, dict[str, Spread]], dict[Evaluation, dict[str, Spread]]]:
    """Spread of each metric over the runs that have it: by step, and by split and step."""
    steps = sorted({step for run in runs for step in run.steps})
    keys = sorted({key for run in runs for key in run.evaluations}, key=lambda key: (key[1], key[0]))
    return (
        {step: spreads([run.steps[step] for run in runs if step in run.steps]) for step in steps},
        {key: spreads([run.evaluations[key] for run in runs if key in run.evaluations]) for key in keys},
    )


def as_json(runs: Sequence[RunFigures]) -> dict[str, Any]:
    """``{"runs": [{"folder", "words", "steps": [{"step", "epoch", "metrics"}], "evaluations": [{"split", "step",
    "epoch", "metrics"}]}], "over_runs": null or {"steps", "evaluations"}}``; over several runs a metric is ``{"mean",
    "deviation", "runs"}``, and deviation null where only one run has it. epoch: null where the run did not log it."""
    listed = []
    for run in runs:
        steps = [{"step": step, "epoch": run.epochs.get(step), "metrics": dict(of)} for step, of in run.steps.items()]
        evaluations = [
            {"split": split, "step": step, "epoch": run.epochs.get(step), "metrics": dict(of)}
            for (split, step), of in run.evaluations.items()
        ]
        listed.append({"folder": str(run.folder), "words": list(run.words), "steps": steps, "evaluations": evaluations})
    together = None
    if len(runs) > 1:
        of_steps, of_evaluations = over_runs(runs)
        together = {
            "steps": [{"step": step, "metrics": _plain(of)} for step, of in of_steps.items()],
            "evaluations": [
                {"split": split, "step": step, "metrics": _plain(of)} for (split, step), of in of_evaluations.items()
            ],
        }
    return {"runs": listed, "over_runs": together}


def _plain(metrics: Mapping[str, Spread]) -> dict[str, dict[str, float | None]]:
    return {
        name: {"mean": found.mean, "deviation": found.deviation, "runs": found.runs} for name, found in metrics.items()
    }


def _tables(
    title: str,
    steps: Rows,
    evaluations: Rows,
    epochs: Mapping[int, float],
    words: Sequence[str],
) -> dict[str, Table]:
    note = f" (at most {MOST_ROWS} of {len(steps)} steps; --out has all)" if len(steps) > MOST_ROWS else ""
    tables = {
        f"{title}: training answers{note}": _steps(steps, epochs),
        f"{title}: words in training answers": _words(steps, words),
        f"{title}: evaluations": _evaluations(evaluations, epochs),
        f"{title}: pass@k": _passes(evaluations, epochs),
    }
    return {heading: table for heading, table in tables.items() if table.row_count}


def _steps(steps: Rows, epochs: Mapping[int, float]) -> Table:
    columns = {name: key for name, key in STEP_COLUMNS.items() if any(key in row for row in steps.values())}
    table = _table(["step", "epoch", *columns])
    for step in _some(list(steps)):
        cells = [_cell(steps[step], key) for key in columns.values()]
        table.add_row(str(step), _epoch(epochs, step), *cells)
    return table


def _words(steps: Rows, words: Sequence[str]) -> Table:
    """Of one run: numbers of single steps say little, so each word's sum and its highest step."""
    table = _table(["word", "in all", "answers", "most in a step", "at step"])
    for word in words:
        name = word.replace(" ", "_")
        counts = {step: row.get(f"reflection/{name}") for step, row in steps.items()}
        known = {step: count for step, count in counts.items() if isinstance(count, int | float)}
        if not any(known.values()):
            continue
        answers = [row.get(f"reflection_answers/{name}", 0) for row in steps.values()]
        most = max(known, key=lambda step: known[step])
        held = sum(count for count in answers if isinstance(count, int | float))
        table.add_row(escape(word), f"{sum(known.values()):.0f}", f"{held:.0f}", f"{known[most]:.0f}", str(most))
    return table


def _evaluations(evaluations: Rows, epochs: Mapping[int, float]) -> Table:
    kept = {
        name: key
        for name, key in EVALUATION_COLUMNS.items()
        if any(f"{split}/{key}" in row for (split, _), row in evaluations.items())
    }
    table = _table(["rows of", "step", "epoch", *kept])
    for split, step in _some(list(evaluations)):
        cells = [_cell(evaluations[split, step], f"{split}/{key}") for key in kept.values()]
        table.add_row(split, str(step), _epoch(epochs, step), *cells)
    return table


def _passes(evaluations: Rows, epochs: Mapping[int, float]) -> Table:
    """A row for each setting of each evaluation; the answers of eval_sampling_params are the setting "sampled"."""
    found: dict[tuple[str, int, str], dict[int, str]] = {}
    for split, step in _some(list(evaluations)):
        row = evaluations[split, step]
        for name in row:
            match = _PASS.fullmatch(name.removeprefix(f"{split}/"))
            if match:
                found.setdefault((split, step, match["setting"] or ""), {})[int(match["k"])] = _cell(row, name)
    ks = sorted({k for cells in found.values() for k in cells})
    table = _table(["rows of", "step", "epoch", "setting", "accuracy", "length", *(f"pass@{k}" for k in ks)])
    for (split, step, setting), cells in found.items():
        row = evaluations[split, step]
        accuracy = f"{split}/{setting}/accuracy" if setting else f"{split}/sampled_accuracy"
        length = _cell(row, f"{split}/{setting}/response_length") if setting else ""
        told = [escape(setting or "sampled"), _cell(row, accuracy), length, *(cells.get(k, "") for k in ks)]
        table.add_row(split, str(step), _epoch(epochs, step), *told)
    return table


def _table(columns: Iterable[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        named = column in ("rows of", "setting", "word")
        table.add_column(column, justify="left" if named else "right", no_wrap=named)
    return table


def _some(keys: Sequence[Any]) -> list[Any]:
    """At most ``MOST_ROWS`` of ``keys``, evenly, with the first and the last."""
    if len(keys) <= MOST_ROWS:
        return list(keys)
    return [keys[round(place * (len(keys) - 1) / (MOST_ROWS - 1))] for place in range(MOST_ROWS)]


def _epoch(epochs: Mapping[int, float], step: int) -> str:
    return f"{epochs[step]:.2f}" if step in epochs else ""


def _cell(row: Mapping[str, Figure], name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    digits = 1 if name.endswith(WHOLE) else 3
    if isinstance(value, Spread):
        return f"{value.mean:.{digits}f}" + ("" if value.deviation is None else f" ± {value.deviation:.{digits}f}")
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    if isinstance(low, int | float) and isinstance(high, int | float):
        return f"{value:.3f} [{low:.3f}, {high:.3f}]".replace("[", r"\[")
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"
