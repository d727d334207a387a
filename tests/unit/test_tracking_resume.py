"""A run that goes on from a checkpoint, in what it wrote before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlinf_vlm.tracking import open_backends
from tests.small_run import read_jsonl

ROOT = Path(__file__).parents[2]


def log(folder: Path, steps: range, names: tuple[str, ...] = (), resumed_step: int | None = None, run: int = 1) -> None:
    """One process's part of a run: ``train/loss`` at each step, ``eval/accuracy`` at the even ones."""
    backends = open_backends(names, folder, "project", "run", {"lr": 0.1}, resumed_step=resumed_step)
    for step in steps:
        for backend in backends:
            backend.log(step, {"train/loss": step + run / 10})
            if step % 2 == 0:
                backend.log(step, {"eval/accuracy": run / 10})
    for backend in backends:
        backend.close()


def logged(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in read_jsonl(folder / "metrics.jsonl") if name in line]


def test_lines_after_the_checkpoint_are_written_again(tmp_path):
    log(tmp_path, range(1, 8))
    log(tmp_path, range(5, 10), resumed_step=4, run=2)
    assert logged(tmp_path, "train/loss") == [(step, step + (0.1 if step <= 4 else 0.2)) for step in range(1, 10)]
    assert logged(tmp_path, "eval/accuracy") == [(2, 0.1), (4, 0.1), (6, 0.2), (8, 0.2)], "step 4 is the checkpoint's"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"], "nothing is left beside it"


def test_from_the_beginning_nothing_stays(tmp_path):
    log(tmp_path, range(1, 4))
    log(tmp_path, range(1, 3), resumed_step=0, run=2)
    assert logged(tmp_path, "train/loss") == [(1, 1.2), (2, 2.2)]


@pytest.mark.parametrize("resumed_step", [None, 5])
@pytest.mark.parametrize(
    "rest", ['{"step": 3, "train/lo', "\0\0\0\0", '{"step": 3}x', '{"train/loss": 1.0}\n', "[3]", ""]
)
def test_what_a_kill_left_of_a_line_is_dropped(tmp_path, rest, resumed_step):
    whole = '{"step": 1, "x": NaN}\n{"step": 2, "x": 0.5}\n'
    (tmp_path / "metrics.jsonl").write_text(whole + rest)
    (backend,) = open_backends([], tmp_path, "p", "r", {}, resumed_step=resumed_step)
    backend.log(6, {"x": 1.0})
    backend.close()
    assert (tmp_path / "metrics.jsonl").read_text() == whole + '{"step": 6, "x": 1.0}\n'


def test_a_whole_last_line_without_its_end_stays(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "x": 0.5}\n{"step": 2, "x": 1.5}')
    log(tmp_path, range(3, 4), resumed_step=2)
    assert [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's reader says: tag -> (step, value), in its order, nothing sampled."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={SCALARS: 0})
    events.Reload()
    return {
        tag: [(item.step, round(item.value, 4)) for item in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def server_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The same by the reader of TensorBoard's own server, which has a rule of its own for restarts."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import TENSORS, EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={TENSORS: 0})
    events.Reload()
    return {
        tag: [(item.step, round(float(make_ndarray(item.tensor_proto)), 4)) for item in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def expected(*parts: tuple[range, int]) -> dict[str, list[tuple[int, float]]]:
    """What ``log`` says of each run's steps that are still valid."""
    loss = [(step, round(step + run / 10, 4)) for steps, run in parts for step in steps]
    accuracy = [(step, run / 10) for steps, run in parts for step in steps if step % 2 == 0]
    return {"train/loss": loss, "eval/accuracy": accuracy}


@pytest.mark.parametrize("read", [scalars, server_scalars])
def test_tensorboard_has_one_value_a_step(tmp_path, read):
    log(tmp_path, range(1, 8), ("tensorboard",))
    assert read(tmp_path) == expected((range(1, 8), 1))
    log(tmp_path, range(5, 10), ("tensorboard",), resumed_step=4, run=2)
    assert read(tmp_path) == expected((range(1, 5), 1), (range(5, 10), 2))
    # the second resume stops before it comes to where the first one was: what that one said of later steps is void
    log(tmp_path, range(7, 8), ("tensorboard",), resumed_step=6, run=3)
    assert read(tmp_path) == expected((range(1, 5), 1), (range(5, 7), 2), (range(7, 8), 3))


@pytest.mark.parametrize("read", [scalars, server_scalars])
def test_a_resume_that_dies_at_once_hides_only_what_comes_after_its_checkpoint(tmp_path, read):
    log(tmp_path, range(1, 8), ("tensorboard",))
    log(tmp_path, range(0), ("tensorboard",), resumed_step=4)
    assert read(tmp_path) == expected((range(1, 5), 1))


@pytest.mark.parametrize("read", [scalars, server_scalars])
def test_starts_within_one_second_on_a_clock_that_went_back(tmp_path, read):
    """Files are read in the order of their names, which hold the time; here it is later than now, on another host."""
    log(tmp_path, range(1, 6), ("tensorboard",))
    (first,) = (tmp_path / "tensorboard").iterdir()
    first.rename(first.with_name("events.out.tfevents.4000000000.zzz.99999.0"))
    for run in (2, 3, 4):
        log(tmp_path, range(run, 8), ("tensorboard",), resumed_step=run - 1, run=run)
    assert read(tmp_path) == expected((range(1, 2), 1), (range(2, 3), 2), (range(3, 4), 3), (range(4, 8), 4))


@pytest.mark.parametrize("read", [scalars, server_scalars])
def test_an_event_that_a_kill_cut_short_hides_nothing_else(tmp_path, read):
    log(tmp_path, range(1, 6), ("tensorboard",))
    (first,) = (tmp_path / "tensorboard").iterdir()
    first.write_bytes(first.read_bytes()[:-7])
    log(tmp_path, range(5, 7), ("tensorboard",), resumed_step=4, run=2)
    assert read(tmp_path) == expected((range(1, 5), 1), (range(5, 7), 2))


def test_a_run_of_its_own_in_the_folder_hides_nothing(tmp_path):
    log(tmp_path, range(3, 6), ("tensorboard",))
    log(tmp_path, range(1, 3), ("tensorboard",), run=2)
    assert sorted(scalars(tmp_path)["train/loss"]) == [(1, 1.2), (2, 2.2), (3, 3.1), (4, 4.1), (5, 5.1)]


def test_values_that_a_chart_cannot_show_do_not_end_the_run(tmp_path):
    backends = open_backends(["tensorboard"], tmp_path, "p", "r", {})
    for backend in backends:
        backend.log(1, {"nan": float("nan"), "inf": float("inf"), "large": 1e300, "count": 3})
        backend.close()
    found = scalars(tmp_path)
    assert found["inf"] == found["large"] == [(1, float("inf"))] and found["count"] == [(1, 3.0)]
    assert str(found["nan"]) == "[(1, nan)]"


def test_tensorboard_is_written_without_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path; from rlinf_vlm.tracking import open_backends\n"
        f"[b.log(1, {{'x': 1.0}}) for b in open_backends(['tensorboard'], Path({str(tmp_path)!r}), 'p', 'r', {{}})]\n"
        "assert not {'torch', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert scalars(tmp_path) == {"x": [(1, 1.0)]}, "flushed, though never closed"


class FakeRun:
    """A run of wandb or swanlab that keeps what it is told."""

    def __init__(self) -> None:
        self.metrics: list[tuple[str, str | None]] = []
        self.logged: list[tuple[dict[str, Any], int | None]] = []
        self.is_finished = False

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, data: dict[str, Any], step: int | None = None) -> None:
        self.logged.append((data, step))

    def finish(self) -> None:
        self.is_finished = True


class FakeTracker:
    """Stands for the module wandb or swanlab: one entry an ``init``."""

    def __init__(self) -> None:
        self.arguments: list[dict[str, Any]] = []
        self.runs: list[FakeRun] = []

    def init(self, **arguments: Any) -> FakeRun:
        self.arguments.append(arguments)
        self.runs.append(FakeRun())
        return self.runs[-1]


@pytest.fixture(params=["wandb", "swanlab"])
def tracker(request, monkeypatch) -> tuple[str, FakeTracker]:
    """The name of a backend, and the fake that is imported under it."""
    fake = FakeTracker()
    monkeypatch.setitem(sys.modules, request.param, fake)
    return request.param, fake


def test_a_resumed_run_keeps_its_id(tracker, tmp_path):
    name, fake = tracker
    log(tmp_path, range(1, 4), (name,))
    log(tmp_path, range(3, 5), (name,), resumed_step=2)
    log(tmp_path, range(4, 5), (name,), resumed_step=3)
    ids = [arguments["id"] for arguments in fake.arguments]
    assert len(set(ids)) == 1 and len(ids[0]) == 21 and ids[0].isalnum() and ids[0] == ids[0].lower()
    assert (tmp_path / f"{name}_run_id").read_text() == ids[0] + "\n"
    assert [arguments["resume"] for arguments in fake.arguments][1:] == ["allow", "allow"]
    assert all(arguments["project"] == "project" and arguments["config"] == {"lr": 0.1} for arguments in fake.arguments)
    assert all(run.is_finished for run in fake.runs)


def test_a_run_of_its_own_gets_an_id_of_its_own(tracker, tmp_path):
    name, fake = tracker
    log(tmp_path, range(1, 4), (name,))
    log(tmp_path, range(1, 2), (name,))
    log(tmp_path, range(2, 3), (name,), resumed_step=1)
    first, second, third = [arguments["id"] for arguments in fake.arguments]
    assert first != second and second == third, "a resumed run goes on with the latest"


@pytest.mark.parametrize("text", [None, "", "\n"])
def test_a_resumed_run_that_had_no_id_gets_one(tracker, tmp_path, text):
    """The backend was switched on when the run was resumed."""
    name, fake = tracker
    if text is not None:
        (tmp_path / f"{name}_run_id").write_text(text)
    log(tmp_path, range(3, 5), (name,), resumed_step=2)
    assert (tmp_path / f"{name}_run_id").read_text().strip() == fake.arguments[0]["id"] != ""


def test_wandb_is_never_given_a_step_that_it_could_refuse(tmp_path, monkeypatch):
    """Its own step has to rise; what is logged again after a resume would be thrown away with what goes with it."""
    fake = FakeTracker()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log(tmp_path, range(3, 5), ("wandb",), resumed_step=2)
    (run,) = fake.runs
    assert run.metrics == [("step", None), ("*", "step")]
    assert run.logged == [
        ({"step": 3, "train/loss": 3.1}, None),
        ({"step": 4, "train/loss": 4.1}, None),
        ({"step": 4, "eval/accuracy": 0.1}, None),
    ]


def test_metrics_are_the_same_in_every_backend(tmp_path, monkeypatch):
    fake = FakeTracker()
    monkeypatch.setitem(sys.modules, "swanlab", fake)
    log(tmp_path, range(1, 3), ("tensorboard", "swanlab"))
    lines = [
        ({key: value for key, value in line.items() if key != "step"}, line["step"])
        for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    ]
    assert fake.runs[0].logged == lines
    assert scalars(tmp_path) == expected((range(1, 3), 1))
