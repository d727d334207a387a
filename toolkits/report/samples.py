"""Recorded answers as the page browses them: training rollouts, and the answers of evaluations.

    rollouts/step_N.jsonl, trained_N.jsonl, eval/[test_]step_N.jsonl, rows, tokenizer --collect--> Samples

A sample is one answer: a dict of plain data that the page draws (``_rollout``, ``eval_samples``). Pictures and prompts
stand once and are referred to. Invariants: the samples of a run's step are whole groups as long as there is room;
everything together stays below the budget, prompts included, which is shared evenly among the run's steps; a long text
has its beginning and end; what was left out, or could not be read, is said in ``notes``. Numbers of tokens are rounded
to 4 digits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from rlinf_vlm.evaluation.answered import CORRECT
from rlinf_vlm.rewards.protocol import JUDGED, OK
from rlinf_vlm.rollout.files import read_rollouts, recorded_steps
from rlinf_vlm.rollout.records import ScoredRollout, Turn
from rlinf_vlm.rollout.trained import TrainedTokens, read_trained
from rlinf_vlm.types import UserError
from toolkits.report.choosing import evenly, shortened, whole_groups
from toolkits.report.curves import rounded
from toolkits.report.eval_samples import EvalFile, eval_files, eval_samples
from toolkits.report.pictures import Pictures
from toolkits.report.records import Run
from toolkits.report.rows import RowSource
from toolkits.report.tokens import Decode, open_decoder, token_texts

TOKEN_DIGITS = 4
"""Significant digits of a token's numbers."""
BUDGET = 9 << 20
"""Bytes of all samples and prompts as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is shown. per_step: answers of a training step at most (of an evaluation, half as many rows); steps:
    recorded steps of a run at most, or those that are named; evaluations: of each of evaluation and test, at most."""

    per_step: int = 40
    steps: int | tuple[int, ...] = 8
    evaluations: int = 3

    @property
    def eval_rows(self) -> int:
        """Rows of an evaluation at most."""
        return (self.per_step + 1) // 2


@dataclass(slots=True, kw_only=True)
class Samples:
    """The page's samples. items: as ``_rollout`` makes them; prompts: messages by number; notes: what is missing."""

    items: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[list[dict[str, Any]]] = field(default_factory=list)
    pictures: Pictures = field(default_factory=Pictures)
    notes: list[str] = field(default_factory=list)

    @property
    def reward_parts(self) -> set[str]:
        """Names of the parts of their rewards."""
        return {name for item in self.items for name in item.get("parts", ())}

    def as_json(self) -> dict[str, Any]:
        """For the page."""
        return {"items": self.items, "prompts": self.prompts, "images": self.pictures.urls}


def collect(runs: Sequence[Run], choice: Choice, budget: int = BUDGET) -> Samples:
    """The samples of all ``runs``. Raises UserError where ``choice`` names a step that no run has on record."""
    samples = Samples()
    recorded = [recorded_steps(run.folder) for run in runs]
    if isinstance(choice.steps, tuple):
        missing = sorted(set(choice.steps) - {step for steps in recorded for step in steps})
        if missing:
            raise UserError(f"--sample-steps: no rollouts of step {missing[0]} are on record; leave the option out")
    said: dict[str, list[str]] = {}
    for place, (run, steps) in enumerate(zip(runs, recorded, strict=True)):
        reader = _Reader(place, run, samples, choice)
        chosen = _chosen(steps, choice.steps)
        files = eval_files(run.folder, choice.evaluations)
        room = budget // len(runs) // max(1, len(chosen) + len(files))
        for step in chosen:
            reader.keep(f"step {step}", "train", reader.rollouts(step), room)
        for file in files:
            reader.keep(f"{file.path.parent.name}/{file.path.name}", file.split, reader.evaluation(file), room)
        for note in reader.finish(len(steps), chosen):
            said.setdefault(note, []).append(run.label)
    samples.notes = [note if len(who) == len(runs) else f"{', '.join(who)}: {note}" for note, who in said.items()]
    if samples.pictures.left_out:
        samples.notes.append(f"{samples.pictures.left_out} pictures were left out: the page has no room for more.")
    return samples


def _chosen(steps: Sequence[int], wanted: int | tuple[int, ...]) -> list[int]:
    return evenly(steps, wanted) if isinstance(wanted, int) else [step for step in steps if step in wanted]


class _Reader:
    """Reads the samples of one run into ``samples``."""

    def __init__(self, place: int, run: Run, samples: Samples, choice: Choice) -> None:
        self._place, self._run, self._samples, self._choice = place, run, samples, choice
        self._rows = RowSource(run, samples.pictures)
        self._prompts: dict[tuple[str, int], int] = {}
        self._decode: Decode | None = None
        self._notes: list[str] = []
        self._broken: list[tuple[int, str]] = []
        self._cut = False
        if recorded_steps(run.folder):
            self._decode = open_decoder(run.setting("actor.model.model_path"))
            if self._decode is None:
                self._notes.append(
                    f"The tokenizer of {run.setting('actor.model.model_path') or 'the model'} cannot be read: answers "
                    "are shown without their tokens."
                )

    def rollouts(self, step: int) -> list[dict[str, Any]]:
        """The chosen answers of a training step; none, and a note, where they cannot be read."""
        try:
            answers = read_rollouts(self._run.folder, step)
            trained = read_trained(self._run.folder, step)
        except (UserError, OSError) as error:
            self._broken.append((step, " ".join(str(error).split())))
            return []
        answers = sorted(answers, key=lambda one: (one.rollout.group, one.rollout.member))
        groups = [list(members) for _, members in groupby(answers, key=lambda one: one.rollout.group)]
        kept = whole_groups(groups, self._choice.per_step) if groups else []
        self._cut |= len(kept) < len(answers)
        return [self._rollout(step, one, trained.get((one.rollout.group, one.rollout.member))) for one in kept]

    def evaluation(self, file: EvalFile) -> list[dict[str, Any]]:
        """The chosen answers of an evaluation."""
        made, left = eval_samples(file, self._choice.eval_rows, self._notes)
        self._cut |= left
        return [{"run": self._place, **one} for one in made]

    def keep(self, what: str, split: str, items: Sequence[dict[str, Any]], room: int) -> None:
        """Adds ``items`` of ``what``, answers to rows of ``split``, and their prompts to the page as long as their JSON
        is within ``room`` bytes."""
        for place, item in enumerate(items):
            room -= len(json.dumps(item))
            if room >= 0:
                prompts = len(self._samples.prompts)
                item["prompt"] = self._prompt(split, item["row"], item)
                room -= len(json.dumps(self._samples.prompts[prompts:]))
            if room < 0:
                self._notes.append(f"{len(items) - place} long answers of {what} were left out.")
                return
            self._samples.items.append(item)

    def finish(self, recorded: int, chosen: Sequence[int]) -> list[str]:
        """What is not there, a sentence each."""
        if self._broken:
            steps = ", ".join(str(step) for step, _ in self._broken)
            self._notes.append(f"Rollouts that cannot be shown: step {steps} (the first: {self._broken[0][1]}).")
        if recorded > len(chosen):
            self._notes.append(f"Rollouts of {len(chosen)} of {recorded} recorded steps are shown.")
        if self._cut:
            self._notes.append(
                f"At most {self._choice.per_step} answers of a step are shown, and answers to "
                f"{self._choice.eval_rows} rows of an evaluation."
            )
        if not recorded and not any(item["run"] == self._place for item in self._samples.items):
            self._notes.append("There are no recorded answers.")
        self._notes += self._rows.problems
        return list(dict.fromkeys(self._notes))

    def _prompt(self, split: str, row: int, item: Mapping[str, Any]) -> int:
        """The number of the row's prompt among the page's; of a row that is gone, the question on record."""
        key = (split, row)
        if key not in self._prompts:
            messages = self._rows.prompt(split, row)
            if messages is None:
                messages = [{"role": "user", "parts": [str(item.get("question") or "")]}]
            self._prompts[key] = len(self._samples.prompts)
            self._samples.prompts.append(messages)
        return self._prompts[key]

    def _rollout(self, step: int, scored: ScoredRollout, trained: TrainedTokens | None) -> dict[str, Any]:
        """One answer of a training step. ``tokens`` of a turn: texts; ``lp``: the engine's log-probabilities;
        ``gap``: the trainer's less these; ``adv``: advantages (one number where a turn has one for all); missing where
        not on record."""
        rollout = scored.rollout
        turns, begin = [], 0
        for turn in rollout.turns:
            end = begin + len(turn.token_ids)
            turns.append(self._turn(turn, trained, begin, end))
            begin = end
        item = {
            "run": self._place,
            "set": "training",
            "step": step,
            "row": rollout.row,
            "group": rollout.group,
            "member": rollout.member,
            "reward": rounded(scored.reward),
            "parts": {name: rounded(value) for name, value in scored.parts.items()},
            "status": scored.status,
            "detail": shortened(scored.detail),
            "outcome": rollout.outcome,
            "outcome_detail": shortened(rollout.outcome_detail),
            "verdict": verdict(scored.status, scored.reward),
            "length": len(rollout.token_ids),
            "question": shortened(rollout.question),
            "answer": shortened(rollout.answer),
            "turns": turns,
        }
        if rollout.env_info:
            item["env"] = dict(rollout.env_info)
        return item

    def _turn(self, turn: Turn, trained: TrainedTokens | None, begin: int, end: int) -> dict[str, Any]:
        made: dict[str, Any] = {"text": shortened(turn.text), "finish": turn.finish_reason}
        if turn.observation or turn.images:
            made["observation"] = shortened(turn.observation)
            made["images"] = [self._samples.pictures.add(image) for image in turn.images]
        if self._decode is None:
            return made
        made["tokens"] = token_texts(self._decode, turn.token_ids)
        made["lp"] = [rounded(value, TOKEN_DIGITS) for value in turn.logprobs]
        if trained is not None and end <= len(trained.logprobs):
            pairs = zip(trained.logprobs[begin:end], turn.logprobs, strict=True)
            made["gap"] = [rounded(ours - engine, TOKEN_DIGITS) for ours, engine in pairs]
            advantages = [rounded(value, TOKEN_DIGITS) for value in trained.advantages[begin:end]]
            made["adv"] = advantages[0] if len(set(advantages)) == 1 else advantages
        return made


def verdict(status: str, reward: float) -> str:
    """right, wrong, or unjudged."""
    if status not in JUDGED:
        return "unjudged"
    return "right" if status == OK and reward >= CORRECT else "wrong"
