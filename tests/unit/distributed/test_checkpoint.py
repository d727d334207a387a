"""The writer on one rank: whole or not at all, a copy of the moment, in the background."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rlinf_vlm.checkpoints import dcp_folder, full_weights_file, open_checkpoint, state_file
from rlinf_vlm.distributed import checkpoint
from rlinf_vlm.distributed.checkpoint import CheckpointWriter, open_weights, read_shapes, read_tensors, read_whole
from rlinf_vlm.types import UserError

STATE = {"step": 4, "samples": 64, "saved_at": 5.0}


@pytest.fixture
def writer(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield CheckpointWriter()
    dist.destroy_process_group()


def full_weights(partial):
    checkpoint.write_weights(full_weights_file(partial), read_whole(dcp_folder(partial), "model."))


def begin(writer, folder, tensors, complete=full_weights):
    writer.begin(folder, folder.with_name(folder.name + ".partial-1"), tensors, STATE, complete)


def test_what_was_written_is_read_back(writer, tmp_path):
    folder = tmp_path / "global_step_4"
    tensors = {"model.a.weight": torch.randn(3, 2), "optimizer.a.weight.exp_avg": torch.randn(3, 2)}
    begin(writer, folder, tensors)
    assert writer.finished(wait=True) > 0
    assert writer.finished(wait=True) is None, "it is told once"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step_4", "meet"]
    found = open_checkpoint(folder)
    assert (found.step, found.samples, len(found.state["random_states"])) == (4, 64, 1)
    assert read_shapes(found.dcp, "model.") == {"a.weight": (3, 2)}
    again = read_tensors(found.dcp, {key: torch.zeros(3, 2) for key in tensors})
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    assert torch.equal(open_weights(full_weights_file(folder))["a.weight"], tensors["model.a.weight"])


def test_it_holds_what_the_tensors_were_when_it_began(writer, tmp_path):
    weight, held = torch.ones(1000), threading.Event()

    def complete(partial):
        assert held.wait(30)
        full_weights(partial)

    begin(writer, tmp_path / "global_step_4", {"model.w": weight}, complete)
    weight.zero_()  # the training goes on
    assert writer.finished(wait=False) is None and not (tmp_path / "global_step_4").exists()
    held.set()
    writer.finished(wait=True)
    assert open_weights(full_weights_file(tmp_path / "global_step_4"))["w"].eq(1).all()


def test_an_older_one_of_the_same_name_is_replaced(writer, tmp_path):
    for value in (1.0, 2.0):
        begin(writer, tmp_path / "global_step_1", {"model.w": torch.full((2,), value)})
        writer.finished(wait=True)
    assert read_whole(dcp_folder(tmp_path / "global_step_1"), "model.")["w"].tolist() == [2.0, 2.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step_1", "meet"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos 64")])
def test_a_full_disk_leaves_the_last_good_one(writer, tmp_path, error):
    begin(writer, tmp_path / "global_step_1", {"model.w": torch.ones(2)})
    writer.finished(wait=True)

    def fail(partial):
        raise error

    begin(writer, tmp_path / "global_step_2", {"model.w": torch.ones(2)}, fail)
    with pytest.raises(UserError, match=r"global_step_2 could not be written .* MiB are free"):
        writer.finished(wait=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step_1", "meet"]
    begin(writer, tmp_path / "global_step_3", {"model.w": torch.ones(2)})
    assert writer.finished(wait=True) is not None, "the next one has its chance"


def test_another_trouble_is_not_told_as_the_disks(writer, tmp_path):
    def fail(partial):
        raise RuntimeError("shapes do not fit")

    begin(writer, tmp_path / "global_step_2", {"model.w": torch.ones(2)}, fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        writer.finished(wait=True)


def test_a_kill_before_the_rename_leaves_nothing_that_counts(writer, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "publish", lambda partial, folder: None)
    begin(writer, tmp_path / "global_step_4", {"model.w": torch.ones(2)})
    writer.finished(wait=True)
    (left,) = tmp_path.glob("global_step_*")
    assert ".partial" in left.name and state_file(left).is_file()
    with pytest.raises(UserError, match="was not finished being written"):
        open_checkpoint(left)


def test_weights_that_are_none(tmp_path):
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "text.pt").write_text("hi")
    with pytest.raises(UserError, match=r"cut.pt cannot be read as weights"):
        open_weights(tmp_path / "cut.pt")
    with pytest.raises(UserError, match=r"text.pt cannot be read as weights \(cut, or not written by torch.save\)"):
        open_weights(tmp_path / "text.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="does not hold weights by name"):
        open_weights(tmp_path / "list.pt")


def test_damaged_files_are_named_without_torch_s_advice(writer, tmp_path):
    """torch would say: load it without its check for foreign code."""
    begin(writer, tmp_path / "global_step_4", {"model.w": torch.ones(2)})
    writer.finished(wait=True)
    folder = dcp_folder(tmp_path / "global_step_4")
    (file,) = folder.glob("*.distcp")
    file.write_bytes(bytes(byte ^ 0xFF for byte in file.read_bytes()))
    with pytest.raises(UserError, match=r"dcp_checkpoint cannot be read \(damaged\); give another one"):
        read_tensors(folder, {"model.w": torch.zeros(2)})


def test_the_mark_lists_every_file(writer, tmp_path):
    begin(writer, tmp_path / "global_step_4", {"model.w": torch.ones(2)})
    writer.finished(wait=True)
    folder = tmp_path / "global_step_4"
    files = json.loads((folder / "COMPLETE").read_text())["files"]
    on_disk = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert {**files, "COMPLETE": on_disk["COMPLETE"]} == on_disk
    assert {Path(name).name for name in files} == {".metadata", "__0_0.distcp", "full_weights.pt", "state.json"}
