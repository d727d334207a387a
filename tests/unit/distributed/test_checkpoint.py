from __future__ import annotations

import errno
import json

import pytest
import torch

from rlinf_vlm.distributed import checkpoint
from rlinf_vlm.distributed.checkpoint import write_checkpoint
from rlinf_vlm.types import UserError


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"model.a": torch.full((3,), value)}


def test_written_whole(tmp_path):
    folder = tmp_path / "global_step_4"
    write_checkpoint(folder, weights(1.0), {"step": 4})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step_4"]
    found = torch.load(folder / "actor" / "model_state_dict" / "full_weights.pt", weights_only=True)
    assert torch.equal(found["model.a"], torch.ones(3))
    assert json.loads((folder / "state.json").read_text()) == {"step": 4}


def test_an_older_one_of_the_same_name_is_replaced(tmp_path):
    for value in (1.0, 2.0):
        write_checkpoint(tmp_path / "global_step_1", weights(value), {"step": 1})
    found = torch.load(tmp_path / "global_step_1" / "actor" / "model_state_dict" / "full_weights.pt", weights_only=True)
    assert found["model.a"][0] == 2.0


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos 64")])
def test_a_full_disk_leaves_the_last_good_one(tmp_path, monkeypatch, error):
    write_checkpoint(tmp_path / "global_step_1", weights(1.0), {"step": 1})

    def fail(value, file):
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(checkpoint.torch, "save", fail)
    with pytest.raises(UserError, match=r"global_step_2 could not be written .* MiB are free"):
        write_checkpoint(tmp_path / "global_step_2", weights(2.0), {"step": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step_1"]
