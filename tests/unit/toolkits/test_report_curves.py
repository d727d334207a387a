"""The report's numbers: what is read of metrics.jsonl, means and bands, thinning, groups, panels, key figures."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest

from rlinf_vlm.types import UserError
from tests.report_runs import rl_lines, write_metrics
from toolkits.report.choosing import evenly, whole_groups
from toolkits.report.curves import MAX_POINTS, Series, epochs_of, rounded, series_of, thin
from toolkits.report.groups import Group, differences, group_runs
from toolkits.report.panels import make_panels
from toolkits.report.records import Metric, Run, read_run
from toolkits.report.summary import key_figures


def a_run(label: str = "run", config: dict | None = None, **metrics: dict[int, float]) -> Run:
    """A run with metrics as step -> value; names have __ for the slash."""
    return Run(
        folder=Path(label),
        label=label,
        config={} if config is None else config,
        later_configs=(),
        metrics={
            name.replace("__", "/"): Metric(
                steps=np.array(sorted(values)), values=np.array([float(values[step]) for step in sorted(values)])
            )
            for name, values in metrics.items()
        },
        plan="",
        began=None,
        ended=None,
        versions={},
        notes=(),
    )


def seeded(seed: int, **more: object) -> dict:
    return {"actor": {"seed": seed, "optim": {"lr": 1.0}, **more}, "runner": {"logger": {"log_path": f"logs/{seed}"}}}


def test_lines_of_a_step_are_put_together_and_the_later_one_counts(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "train/loss": 3.0}\n{"step": 1, "eval/loss": 9}\n{"step": 2, "train/loss": 2.0}\n'
        '{"step": 2, "train/loss": 1.5}\n{"step": 3, "train/loss": 1.0, "note": "text", "yes": true}\n'
    )
    run = read_run(tmp_path)
    assert run.metrics["train/loss"].steps.tolist() == [1, 2, 3]
    assert run.metrics["train/loss"].values.tolist() == [3.0, 1.5, 1.0]
    assert run.metrics["eval/loss"].values.tolist() == [9.0]
    assert set(run.metrics) == {"train/loss", "eval/loss"}
    assert run.steps == 3


@pytest.mark.parametrize("cut", ['{"step": 3, "train/lo', "nonsense", '{"train/loss": 1}', "[1]", '{"step": "3"}'])
def test_a_line_that_cannot_be_read_is_counted_and_passed_over(tmp_path, cut):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 3.0}\n' + cut)
    run = read_run(tmp_path)
    assert run.metrics["train/loss"].values.tolist() == [3.0]
    assert any("1 line of metrics.jsonl could not be read" in note for note in run.notes)


def test_a_folder_that_is_no_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a run folder"):
        read_run(tmp_path)


def test_not_a_number_is_a_gap_that_is_counted(tmp_path):
    write_metrics(tmp_path, [(1, {"train/loss": 1.0}), (2, {"train/loss": math.nan}), (3, {"train/loss": math.inf})])
    run = read_run(tmp_path)
    series = series_of([run], "train/loss")
    assert series.as_json()["y"] == [1, None, None]
    assert series.gaps == 2
    (panel,), _, _ = make_panels([run], [Group(label="a", runs=(0,))])
    assert "2 values not finite" in panel.note


def test_several_runs_are_their_mean_and_sample_deviation():
    runs = [a_run(train__loss={1: 1.0, 2: 4.0}), a_run(train__loss={1: 3.0, 2: math.nan}), a_run(train__loss={1: 5.0})]
    series = series_of(runs, "train/loss")
    assert series.mean.tolist() == [3.0, 4.0]
    assert series.high.tolist() == [5.0, 4.0]  # the deviation of 1, 3, 5 is 2; of one value 0
    assert series.low.tolist() == [1.0, 4.0]
    assert "3 runs" in series.band


def test_the_band_of_one_run_is_the_interval_on_record():
    run = a_run(eval__accuracy={0: 0.5, 5: 0.7}, eval__accuracy_low={0: 0.4, 5: 0.6}, eval__accuracy_high={0: 0.6})
    series = series_of([run, a_run()], "eval/accuracy")
    assert series.as_json()["lo"] == [0.4, 0.6]
    assert series.as_json()["hi"] == [0.6, None]


def test_thinning_keeps_means_ranges_and_both_ends():
    values = np.arange(10_000, dtype=float)
    values[5_000] = math.nan
    values[123] = 1e6
    thinned = thin(Series(first=np.arange(10_000), last=np.arange(10_000), mean=values))
    assert len(thinned.first) == MAX_POINTS
    assert (thinned.first[0], thinned.last[-1]) == (0, 9_999)
    assert (thinned.first[1:] == thinned.last[:-1] + 1).all()
    assert np.nanmax(thinned.high) == 1e6 and np.nanmin(thinned.low) == 0.0
    assert thinned.mean[-1] == pytest.approx(values[-25:].mean())
    assert np.isfinite(thinned.mean).all()


def test_a_line_that_is_short_enough_is_left_alone():
    series = Series(first=np.arange(MAX_POINTS), last=np.arange(MAX_POINTS), mean=np.ones(MAX_POINTS))
    assert thin(series) is series


@pytest.mark.parametrize(
    ("value", "short"), [(0.123456789, 0.12346), (2.0, 2), (math.nan, None), (-math.inf, None), (1.5e-9, 1.5e-9)]
)
def test_numbers_are_short(value, short):
    assert rounded(value) == short


def test_epochs_begin_at_0_and_end_at_the_last_step():
    run = a_run(train__epoch={step: step / 100 for step in range(1, 1001)})
    steps, epochs = epochs_of([a_run(), run])
    assert (steps[0], epochs[0], steps[-1], epochs[-1]) == (0.0, 0.0, 1000.0, 10.0)
    assert len(steps) <= 101
    assert np.interp(500, steps, epochs) == pytest.approx(5.0)
    assert epochs_of([a_run()]) is None


def test_seeds_make_a_group_and_settings_part_groups():
    runs = [a_run("a", seeded(1)), a_run("b", seeded(2)), a_run("c", seeded(1, optim={"lr": 2.0})), a_run("d")]
    groups = group_runs([*runs, a_run("e")])
    assert [group.runs for group in groups] == [(0, 1), (2,), (3,), (4,)]
    assert [group.label for group in groups[:2]] == ["lr=1.0", "lr=2.0"]
    assert len({group.label for group in groups}) == 4
    assert ("actor.optim.lr", ["1.0", "1.0", "2.0", "-"]) in differences(runs)
    assert ("actor.seed", ["1", "2", "1", "-"]) in differences(runs)


def test_a_setting_that_one_has_not_is_a_difference():
    first, second = group_runs([a_run("a", {"x": {"y": 1}}), a_run("b", {"x": {"y": 1, "z": None}})])
    assert (first.label, second.label) == ("z=-", "z=null")


def test_every_metric_is_somewhere_and_only_once(tmp_path):
    write_metrics(tmp_path, [*rl_lines(20, 1), (1, {"my/own": 1.0}), (2, {"my/own": 2.0}), (1, {"my/fixed": 7.0})])
    run = read_run(tmp_path)
    panels, others, constants = make_panels([run], [Group(label="a", runs=(0,))])
    drawn = [line.metric for panel in [*panels, *others] for line in panel.lines if not panel.stacked]
    assert len(drawn) == len(set(drawn))
    bands = {name for name in run.metrics if name.endswith(("_low", "_high"))}
    layers = {"time/generate", "time/reward", "time/push", "time/train", "time/render", "time/update"}
    assert set(drawn) | set(constants) | bands | layers == set(run.metrics)
    assert "my/own" in drawn and constants["my/fixed"] == 7.0
    assert not any(panel.id == "kl" for panel in panels)  # always 0, so among the constants
    assert constants["train/kl_old"] == 0.0


def test_lines_are_called_by_what_tells_them_apart(tmp_path):
    write_metrics(tmp_path, rl_lines(20, 1))
    panels, _, _ = make_panels([read_run(tmp_path)], [Group(label="a", runs=(0,))])
    labels = {panel.id: [line.label for line in panel.lines] for panel in panels}
    assert labels["accuracy"] == ["evaluation, greedy", "evaluation, sampled", "test, greedy", "test, sampled"]
    assert labels["pass_at_k"] == ["evaluation", "evaluation, cold", "test", "test, cold"]
    assert labels["logprob_gap"] == ["mean", "largest"]
    assert labels["reflection_words"] == ["wait"]


def test_one_measure_of_several_is_named():
    """A panel of which only one measure is left does not look as if it were another."""
    changing = {1: 0.1, 2: 0.5}
    one = {"rollout__reflection_ratio": {1: 0, 2: 0}, "rollout__correct_ratio_in_no_reflection_texts": changing}
    for metrics in (one, {**one, "eval__correct_ratio_in_no_reflection_texts": changing}):
        (panel,), _, _ = make_panels([a_run(**metrics)], [Group(label="a", runs=(0,))])
        assert "answers without reflection that are right" in panel.title + panel.lines[0].label
        assert len(panel.lines) == len(metrics) - 1


def test_parts_of_the_reward_have_a_panel():
    run = a_run(rollout__format={1: 0.1, 2: 0.5}, eval__format={2: 0.4}, rollout__reward_mean={1: 1, 2: 2})
    panels, others, _ = make_panels([run], [Group(label="a", runs=(0,))], {"format", "math"})
    assert [panel.id for panel in panels] == ["reward", "reward_parts"]
    assert [line.label for line in panels[1].lines] == ["training", "evaluation"]
    assert panels[1].title == "Parts of the reward: format"
    assert others == []


def test_an_accuracy_of_0_is_drawn():
    panels, _, _ = make_panels([a_run(eval__accuracy={0: 0.0, 1: 0.0})], [Group(label="a", runs=(0,))])
    assert [panel.id for panel in panels] == ["accuracy"]


def test_layers_add_up_to_the_step():
    run = a_run(
        time__step={1: 10.0, 2: 10.0},
        time__train={1: 6.0, 2: 6.0},
        time__render={1: 1.0, 2: 1.0},
        time__update={1: 4.0, 2: 4.0},
        time__generate={1: 3.0},
        time__eval={2: 99.0},
    )
    panels, _, _ = make_panels([run], [Group(label="a", runs=(0,))])
    (stack,) = [panel for panel in panels if panel.stacked]
    layers = {line.label: line.series[0].mean.tolist() for line in stack.lines}
    assert layers["train, rest"] == [1.0, 1.0]
    assert layers["generate"] == [3.0, 0.0]
    assert layers["rest"] == [1.0, 4.0]
    assert np.sum(list(layers.values()), axis=0).tolist() == [10.0, 10.0]


def test_key_figures_are_exact_and_of_groups_with_deviation():
    accuracy = {0: 0.25, 5: 0.75, 10: 0.5}
    runs = [
        a_run("a", seeded(1), eval__accuracy=accuracy, test__accuracy={0: 0.1, 5: 0.6, 10: 0.7}),
        a_run("b", seeded(2), eval__accuracy={0: 0.25, 5: 0.5, 10: 0.75}),
    ]
    table = key_figures(runs, group_runs(runs))
    cells = [dict(zip(table.heads, row, strict=True)) for row in table.rows]
    assert cells[0]["accuracy, last"] == "0.500"
    assert cells[0]["accuracy, best"] == "0.750 at step 5"
    assert cells[0]["test accuracy where evaluation is best"] == "0.600"
    assert cells[1]["test accuracy, last"] == "-"
    assert cells[2]["accuracy, last"] == "0.625 ± 0.177"
    assert table.strong == (False, False, True)
    assert "reward, first" not in table.heads


def test_a_choice_has_both_ends_and_whole_groups():
    assert evenly(list(range(1, 101)), 5) == [1, 26, 51, 75, 100]
    assert evenly([1, 2], 5) == [1, 2]
    assert evenly([1, 2, 3], 1) == [3]
    assert evenly([1, 2, 3], 0) == []
    groups = [[f"{group}{member}" for member in range(4)] for group in range(10)]
    assert whole_groups(groups, 9) == [*groups[0], *groups[9]]
    assert whole_groups(groups, 3) == groups[9][:3]
    assert whole_groups(groups, 0) == []


def test_ten_thousand_steps_are_read_and_thinned_in_seconds(tmp_path):
    write_metrics(tmp_path, rl_lines(10_000, 1))
    start = time.process_time()
    run = read_run(tmp_path)
    panels, _, _ = make_panels([run], [Group(label="a", runs=(0,))])
    assert time.process_time() - start < 10
    assert run.steps == 10_000
    assert max(len(line.series[0].first) for panel in panels for line in panel.lines) <= MAX_POINTS
