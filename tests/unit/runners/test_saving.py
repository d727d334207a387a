"""Which checkpoints stay, and what killed runs leave."""

from __future__ import annotations

import pytest

from rlinf_vlm.checkpoints import open_checkpoint
from rlinf_vlm.runners.run_folder import history, next_start, numbered, occupied, take_over
from rlinf_vlm.runners.saving import best_step, existing, remove_unfinished, superfluous
from rlinf_vlm.types import UserError
from tests.unit.test_checkpoints import write


def test_the_newest_and_the_best_stay_by_hand(tmp_path):
    for place, step in enumerate([2, 4, 6, 8]):
        write(tmp_path / f"global_step_{step}", saved_at=100.0 + place)
    found = existing(tmp_path)
    assert [item.step for item in found] == [2, 4, 6, 8]
    assert [item.step for item in superfluous(found, keep_last=1, best=4)] == [2, 6]
    assert [item.step for item in superfluous(found, keep_last=3, best=None)] == [2]
    assert superfluous(found, keep_last=9, best=None) == []


def test_the_newest_is_the_one_saved_last_not_the_highest_step(tmp_path):
    write(tmp_path / "global_step_9", saved_at=100.0)  # of a branch that was given up
    write(tmp_path / "global_step_6", saved_at=200.0)
    assert [item.step for item in superfluous(existing(tmp_path), keep_last=1, best=None)] == [9]


def test_the_best_by_hand():
    scores = {2: 0.5, 4: 0.9, 6: 0.9, 8: 0.1, 10: 1.0}
    assert best_step([2, 4, 6, 8], scores, lowest=False) == 6, "the later of equals; step 10 has no checkpoint"
    assert best_step([2, 4, 6, 8], scores, lowest=True) == 8
    assert best_step([3, 5], scores, lowest=False) is None


def test_what_is_half_written_is_removed_and_nothing_else(tmp_path):
    write(tmp_path / "global_step_2", saved_at=1.0)
    (tmp_path / "global_step_4.partial-ab" / "actor").mkdir(parents=True)
    assert [path.name for path in remove_unfinished(tmp_path)] == ["global_step_4.partial-ab"]
    assert [path.name for path in tmp_path.iterdir()] == ["global_step_2"]
    assert open_checkpoint(tmp_path / "global_step_2").step == 2
    assert remove_unfinished(tmp_path / "nowhere") == []


def test_a_broken_folder_is_neither_counted_nor_removed(tmp_path):
    (tmp_path / "global_step_1").mkdir()
    write(tmp_path / "global_step_2", saved_at=1.0)
    assert [item.step for item in existing(tmp_path)] == [2]


def test_the_second_start_of_a_run_has_its_own_files(tmp_path):
    folder, launched = tmp_path / "old", tmp_path / "new"
    for path in (folder, launched):
        path.mkdir()
        (path / "run.log").write_text(path.name)
    (folder / "config.yaml").write_text("")
    with (launched / "run.log").open("a") as tee:
        take_over(launched, folder, next_start(folder))
        tee.write(" and more")
    assert not launched.exists()
    assert (folder / "run.2.log").read_text() == "new and more" and (folder / "run.log").read_text() == "old"
    assert next_start(folder) == 3, "a start that found the run finished leaves a log and no config"
    (folder / "config.3.yaml").write_text("")
    assert next_start(folder) == 4 and numbered("run.log", 3) == "run.3.log" and numbered("run.log", 1) == "run.log"


def test_the_first_start_is_number_one_with_and_without_a_log(tmp_path):
    assert next_start(tmp_path) == 1
    (tmp_path / "run.log").write_text("of the launcher, of this very start")
    assert next_start(tmp_path) == 1


def test_one_run_at_a_time_in_a_folder(tmp_path):
    folder = tmp_path / "run"
    with occupied(folder), pytest.raises(UserError, match="another run is at work in it"), occupied(folder):
        pass
    with occupied(folder):
        assert folder.is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"log_path='.*file/run' cannot be written to"), occupied(tmp_path / "file/run"):
        pass


def test_history_of_a_metric(tmp_path):
    text = '{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0, "b": 5}\n{"step": 3, "a": 3'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert history(tmp_path, "a") == {1: 1.0, 2: 2.0}
    assert history(tmp_path, "b") == {2: 5}
    assert history(tmp_path / "nowhere", "a") == {}
