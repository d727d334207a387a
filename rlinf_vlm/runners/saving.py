"""The checkpoints of one run, as the driver sees them: begins them, tells when they are finished, removes old ones.

A checkpoint is written while the training goes on; the next one, and the end of the run, wait for it. Removal looks at
the folder alone, so it is the same before and after a resume. The tensors are the actor's business.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlinf_vlm.checkpoints import PARTIAL, Checkpoint, checkpoint_folder, is_checkpoint_name, open_checkpoint
from rlinf_vlm.config.resolve import Schedule
from rlinf_vlm.config.schema import Config
from rlinf_vlm.runners.resume import describe
from rlinf_vlm.runners.session import Clock, Session
from rlinf_vlm.types import UserError

if TYPE_CHECKING:
    from rlinf_vlm.cluster.worker_group import WorkerGroup  # loads Ray


class Checkpoints:
    """Saves ``actor`` into the session's folder."""

    def __init__(
        self,
        config: Config,
        schedule: Schedule,
        actor: WorkerGroup,
        session: Session,
        first_weights: str | None = None,
    ) -> None:
        """first_weights: what the run began with, see ``describe``."""
        self._config = config
        self._first_weights = first_weights
        self._schedule = schedule
        self._actor = actor
        self._session = session
        self._writing: Path | None = None
        self._seconds: dict[int, float] = {}
        """Rank -> what it took, of those that have finished writing."""
        self._saved = schedule.start.step

    def save(self, step: int, samples: int | None = None) -> None:
        """Begins the checkpoint after ``step`` finished steps, once the one before is finished. Once a step.

        samples: the data cursor, where it does not follow from the step.
        """
        if step == self._saved:
            return
        clock = Clock()
        self._collect(step, wait=True)
        folder = checkpoint_folder(self._session.checkpoints.absolute(), step)
        partial = folder.with_name(f"{folder.name}{PARTIAL}-{uuid.uuid4().hex[:8]}")
        state = describe(self._config, self._schedule, step, samples, self._first_weights)
        self._actor.call("begin_save", str(folder), str(partial), state)
        self._writing, self._saved = folder, step
        self._session.log_saving(step, clock.seconds())

    def collect(self, step: int) -> None:
        """Tells of a checkpoint that has been finished meanwhile; ``step`` is where the run is."""
        self._collect(step, wait=False)

    def finish(self, step: int) -> None:
        """Waits for what is still being written."""
        self._collect(step, wait=True)

    def _collect(self, step: int, *, wait: bool) -> None:
        if self._writing is None:
            return
        told = self._actor.call("finished_save", wait=wait)
        # A rank tells it once, and ranks finish at different moments.
        self._seconds |= {rank: seconds for rank, seconds in enumerate(told) if seconds is not None}
        if len(self._seconds) < len(told):
            return
        folder, self._writing = self._writing, None
        seconds, self._seconds = max(self._seconds.values()), {}
        self._session.log_saved(step, folder, seconds)
        self._remove_old()

    def _remove_old(self) -> None:
        runner = self._config.runner
        if runner.keep_last is None:
            return
        found = existing(self._session.checkpoints)
        scores = {} if runner.keep_best is None else self._session.history(runner.keep_best)
        best = best_step([item.step for item in found], scores, lowest="loss" in (runner.keep_best or ""))
        for checkpoint in superfluous(found, keep_last=runner.keep_last, best=best):
            _discard(checkpoint.folder)


def existing(folder: Path) -> list[Checkpoint]:
    """The finished checkpoints in a ``checkpoints`` folder, in the order in which they were saved."""
    found = []
    for path in folder.iterdir():
        if is_checkpoint_name(path.name):
            try:
                found.append(open_checkpoint(path))
            except UserError:
                continue  # not ours to count, nor to remove
    return sorted(found, key=lambda checkpoint: checkpoint.saved_at)


def best_step(steps: Sequence[int], scores: Mapping[int, float], *, lowest: bool) -> int | None:
    """The step of ``steps`` with the best score, the later one of equals; None when none has a score."""
    scored = [step for step in sorted(steps) if step in scores]
    if not scored:
        return None
    return min(reversed(scored), key=lambda step: scores[step] if lowest else -scores[step])


def superfluous(found: Sequence[Checkpoint], *, keep_last: int, best: int | None) -> list[Checkpoint]:
    """Those of ``found``, oldest first, that are neither among the newest ``keep_last`` nor the best."""
    return [checkpoint for checkpoint in found[:-keep_last] if checkpoint.step != best]


def remove_unfinished(folder: Path) -> list[Path]:
    """Removes what killed runs left half-written in a ``checkpoints`` folder; returns what it was."""
    left = [path for path in sorted(folder.glob(f"global_step_*{PARTIAL}*")) if path.is_dir()]
    for path in left:
        _discard(path)
    return left


def _discard(folder: Path) -> None:
    """Removes ``folder``. It is renamed first: a kill in between leaves nothing that looks like a checkpoint, and a
    process that outlived its run cannot finish one that is half gone."""
    doomed = folder.with_name(f"{folder.name}{PARTIAL}-removed-{uuid.uuid4().hex[:8]}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
