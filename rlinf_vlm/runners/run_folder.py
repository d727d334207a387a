"""A run's folder: made, found writable, taken over by the run that goes on in it; and what is on record there.

A resumed run goes on in the folder of the run that it resumes. The launcher has made a new one by then and writes the
log there: the log is moved over and the new folder disappears.
"""

from __future__ import annotations

import errno
import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlinf_vlm.types import UserError

LOCK = ".lock"
"""File of a run folder that the run in it holds locked."""
PROBE_BYTES = 1 << 20
"""What a run folder must at least take: config, plan and the first metrics."""


@contextmanager
def occupied(path: Path) -> Iterator[None]:
    """Makes the run folder and keeps other runs out of it, until the block or the process ends, whichever way.

    Two runs in one folder would cut each other's metrics and remove each other's half-written checkpoints. Raises
    UserError when another run is in it, or when it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / LOCK).open("a", encoding="utf-8")
    except OSError as error:
        raise _not_writable(path, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # on a file system without locks nothing can be told
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise UserError(
                    f"runner.logger.log_path={str(path)!r}: another run is at work in it; wait until it has ended, or "
                    "choose another folder"
                ) from error
        yield


def check_writable(path: Path) -> None:
    """The run folder takes files. Raises UserError when it does not."""
    try:
        probe = path / ".writable"
        probe.write_bytes(bytes(PROBE_BYTES))
        probe.unlink()
    except OSError as error:
        raise _not_writable(path, error) from error


def _not_writable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"runner.logger.log_path={str(path)!r} cannot be written to ({error.strerror}); choose another folder"
    )


def take_over(launched: Path, folder: Path, number: int) -> None:
    """Moves the log of the start whose folder was to be ``launched`` to ``folder``, as that of start ``number``."""
    log = launched / "run.log"
    if not log.is_file() or launched.resolve() == folder.resolve():
        return
    with suppress(OSError):  # on another file system, where an open file cannot be moved to, the log stays
        log.rename(folder / numbered("run.log", number))
        launched.rmdir()


def next_start(folder: Path) -> int:
    """The number of the start that comes after all that left a config or a log of their own in ``folder``."""
    names = (re.fullmatch(r"config(?:\.(\d+))?\.yaml|run\.(\d+)\.log", path.name) for path in folder.iterdir())
    return 1 + max((int(name[1] or name[2] or 1) for name in names if name), default=0)


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
