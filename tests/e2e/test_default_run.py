"""The newcomer's command, shortened: the demo is made if it is missing, and a model from scratch learns to look."""

from __future__ import annotations

from tests.e2e.test_sft import evaluations, run

QUESTION_ALONE = 0.670
"""Accuracy of the best answer to each question's text, without the image."""


def test_the_default_run_learns_to_look(tmp_path):
    changes = ["runner.max_steps=150", "runner.val_check_interval=150", "runner.save_interval=-1"]
    status, output = run("custom_sft_vlm", tmp_path / "log", *changes)
    assert status == 0, output
    (evaluation,) = evaluations(tmp_path / "log")
    assert evaluation["eval/samples"] == 9673
    assert evaluation["eval/accuracy"] > QUESTION_ALONE + 0.03
