"""Makes the report of one run, or of several side by side: one HTML page, and its charts as PNG files.

    python toolkits/report/make_report.py RUN_DIR [RUN_DIR ...] [--out FOLDER]

    FOLDER/index.html    key figures, curves, settings, samples; needs no server and no network
    FOLDER/*.png         the curves, one file each

FOLDER is RUN_DIR/report for one run, and ./report for several. Runs that differ by actor.seed alone are one group:
their mean is a line, their standard deviation a band. A run makes its own report when it ends (runner.report).
Long runs: a line has at most 400 points, each the mean of neighbouring steps with their range as a band; of the samples
some steps (--sample-steps) and some answers a step (--samples-per-step) are in the page, which says what it left out.
Exit status: 0, or 2 for a folder that is no run's and for an option that does not fit.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import yaml

if not __package__:  # run as a script: on the path is this file's folder instead of the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from rlinf_vlm.types import UserError
from toolkits.report.curves import epochs_of
from toolkits.report.figures import write_figures
from toolkits.report.groups import Group, differences, differing, flatten, group_runs, members, shown
from toolkits.report.page import folded_html, list_html, page, table_html, text_html
from toolkits.report.panels import PANEL_IDS, make_panels
from toolkits.report.records import Run, read_run
from toolkits.report.samples import Choice, collect
from toolkits.report.summary import Table, key_figures

PAGE = "index.html"


def make_report(folders: Sequence[Path], out: Path | None = None, choice: Choice | None = None) -> Path:
    """Writes the report of the runs in ``folders`` (one that is named twice is one run); returns the page's path.

    Raises UserError for a folder that is no run's, and for a step that ``choice`` names and nobody recorded.
    """
    runs = read_runs(folders)
    out = out or (runs[0].folder / "report" if len(runs) == 1 else Path("report"))
    groups = group_runs(runs)
    samples = collect(runs, choice or Choice())
    panels, others, constants = make_panels(runs, groups, samples.reward_parts)
    try:
        out.mkdir(parents=True, exist_ok=True)
        written = write_figures(panels, groups, out)
        for stale in {out / f"{name}.png" for name in PANEL_IDS} - set(written):  # of a report made here before
            stale.unlink(missing_ok=True)
        data = {
            "groups": [_group(runs, group) for group in groups],
            "runs": [run.label for run in runs],
            "panels": [panel.as_json() for panel in panels],
            "others": [panel.as_json() for panel in others],
            "samples": samples.as_json(),
        }
        title = _title(runs, groups)
        parts = {
            "heading": text_html(title),
            "header": _header(runs, groups),
            "notes": list_html([note for run in runs for note in _named(run, runs)]),
            "figures": table_html(key_figures(runs, groups)),
            "constants": _constants(constants),
            "settings": _settings(runs),
            "sample_notes": list_html(samples.notes),
        }
        text = page(title=f"{title}: report", parts=parts, data=data)
        aside = out / f"{PAGE}.partial"
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, out / PAGE)
    except OSError as error:
        raise UserError(f"--out={out}: cannot be written to ({error.strerror or error}); choose another") from error
    return out / PAGE


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs, each once; those whose folders have one name are labelled with as many folders around it as tell them
    apart."""
    distinct = {folder.resolve(): folder for folder in folders}
    return [read_run(folder, _label(resolved, list(distinct))) for resolved, folder in distinct.items()]


def _label(folder: Path, folders: Sequence[Path]) -> str:
    """The shortest end of the path that no other of ``folders`` has."""
    for length in range(1, len(folder.parts)):
        end = folder.parts[-length:]
        if sum(other.parts[-length:] == end for other in folders) == 1:
            return "/".join(end)
    return str(folder)


def _group(runs: Sequence[Run], group: Group) -> dict[str, object]:
    seeds = [runs[place].setting("actor.seed") for place in group.runs]
    return {"label": group.label, "runs": len(group.runs), "seeds": seeds, "epochs": epochs_of(members(runs, group))}


def _title(runs: Sequence[Run], groups: Sequence[Group]) -> str:
    names = list(dict.fromkeys(str(run.setting("runner.logger.experiment_name") or run.label) for run in runs))
    if len(runs) == 1:
        return names[0]
    number = f"{len(groups)} settings, {len(runs)} runs" if len(groups) > 1 else f"{len(runs)} runs"
    return f"{', '.join(names[:3])}{', ..' if len(names) > 3 else ''}: {number}"


def _named(run: Run, runs: Sequence[Run]) -> list[str]:
    return [note if len(runs) == 1 else f"{run.label}: {note}" for note in run.notes]


def _header(runs: Sequence[Run], groups: Sequence[Group]) -> str:
    """What was run: a line a run."""
    rows = []
    for run in runs:
        began, ended = (_date(when) for when in (run.began, run.ended))
        versions = ", ".join(f"{name} {version}" for name, version in run.versions.items()) or "not on record"
        task = {"sft": "supervised fine-tuning", "reasoning": "reinforcement learning"}
        model = Path(str(run.setting("actor.model.model_path") or "-")).name
        kind = task.get(str(run.setting("runner.task_type")), "-")
        rows.append((run.label, kind, model, str(run.setting("actor.seed", "-")), began, ended, versions))
    heads = ("run", "task", "model", "seed", "began", "last metric", "versions")
    table = table_html(Table(heads=heads, rows=tuple(rows), strong=(False,) * len(rows)))
    made = f"{len(runs)} run{'s' if len(runs) > 1 else ''} in {len(groups)} group{'s' if len(groups) > 1 else ''}"
    return f'<p class="quiet">{made}, report made {_date(datetime.now().astimezone())}</p>{table}'


def _date(when: datetime | None) -> str:
    return "-" if when is None else when.strftime("%Y-%m-%d %H:%M")


def _constants(constants: dict[str, float]) -> str:
    if not constants:
        return ""
    items = "".join(f"<li><code>{text_html(name)}</code> {value:.6g}</li>" for name, value in sorted(constants.items()))
    head = f"<summary>Metrics that never changed ({len(constants)})</summary>"
    return f'<details>{head}<ul class="columns">{items}</ul></details>'


def _settings(runs: Sequence[Run]) -> str:
    """Differences between runs, and between the starts of one; then each run's config and plan."""
    parts = []
    found = differences(runs) if len(runs) > 1 else []
    if found:
        heads = ("setting", *(run.label for run in runs))
        rows = tuple((key, *values) for key, values in found)
        parts.append("<h3>Differences</h3>" + table_html(Table(heads=heads, rows=rows, strong=(False,) * len(rows))))
    elif len(runs) > 1:
        parts.append('<p class="quiet">The runs have one config.</p>')
    for run in runs:
        for number, later in enumerate(run.later_configs, start=2):
            first, now = flatten(run.config), flatten(later)
            changed = [f"{key}: {_cell(first, key)} → {_cell(now, key)}" for key in differing([first, now])]
            parts.append(
                f"<p>{text_html(run.label)}, start {number}: {text_html('; '.join(changed) or 'the same settings')}</p>"
            )
        text = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True) if run.config else ""
        parts += [folded_html(f"config.yaml of {run.label}", text)] if text else []
        parts += [folded_html(f"plan.txt of {run.label}", run.plan)] if run.plan else []
    return "".join(parts)


def _cell(flat: dict[str, object], key: str) -> str:
    return shown(flat[key]) if key in flat else "-"


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description="Report of one run or several: an HTML page and PNG files.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="run folders")
    parser.add_argument("--out", type=Path, help="folder to write to (RUN_DIR/report; of several runs ./report)")
    parser.add_argument("--samples-per-step", type=int, default=Choice().per_step, metavar="N", help="answers a step")
    parser.add_argument(
        "--sample-steps",
        default=str(Choice().steps),
        metavar="N",
        help="how many recorded steps to show samples of, evenly spaced; or which: 1,50,100 (one: 50,)",
    )
    options = parser.parse_args(arguments)
    try:
        choice = Choice(per_step=_at_least_0("--samples-per-step", options.samples_per_step), steps=_steps(options))
        path = make_report(options.runs, options.out, choice)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)\n")
    return 0


def _at_least_0(name: str, value: int) -> int:
    if value < 0:
        raise UserError(f"{name}={value}: is below 0; give the number of answers, 0 for none")
    return value


def _steps(options: argparse.Namespace) -> int | tuple[int, ...]:
    text = options.sample_steps
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 0:
        raise UserError(f"--sample-steps={text!r}: give a number of steps (8), or the steps themselves (1,50,100)")
    return numbers if "," in text else numbers[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
