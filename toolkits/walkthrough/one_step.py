"""Everything that happens in one step of Reinforce++, as tables: docs/one_step.md with the numbers of your own run.

    python toolkits/walkthrough/one_step.py RUN_DIR [--step 21] [--answers 4] [--updates 2] [--save FILE]
    python toolkits/walkthrough/one_step.py --record FILE [--into docs/one_step.md]

Takes so many answers of those that the run recorded in that step, trains on them once more with the trainer's own actor
(one process, no engine), and writes each formula out beside it. Step N needs the checkpoint of step N - 1; step 1 needs
none, but there policy and reference are the same. --save keeps what was computed; --record prints the tables of such a
file (left out with RUN_DIR: the one that the document has), --into writes them into a document.
Exit status: 0; 1 where trainer and formulas differ; 2 for a mistake.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: on the path is this file's folder instead of the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from rlinf_vlm.types import UserError
from toolkits.walkthrough.by_hand import by_hand, checks
from toolkits.walkthrough.record import StepRecord, read_record, write_record
from toolkits.walkthrough.tables import fill, tables

EXAMPLE = Path(__file__).with_name("one_step.json")
"""The step that the document tells of."""


def main(arguments: Sequence[str]) -> int:
    """Prints the tables; returns the exit status."""
    parser = argparse.ArgumentParser(description="One step of Reinforce++, number by number.")
    parser.add_argument("run", nargs="?", type=Path, help="run folder (logs/<time>)")
    parser.add_argument("--step", type=int, default=1, help="which step, from 1")
    parser.add_argument("--answers", type=int, default=4, help="how many of its answers")
    parser.add_argument("--updates", type=int, default=2, help="in how many updates (algorithm.n_minibatches)")
    parser.add_argument("--save", type=Path, help="file to keep the numbers in")
    parser.add_argument("--record", type=Path, default=EXAMPLE, help="numbers that were kept, instead of a run")
    parser.add_argument("--into", type=Path, help="document to write the tables into")
    options = parser.parse_args(arguments)
    try:
        record = read_record(options.record) if options.run is None else _replayed(options)
        if options.save is not None:
            write_record(options.save, record)
        hand = by_hand(record)
        found = tables(record, hand)
        if options.into is not None:
            options.into.write_text(fill(options.into.read_text(encoding="utf-8"), found), encoding="utf-8")
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write("\n".join(f"## {name}\n\n{text}\n" for name, text in found.items()))
    wrong = [check for check in checks(record, hand) if not check.agrees]
    for check in wrong:
        sys.stderr.write(f"error: {check.name}: {check.by_hand!r} by hand, {check.trainer!r} by the trainer\n")
    return 1 if wrong else 0


def _replayed(options: argparse.Namespace) -> StepRecord:
    for name, least in (("step", 1), ("answers", 2), ("updates", 1)):
        if getattr(options, name) < least:
            raise UserError(f"--{name}={getattr(options, name)} is below {least}; raise it")
    if options.updates > options.answers:
        raise UserError(f"--updates={options.updates} is more than --answers={options.answers}; lower it")
    from toolkits.walkthrough.replay import replay  # loads torch, which a record does not need

    return replay(options.run, step=options.step, count=options.answers, updates=options.updates)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
