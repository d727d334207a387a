"""Finding checkpoints, and refusing those that are not whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlinf_vlm.checkpoints import (
    MARK,
    dcp_folder,
    find_checkpoint,
    list_files,
    newest_checkpoint,
    open_checkpoint,
    state_file,
)
from rlinf_vlm.types import UserError


def write(folder: Path, saved_at: float, **state) -> Path:
    """A finished checkpoint folder, as far as its files go."""
    dcp_folder(folder).mkdir(parents=True)
    (dcp_folder(folder) / "__0_0.distcp").write_bytes(b"0123456789")
    step = int(folder.name.rpartition("_")[2])
    state_file(folder).write_text(json.dumps({"step": step, "samples": step * 8, "saved_at": saved_at, **state}))
    (folder / MARK).write_text(json.dumps({"files": list_files(folder)}))
    return folder


@pytest.fixture
def logs(tmp_path):
    """Two runs of one experiment, one of another; the older run has gone further."""
    write(tmp_path / "run1" / "exp" / "checkpoints" / "global_step_90", 100.0)
    write(tmp_path / "run2" / "exp" / "checkpoints" / "global_step_5", 200.0)
    write(tmp_path / "run2" / "exp" / "checkpoints" / "global_step_10", 300.0)
    write(tmp_path / "run3" / "other" / "checkpoints" / "global_step_7", 900.0)
    return tmp_path


def test_opened(logs):
    found = open_checkpoint(logs / "run2" / "exp" / "checkpoints" / "global_step_10")
    assert (found.step, found.samples, found.run_folder) == (10, 80, logs / "run2")


@pytest.mark.parametrize(
    "path",
    [
        "run2",
        "run2/exp",
        "run2/exp/checkpoints",
        "run2/exp/checkpoints/global_step_10",
        "run2/exp/checkpoints/global_step_10/",
        "run2/exp/checkpoints/global_step_10/actor",
        "run2/exp/checkpoints/global_step_10/actor/dcp_checkpoint",
    ],
)
def test_every_way_to_name_one(logs, path):
    assert find_checkpoint(Path(f"{logs}/{path}"), "runner.resume_dir").step == 10


@pytest.mark.parametrize("place", ["", "actor"])
def test_the_place_that_one_stands_in(logs, monkeypatch, place):
    monkeypatch.chdir(logs / "run2" / "exp" / "checkpoints" / "global_step_10" / place)
    assert find_checkpoint(Path("."), "runner.resume_dir").step == 10


def test_the_newest_is_the_one_saved_last(logs):
    assert newest_checkpoint(logs, "exp")[0].step == 10
    assert newest_checkpoint(logs / "run1", "exp")[0].step == 90
    assert newest_checkpoint(logs)[0].step == 7
    assert newest_checkpoint(logs, "none") == (None, [])


def test_unfinished_and_cut_ones_are_passed_over_and_told(logs):
    folder = logs / "run2" / "exp" / "checkpoints"
    (dcp_folder(folder / "global_step_10") / "__0_0.distcp").write_bytes(b"012")
    (folder / "global_step_15.partial-1").mkdir()
    found, passed_over = newest_checkpoint(logs, "exp")
    assert found.step == 5
    assert any("__0_0.distcp has 3 of 10 bytes" in line for line in passed_over)
    assert any("global_step_15.partial-1 was not finished" in line for line in passed_over)


def test_what_is_named_is_not_passed_over(logs):
    folder = logs / "run2" / "exp" / "checkpoints" / "global_step_10"
    (dcp_folder(folder) / "__0_0.distcp").unlink()
    with pytest.raises(UserError, match=r"__0_0.distcp is missing"):
        find_checkpoint(folder, "runner.resume_dir")
    (folder / MARK).unlink()
    with pytest.raises(UserError, match="no COMPLETE file"):
        find_checkpoint(folder, "runner.resume_dir")


def test_a_state_that_does_not_parse(logs):
    folder = logs / "run2" / "exp" / "checkpoints" / "global_step_10"
    state_file(folder).write_text("{")
    with pytest.raises(UserError, match="state.json cannot be read"):
        open_checkpoint(folder)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_checkpoint(tmp_path / "nowhere", "runner.resume_dir")
    with pytest.raises(UserError, match="no finished checkpoint"):
        find_checkpoint(tmp_path, "runner.resume_dir")
