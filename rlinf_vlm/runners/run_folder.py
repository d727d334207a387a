"""A run's folder: made, found writable, taken over by the run that goes on in it; and what is on record there.

A resumed run goes on in the folder of the run that it resumes. The launcher has made a new one by then and writes the
log there: the log is moved over and the new folder disappears.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

from rlinf_vlm.types import UserError

PROBE_BYTES = 1 << 20
"""What a run folder must at least take: config, plan and the first metrics."""


def make_run_folder(path: Path) -> None:
    """Makes the run folder. Raises UserError when it cannot be made or written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.write_bytes(bytes(PROBE_BYTES))
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"runner.logger.log_path={str(path)!r} cannot be written to ({error.strerror}); choose another folder"
        ) from error


def take_over(launched: Path, folder: Path) -> None:
    """Moves the log of the start whose folder was to be ``launched`` into ``folder``, as its next run.N.log."""
    log = launched / "run.log"
    if not log.is_file() or launched.resolve() == folder.resolve():
        return
    with suppress(OSError):  # on another file system, where an open file cannot be moved to, the log stays
        log.rename(folder / numbered("run.log", count_starts(folder) + 1))
        launched.rmdir()


def count_starts(folder: Path) -> int:
    """Starts of the run that are on record in its folder."""
    return len([path for path in folder.glob("config*.yaml") if re.fullmatch(r"config(\.\d+)?\.yaml", path.name)])


def numbered(name: str, number: int) -> str:
    """``numbered("run.log", 1) == "run.log"``, ``numbered("run.log", 2) == "run.2.log"``."""
    stem, _, suffix = name.rpartition(".")
    return name if number == 1 else f"{stem}.{number}.{suffix}"


def history(folder: Path, name: str) -> dict[int, float]:
    """Step -> value of the metric ``name`` in metrics.jsonl; empty without the file. A cut last line is passed over."""
    file = folder / "metrics.jsonl"
    found: dict[int, float] = {}
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        with suppress(ValueError):
            line = json.loads(text)
            if name in line:
                found[line["step"]] = line[name]
    return found
