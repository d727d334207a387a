"""How the folder of a demo is put in place: written aside, renamed when it is whole, left alone afterwards.

Invariants: what stands under a demo's name is complete (its marker is the last file written) or absent; a folder that
holds no demo is never replaced; demos that stand inside a remade one stay, where they are named in ``nested``.
Does not know what a demo consists of.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

MARKER = "demo.json"
"""The completion marker: what the demo was made from, and counts."""


def is_complete(out: Path) -> bool:
    """True where ``out`` holds a finished demo, whatever it was made from."""
    return (out / MARKER).is_file()


def is_made_from(out: Path, wanted: Mapping[str, Any]) -> bool:
    """True where ``out`` holds a finished demo whose marker has all of ``wanted``."""
    return is_complete(out) and wanted.items() <= read_marker(out).items()


def read_marker(out: Path) -> dict[str, Any]:
    """The marker's content."""
    state: dict[str, Any] = json.loads((out / MARKER).read_text())
    return state


def write_marker(folder: Path, state: Mapping[str, Any]) -> None:
    """Marks ``folder`` as complete: the last file that is written into it."""
    (folder / MARKER).write_text(json.dumps(state, indent=1) + "\n")


def put_in_place(out: Path, write: Callable[[Path], None], *, force: bool, nested: Sequence[str] = ()) -> bool:
    """Lets ``write`` fill a new folder and renames it to ``out``; False where a complete demo was left alone.

    force: replaces a complete demo; of what stands in it, the folders named in ``nested`` stay.
    Raises ValueError where ``out`` exists and is no demo.
    """
    if is_complete(out) and not force:
        return False
    if (
        out.exists()
        and not is_complete(out)
        and (not out.is_dir() or any(path.name not in nested for path in out.iterdir()))
    ):
        raise ValueError(f"{out} exists and is not a demo (no {MARKER} in it): remove it or name another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        aside.chmod(0o755)
        write(aside)
        _swap_in(aside, out, nested)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True


def _swap_in(aside: Path, out: Path, nested: Sequence[str]) -> None:
    """Renames ``aside`` to ``out``; an older demo there is removed only after it has left its place."""
    old = aside.with_name(aside.name + ".old")
    if out.exists():
        out.rename(old)
    try:
        aside.rename(out)
    except OSError:
        # Another process finished first: its demo is as good as ours.
        if not is_complete(out):
            raise
    for name in nested:
        if (old / name).is_dir() and not (out / name).exists():
            (old / name).rename(out / name)
    shutil.rmtree(old, ignore_errors=True)
