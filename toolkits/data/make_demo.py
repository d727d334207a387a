"""Makes the demos in one git-ignored folder: parquet files and a small Qwen2.5-VL with random weights for each.

    python toolkits/data/make_demo.py [--out .demo] [--force]                easy-VQA, for supervised fine-tuning
    python toolkits/data/make_demo.py geometry [--out .demo] [--force] ...   drawn geometry problems, for both
    python toolkits/data/make_demo.py geometry_rl [--out .demo] [--force]    those that the demo of RL learns from
    python toolkits/data/make_demo.py warmup [--out .demo] [--force]         the same, and trains the model that RL
                                                                             starts from (a few minutes)
    python toolkits/data/make_demo.py geometry_tool [--out .demo] [--force]  those of the demo of multi-turn RL
    python toolkits/data/make_demo.py tool_warmup [--out .demo] [--force]    the same, and trains its model

    OUT/easy_vqa/messages/{train,test}.parquet   question, answer, image, image_id
    OUT/easy_vqa/robo2vlm/{train,test}.parquet   id, question, choices, correct_answer, image
    OUT/model/                                   config, weights, tokenizer, processor, chat template
    OUT/demo.json                                the completion marker: version, seed, counts
    OUT/geometry/{train,test}.parquet            problem, answer, images, messages, kind, level
    OUT/geometry/model/                          as above, with a tokenizer for these problems
    OUT/geometry/demo.json                       the geometry's own completion marker
    OUT/geometry_rl/                             as geometry/: fewer kinds, values in the text
    OUT/geometry_rl/warm/                        model/ after the warm-up, log/ of it, demo.json
    OUT/geometry_tool/, OUT/geometry_tool/warm/  as geometry_rl/, the messages being conversations with a tool

Dataflow: the package easy-vqa (MIT licence, Victor Zhou; installed, nothing is downloaded), or problems that are drawn
-> tables and texts -> tokenizer -> model; all of it written into a folder beside OUT, which is then renamed to OUT.

Invariants: a demo is complete or absent; a completed one is left alone unless forced, and then the other ones stay;
what RL starts from is also made anew when it was made from other settings; a folder that holds no demo is never
replaced; the same seed gives the same demo.
Does not: download, or touch anything outside OUT and its neighbour ``.NAME.*``.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":
    # As a script, only this file's folder is on the path; the repository's root makes ``toolkits`` importable.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from toolkits.data.demo_folder import is_made_from, put_in_place, read_marker, write_marker
from toolkits.data.demo_texts import vqa_texts
from toolkits.data.demo_warmup import CONFIG, TOOL_CONFIG, WARM, WarmUpFailed, warmed_from, write_warm_up
from toolkits.data.geometry_demo import (
    GEOMETRY,
    GEOMETRY_RL,
    RL_SETTINGS,
    GeometrySettings,
    check_kinds,
    made_from,
    write_geometry,
)
from toolkits.data.geometry_tool import GEOMETRY_TOOL, tool_made_from, write_geometry_tool

VERSION = 1
"""Raised when the content of the easy-VQA demo changes."""
SEED = 0
EASY_VQA = "easy_vqa"
WARM_UP = "warmup"
TOOL_WARM_UP = "tool_warmup"
NESTED = (GEOMETRY, GEOMETRY_RL, GEOMETRY_TOOL)
"""Demos that stand in easy-VQA's folder."""

logger = logging.getLogger("make_demo")


def make_demo(out: Path, *, force: bool = False, max_rows: int | None = None) -> bool:
    """Makes the easy-VQA demo in ``out``; returns False where a completed one was left alone.

    max_rows: at most so many rows a split, for tests; None takes all.
    Raises ValueError where ``out`` exists and is no demo.
    """
    return put_in_place(out, lambda folder: write_demo(folder, max_rows=max_rows), force=force, nested=NESTED)


def make_geometry(out: Path, settings: GeometrySettings, *, force: bool = False) -> bool:
    """Makes the geometry demo in ``out``/geometry; returns False where a completed one was left alone.

    Raises ValueError where that folder exists and is no demo, for kinds that there are not, or for more rows than there
    are pictures.
    """
    check_kinds(settings)
    return put_in_place(out / GEOMETRY, lambda folder: write_geometry(folder, settings), force=force)


def make_geometry_rl(out: Path, settings: GeometrySettings = RL_SETTINGS, *, force: bool = False) -> bool:
    """Makes what RL learns from in ``out``/geometry_rl; False where it was there already, made from these settings.

    What was made from other settings is replaced, with its warm-up. Raises as ``make_geometry``.
    """
    folder = out / GEOMETRY_RL
    stale = not is_made_from(folder, made_from(settings))
    return put_in_place(folder, lambda aside: write_geometry(aside, settings), force=force or stale)


def make_geometry_tool(out: Path, settings: GeometrySettings = RL_SETTINGS, *, force: bool = False) -> bool:
    """Makes what multi-turn RL learns from in ``out``/geometry_tool; otherwise as ``make_geometry_rl``."""
    folder = out / GEOMETRY_TOOL
    stale = not is_made_from(folder, tool_made_from(settings))
    return put_in_place(folder, lambda aside: write_geometry_tool(aside, settings), force=force or stale)


def make_warm_up(out: Path, demo: str = GEOMETRY_RL, *, force: bool = False, config: Path = CONFIG) -> bool:
    """Makes the model that RL starts from in ``out``/``demo``/warm; False where it was there already.

    One that was made from other rows or another ``config`` is replaced. Needs the demo. Raises WarmUpFailed.
    """
    data = out / demo
    stale = not is_made_from(data / WARM, warmed_from(data, config))
    return put_in_place(data / WARM, lambda aside: write_warm_up(aside, data, config), force=force or stale)


def write_demo(folder: Path, *, max_rows: int | None) -> None:
    """Writes tables, model and, last, the marker into the empty ``folder``."""
    # Late: a launcher that finds the demo complete does not wait for torch and transformers.
    from toolkits.data import demo_model, demo_tables

    splits = {split: demo_tables.read_split(split)[:max_rows] for split in demo_tables.SPLITS}
    demo_tables.write_tables(folder / "easy_vqa", splits, SEED)
    texts = vqa_texts(splits["train"], demo_tables.KINDS)
    parameters = demo_model.write_model(folder / "model", texts, demo_model.DemoShape(), SEED)
    state = {"version": VERSION, "seed": SEED, "parameters": parameters}
    write_marker(folder, {**state, **{f"{split}_rows": len(rows) for split, rows in splits.items()}})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit status 0, 2 with one line for a mistake of the user's, or that of the warm-up."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _make(options)
    except ValueError as error:
        logger.error("%s", error)
        return 2
    except WarmUpFailed as error:
        logger.error("%s", error)
        return error.status
    except KeyboardInterrupt:
        return 130
    return 0


def _end_on_sigterm(number: int, frame: object) -> None:
    """Unwinds, so that nothing half made stays; a second SIGTERM, which a group gets, does not disturb that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(143)


def _make(options: argparse.Namespace) -> None:
    out, force = options.out, options.force
    started = time.monotonic()
    if options.demo == EASY_VQA:
        _tell(out, make_demo(out, force=force), started)
    elif options.demo == GEOMETRY:
        settings = GeometrySettings(**{name: getattr(options, name) for name in asdict(GeometrySettings())})
        _tell(out / GEOMETRY, make_geometry(out, settings, force=force), started)
    elif options.demo == GEOMETRY_RL:
        _tell(out / GEOMETRY_RL, make_geometry_rl(out, force=force), started)
    elif options.demo == GEOMETRY_TOOL:
        _tell(out / GEOMETRY_TOOL, make_geometry_tool(out, force=force), started)
    elif options.demo == WARM_UP:
        if make_geometry_rl(out):
            _tell(out / GEOMETRY_RL, True, started)
        _tell(out / GEOMETRY_RL / WARM, make_warm_up(out, force=force), started)
    else:
        if make_geometry_tool(out):
            _tell(out / GEOMETRY_TOOL, True, started)
        made = make_warm_up(out, GEOMETRY_TOOL, force=force, config=TOOL_CONFIG)
        _tell(out / GEOMETRY_TOOL / WARM, made, started)


def _tell(folder: Path, made: bool, started: float) -> None:
    if not made:
        logger.info("%s is complete, left alone (--force makes it anew)", folder)
        return
    what = ", ".join(f"{key} {value}" for key, value in read_marker(folder).items())
    logger.info("made %s in %.0f s: %s", folder, time.monotonic() - started, what)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Make the demo data and model.")
    demos = (EASY_VQA, GEOMETRY, GEOMETRY_RL, WARM_UP, GEOMETRY_TOOL, TOOL_WARM_UP)
    parser.add_argument("demo", nargs="?", choices=demos, default=EASY_VQA, help="default: easy_vqa")
    parser.add_argument("--out", type=Path, default=Path(".demo"), help="folder of the demos (default: .demo)")
    parser.add_argument("--force", action="store_true", help="make it anew where a completed demo is there")
    drawn = parser.add_argument_group("geometry")
    default = GeometrySettings()
    drawn.add_argument("--train-rows", type=int, default=default.train_rows, help="training problems (%(default)s)")
    drawn.add_argument("--test-rows", type=int, default=default.test_rows, help="test problems (%(default)s)")
    drawn.add_argument("--side", type=int, default=default.side, help="pixels of a picture's side (%(default)s)")
    drawn.add_argument("--max-level", type=int, default=default.max_level, help="hardest kinds, 1 to 4 (%(default)s)")
    where = "where values stand (%(default)s)"
    drawn.add_argument("--given", choices=("picture", "text"), default=default.given, help=where)
    drawn.add_argument("--kinds", help="names of kinds with commas between, instead of all up to --max-level")
    careless = "part of the rows (0 to 1) whose column 'taught' has the given number for the answer (%(default)s)"
    drawn.add_argument("--careless", type=float, default=default.careless, help=careless)
    drawn.add_argument("--seed", type=int, default=default.seed, help="of problems and weights (%(default)s)")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end_on_sigterm)
    raise SystemExit(main())
