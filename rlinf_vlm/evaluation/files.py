"""Where an evaluation's answers stand in a run folder.

<run folder>/eval/step_N.jsonl        of data.eval_data_paths
<run folder>/eval/test_step_N.jsonl   of data.test_data_paths
"""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = "eval"
_NAME = re.compile(r"(?:(test)_)?step_(\d+)\.jsonl")


def evaluation_file(folder: Path, split: str, step: int) -> Path:
    """The file of the evaluation of ``split`` (eval, test) after ``step`` steps in the run folder ``folder``."""
    return folder / FOLDER / (f"step_{step}.jsonl" if split == "eval" else f"{split}_step_{step}.jsonl")


def evaluations(folder: Path) -> list[tuple[str, int]]:
    """(split, step) of every file that there is in the run folder ``folder``, by step; eval before test."""
    found = (_NAME.fullmatch(path.name) for path in (folder / FOLDER).glob("*.jsonl"))
    return sorted(((name[1] or "eval", int(name[2])) for name in found if name), key=lambda one: (one[1], one[0]))
