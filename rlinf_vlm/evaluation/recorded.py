"""The figures of a run, computed from what it recorded.

    <run folder>/rollouts/step_N.jsonl                   --> RunFigures.steps
    <run folder>/eval/step_N.jsonl, test_step_N.jsonl    --> RunFigures.evaluations
    <run folder>/metrics.jsonl                           --> epochs, and what has no file of its own
    <run folder>/config.yaml                             --> the words and settings that the run was asked for

Invariant: names and numbers are those that the run itself logs, since the same functions make both. What is taken from
metrics.jsonl is what the run said, with the words that it looked for. Steps that were recorded and then trained anew by
a resumed start are there once. A figure that is not finite is not there. Nothing is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlinf_vlm.config.rl import REFLECTION_WORDS
from rlinf_vlm.evaluation.answered import AnsweredRecord, summarise
from rlinf_vlm.evaluation.answers import EvalRecord
from rlinf_vlm.evaluation.answers import summarise as summarise_closed
from rlinf_vlm.evaluation.behaviour import BEHAVIOUR
from rlinf_vlm.evaluation.files import evaluation_file, evaluations
from rlinf_vlm.evaluation.lines import read_evaluation
from rlinf_vlm.evaluation.training import training_metrics
from rlinf_vlm.rollout.batching import response_metrics
from rlinf_vlm.rollout.files import FOLDER, read_rollouts, recorded_steps
from rlinf_vlm.types import UserError

EPOCH = "train/epoch"
SPLITS = ("eval", "test")
STEP_METRICS = frozenset(
    f"rollout/{name}"
    for name in (
        *("accuracy", "accuracy_low", "accuracy_high", "response_length", "response_length_max", "turns"),
        *("completed", "max_turns", "truncated", "env_error", "env_close_errors", *BEHAVIOUR),
    )
)
"""What a step is told by, beside the word counts."""
WORD_COUNTS = ("reflection/", "reflection_answers/")

Evaluation = tuple[str, int]
"""Split and step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """One run. words: that were looked for; steps: step -> metrics of its training answers; evaluations: split and step
    -> metrics; epochs: step -> passes over the training rows after it, where the run logged them."""

    folder: Path
    words: tuple[str, ...]
    steps: Mapping[int, Mapping[str, float]]
    evaluations: Mapping[Evaluation, Mapping[str, float]]
    epochs: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the run's config asks of its evaluations: words, and settings by name -> the only k, None for 1, 2, 4, .."""

    words: tuple[str, ...] = REFLECTION_WORDS
    setting_ks: Mapping[str, int | None]


def run_figures(folder: Path, words: Sequence[str] | None = None) -> RunFigures:
    """All figures of the run in ``folder``. words: those to look for; None: those of the run's config.

    Raises UserError for a folder that is not there or holds no record, and for a file that was cut or is something
    else.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a run, such as logs/20260101-120000")
    asked = _asked(folder)
    wanted = asked.words if words is None else tuple(words)
    logged = _logged(folder)
    steps = {step: step_metrics for step, line in logged.items() if (step_metrics := _of_step(line))}
    found = {(split, step): kept for step, line in logged.items() for split in SPLITS if (kept := _of(split, line))}
    for step in recorded_steps(folder / FOLDER):
        scored = read_rollouts(folder / FOLDER, step)
        responses = response_metrics([answer.rollout for answer in scored])
        steps[step] = {**training_metrics(scored, wanted), **responses}
    for split, step in evaluations(folder):
        records = read_evaluation(evaluation_file(folder, split, step))
        found[split, step] = _summary(records, split, wanted, asked.setting_ks)
    if not steps and not found:
        raise UserError(
            f"{folder} holds no {FOLDER}/step_N.jsonl, no eval/step_N.jsonl and no metrics.jsonl that tells of any; "
            "give the folder of a run that recorded answers"
        )
    return RunFigures(
        folder=folder,
        words=wanted,
        steps=dict(sorted(steps.items())),
        evaluations=dict(sorted(found.items(), key=lambda item: (item[0][1], item[0][0]))),
        epochs={step: line[EPOCH] for step, line in logged.items() if EPOCH in line},
    )


def _summary(
    records: Sequence[AnsweredRecord] | Sequence[EvalRecord],
    split: str,
    words: Sequence[str],
    setting_ks: Mapping[str, int | None],
) -> dict[str, float]:
    generated = [record for record in records if isinstance(record, AnsweredRecord)]
    if generated or not records:
        return summarise(generated, split=split, words=words, setting_ks=_fitting(setting_ks, generated))
    return _finite(summarise_closed([record for record in records if isinstance(record, EvalRecord)]))


def _fitting(setting_ks: Mapping[str, int | None], records: Sequence[AnsweredRecord]) -> dict[str, int | None]:
    """Without the k that ask for more answers than there are: a later start may have asked for more than this one."""
    counts = {name: [len(record.settings.get(name, ())) for record in records] for name in setting_ks}
    return {
        name: k if k is None or all(count >= k for count in counts[name] if count) else None
        for name, k in setting_ks.items()
    }


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _of_step(line: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name in STEP_METRICS or name.startswith(WORD_COUNTS)}


def _of(split: str, line: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name.startswith(f"{split}/")}


def _logged(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> all of its metrics, later lines over earlier ones; empty without the file. A cut line is passed over."""
    file = folder / "metrics.jsonl"
    found: dict[int, dict[str, float]] = {}
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
        with suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(step := line.pop("step", None), int):
                numbers = {name: value for name, value in line.items() if isinstance(value, int | float)}
                found.setdefault(step, {}).update(_finite(numbers))
    return found


def _asked(folder: Path) -> Asked:
    """Of the configs of all starts of the run, the last of them last; the defaults where there is none, or where it is
    older than these keys."""
    words: Sequence[str] = REFLECTION_WORDS
    setting_ks: dict[str, int | None] = {}
    for file in sorted(folder.glob("config*.yaml"), key=lambda file: (len(file.name), file.name)):
        try:
            tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is not the config of a run ({' '.join(str(error).split())})") from error
        algorithm = tree.get("algorithm") if isinstance(tree, dict) else None
        options: dict[str, Any] = algorithm if isinstance(algorithm, dict) else {}
        given, settings = options.get("reflection_words"), options.get("eval_settings")
        words = given if isinstance(given, list) else words
        settings = settings if isinstance(settings, list) else ()
        setting_ks |= {one["name"]: one.get("k") for one in settings if isinstance(one, dict) and "name" in one}
    return Asked(words=tuple(words), setting_ks=setting_ks)
