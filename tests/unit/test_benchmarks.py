"""The benchmarks' workload has the lengths it says, their arithmetic is right, and their settings are the schema's."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from benchmarks import sft_scaling, sft_throughput, sft_vs_peers
from benchmarks.launching import RunOptions, base_config, failure_reason
from benchmarks.results import (
    Failure,
    StepFigures,
    Summary,
    Table,
    efficiency,
    figures,
    ratio,
    relative_difference,
    step_figures,
    step_rows,
    summarise,
    team_flops,
)
from benchmarks.settings import all_settings, choose_settings, unpacked_rows
from benchmarks.trl_launching import BY_COST, VARIANTS, choose_variants
from benchmarks.workload import Order, RowLengths, Workload, draw, is_complete, make_row, make_workload, read_workload
from benchmarks.workload_model import SHAPES, released
from examples.train_vlm import compose_config
from rlinf_vlm.config.load import load_config
from rlinf_vlm.models.flops import ModelShape, Work, model_shape, step_flops
from rlinf_vlm.types import UserError

ROOT = Path(__file__).parents[2]
OPTIONS = RunOptions(
    work=Path("work"),
    small=False,
    steps=4,
    warmup=1,
    samples=2,
    tokens=8192,
    rows=3,
    workers=1,
    timeout=60.0,
    out=None,
    markdown=True,
)
ROWS = (
    RowLengths(tokens=11, prompt_tokens=7, answer_tokens=3, image_tokens=4),
    RowLengths(tokens=21, prompt_tokens=15, answer_tokens=5, image_tokens=9),
    RowLengths(tokens=13, prompt_tokens=10, answer_tokens=2, image_tokens=5),
)
WORKLOAD = Workload(rows_file=Path("rows.parquet"), model=Path("model"), lengths=ROWS)
SHAPE = ModelShape(
    language_weights=100,
    language_width=10,
    head_weights=50,
    embed_weights=3,
    vision_weights=20,
    full_width=4,
    window_width=2,
    merger_weights=2.0,
    patches_per_feature=4,
)


@pytest.fixture(scope="module")
def small_workload(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks") / "workload"
    make_workload(folder, Order(model="small", rows=3, seed=1))
    return folder


def test_lengths_are_those_of_the_issue():
    drawn = [draw(0, index) for index in range(3000)]
    assert min(shape.prompt for shape in drawn) >= 60 and max(shape.prompt for shape in drawn) <= 600
    assert min(shape.image for shape in drawn) >= 64 and max(shape.image for shape in drawn) <= 400
    assert min(shape.answer for shape in drawn) == 5 and max(shape.answer for shape in drawn) == 200
    assert sum(shape.prompt + shape.answer for shape in drawn) / len(drawn) == pytest.approx(450, abs=12)
    assert len({shape.columns / shape.rows for shape in drawn}) > 100, "pictures of many sides"


def test_a_row_depends_on_the_seed_and_its_number(small_workload):
    from benchmarks.workload_model import measure_template, text_renderer

    render = text_renderer(small_workload / "model")
    template = measure_template(render)
    row = make_row(1, 2, template)
    assert row == make_row(1, 2, template)
    assert row["image"] != make_row(1, 1, template)["image"] and row["image"] != make_row(2, 2, template)["image"]
    sample = render(row)
    lengths = read_workload(small_workload).lengths[2]
    assert len(sample.input_ids) == lengths.tokens
    assert sample.prompt_length == lengths.prompt_tokens
    assert int((sample.labels >= 0).sum()) == lengths.answer_tokens
    assert sample.images[0].num_features == lengths.image_tokens
    assert int(sample.images[0].tensors["image_grid_thw"].prod()) == lengths.patches


def test_a_finished_workload_is_known_and_others_folders_are_left_alone(small_workload, tmp_path):
    order = Order(model="small", rows=3, seed=1)
    assert is_complete(small_workload, order)
    assert not is_complete(small_workload, replace(order, rows=4))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        make_workload(tmp_path, order)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_large_shape_is_the_released_models():
    class Tokenizer(dict):
        """As far as a config asks one: ids by name, and its size."""

        def get_vocab(self):
            return self

    from toolkits.data.demo_model import SPECIAL_TOKENS, build_config

    tokenizer = Tokenizer({token: index for index, token in enumerate(SPECIAL_TOKENS)})
    shape = model_shape(released(build_config(tokenizer, SHAPES["3b"])))
    work = Work(tokens=1, supervised=0, squared_lengths=0)
    assert team_flops(shape, work) == pytest.approx(6 * 3.086e9, rel=1e-3)
    assert team_flops(shape, replace(work, tokens=0, patches=1)) == pytest.approx(6 * 0.669e9, rel=2e-3)


def test_rows_of_a_step_go_on_from_the_beginning():
    assert step_rows(WORKLOAD, 1, 2) == [ROWS[0], ROWS[1]]
    assert step_rows(WORKLOAD, 2, 2) == [ROWS[2], ROWS[0]]


def test_team_flops_take_every_weight_six_times():
    work = Work(tokens=10, supervised=1, squared_lengths=1, patches=7)
    assert team_flops(SHAPE, work) == 6 * ((100 + 50) * 10 + (3 + 20 + 2 * 4) * 7)


def line(step: int, tokens: int) -> dict[str, float]:
    return {
        "step": step,
        "train/tokens": tokens,
        "train/loss": 2.5,
        "time/step": 0.5,
        "perf/tokens_per_second": tokens / 0.5,
        "perf/mfu": 0.25,
        "perf/data_wait": 0.01,
        "perf/peak_memory_gib": 3.0,
    }


def test_figures_of_a_step_come_from_the_rows_that_it_read():
    lines = [line(1, 32), {"step": 1, "time/save": 1.0}, line(2, 24)]
    first, second = step_figures(lines, WORKLOAD, SHAPE, 2)
    assert (first.step, first.tokens, first.tokens_per_second) == (1, 32, 64.0)
    assert (second.step, second.tokens) == (2, 24)
    # 13 image tokens are 52 patches: 16 and 36 of the two images.
    work = Work(
        tokens=32, supervised=8, squared_lengths=11**2 + 21**2, patches=52, squared_patches=16**2 + 36**2,
        squared_windows=52 * 64,
    )  # fmt: skip
    needed = step_flops(SHAPE, work).total
    assert first.team_mfu == pytest.approx(0.25 * team_flops(SHAPE, work) / needed)
    assert first.matmul == pytest.approx(needed / 0.5 / 0.25)


def test_rows_in_another_order_are_noticed():
    with pytest.raises(ValueError, match="step 1 has 33 tokens, its rows 32"):
        step_figures([line(1, 33)], WORKLOAD, SHAPE, 2)


def step(number: int, tokens: int, seconds: float) -> StepFigures:
    return StepFigures(step=number, tokens=tokens, seconds=seconds, loss=1.0, peak_gib=number, mfu=number / 10)


def test_a_summary_is_the_median_after_the_warm_up():
    steps = [step(1, 100, 100.0), step(2, 100, 1.0), step(3, 300, 1.0), step(4, 120, 2.0)]
    summary = summarise("a", steps, warmup=1, first_step_s=7.0)
    assert (summary.tokens_per_second, summary.slowest, summary.fastest) == (100.0, 60.0, 300.0)
    assert (summary.mfu, summary.peak_gib, summary.first_step_s) == (0.3, 4, 7.0)
    assert summary.data_wait is None
    with pytest.raises(ValueError, match="leave nothing"):
        summarise("a", steps, warmup=4, first_step_s=7.0)


def summary_of(setting: str, rate: float) -> Summary:
    return Summary(setting=setting, tokens_per_second=rate, slowest=rate, fastest=rate, peak_gib=1.0, first_step_s=2.0)


def test_ratios_efficiency_and_differences():
    assert efficiency(360.0, 4, 100.0, 1) == 0.9
    assert efficiency(360.0, 4, 200.0, 2) == 0.9
    assert relative_difference(1.1, 1.0) == pytest.approx(0.1)
    assert relative_difference(0.9, -1.0) == pytest.approx(1.9)
    assert ratio(summary_of("a", 50.0), summary_of("b", 100.0)) == "0.50"
    assert ratio(summary_of("a", 50.0), Failure(setting="b", reason="out of memory")) == ""
    assert sft_scaling.efficiency_cells(4, summary_of("4", 360.0), 1, summary_of("1", 100.0)) == ("90", "0.900")


def test_scaling_goes_in_powers_of_two(monkeypatch):
    assert sft_scaling.rank_counts("1,4", small=False) == [1, 4]
    assert sft_scaling.rank_counts(None, small=True) == [1, 2]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert sft_scaling.rank_counts(None, small=False) == [1, 2, 4]


def test_the_peer_table_compares_with_the_best_that_ran():
    theirs = [summary_of("TRL a", 20.0), Failure(setting="TRL b", reason="out of memory"), summary_of("TRL c", 40.0)]
    table = sft_vs_peers.peer_table(summary_of("rlinf_vlm", 100.0), theirs, OPTIONS)
    assert [row[-1] for row in table.rows] == ["", "5.00", "", "2.50"]
    assert table.rows[2][1] == "out of memory"
    assert table.notes == ("2.50 times TRL's best (TRL c)", "TRL b: out of memory")


def test_a_table_as_markdown():
    table = Table(title="T", columns=("name", "x"), rows=(("a", "1"), ("b", "")), notes=("b: failed",))
    assert table.markdown() == "T\n\n| name | x |\n| --- | ---: |\n| a | 1 |\n| b |  |\n\nb: failed"


def test_a_failure_is_told_in_a_word_and_a_line(tmp_path):
    output = tmp_path / "run.out"
    output.write_text("logs: x\nerror: actor.lr=-1: too small\n")
    assert failure_reason(output, 2) == "failed: actor.lr=-1: too small"
    assert figures(Failure(setting="a", reason=failure_reason(output, 2)))[0] == "failed"
    assert failure_reason(output, None) == "took too long (--timeout)"
    output.write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\nerror: actor rank 0\n")
    assert failure_reason(output, 1) == "out of memory"


def test_every_setting_is_one_that_the_trainer_takes(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(base_config(WORKLOAD, OPTIONS, 1)))
    for name, setting in all_settings(unpacked_rows=2).items():
        config = load_config(compose_config(str(tmp_path), str(path), setting.overrides))
        assert config.data.shuffle is False, name
    defaults = load_config(compose_config(str(tmp_path), str(path), [])).actor
    assert defaults.model.precision == "fp32" and defaults.compute_dtype == "bf16"


def test_settings_are_chosen_by_name():
    settings = all_settings(unpacked_rows=2)
    assert list(choose_settings(settings, "bf16, recommended", small=False)) == ["bf16", "recommended"]
    assert next(iter(choose_settings(settings, None, small=False))) == "recommended"
    with pytest.raises(UserError, match="did you mean 'no-compile'"):
        choose_settings(settings, "no-compil", small=False)
    assert unpacked_rows(ROWS, 12, 60) == 4, "15 tokens on average; 12 / 4 micro-batches"
    assert unpacked_rows(ROWS, 12, 10) == 1


def test_peer_variants_make_up_a_step():
    assert list(choose_variants(None, replace(OPTIONS, samples=96))) == list(VARIANTS)
    assert VARIANTS["b8-liger-by-cost"].sampling == BY_COST
    with pytest.raises(UserError, match="samples=20 is no multiple of the 8 rows of 'b8'"):
        choose_variants("b8", replace(OPTIONS, samples=20))
    with pytest.raises(UserError, match="did you mean 'b8-liger'"):
        choose_variants("b8-lige", replace(OPTIONS, samples=96))


@pytest.mark.parametrize("script", ["workload", "sft_throughput", "sft_scaling", "sft_vs_peers"])
def test_help_says_how_to_call_it(script):
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=True)
    assert done.stdout.startswith(f"usage: {script}.py") and "--rows" in done.stdout


def test_mistakes_are_one_line_before_anything_is_started(capsys, tmp_path):
    for arguments, said in (
        ([sft_throughput.main, "--small", "--steps", "2"], "error: --steps=2 and --warmup=2 leave no step"),
        ([sft_throughput.main, "--small", "--only", "x"], "error: --only=x: 'x' is no setting"),
        ([sft_scaling.main, "--small", "--gpus", "1,x"], "error: --gpus=1,x: not a list of numbers"),
        ([sft_vs_peers.main, "--small", "--only", "x"], "error: --only=x: 'x' is no variant"),
    ):
        main, *rest = arguments
        assert main([*rest, "--work", str(tmp_path / "work")]) == 2
        error = capsys.readouterr().err
        assert error.startswith(said) and error.count("\n") == 1
    assert not (tmp_path / "work").exists()


def test_results_are_kept_as_they_come(tmp_path):
    from benchmarks.results import append, record

    path = tmp_path / "out" / "results.jsonl"
    append(path, record(summary_of("a", 1.0), [step(1, 2, 3.0)], ranks=1))
    append(path, record(Failure(setting="b", reason="out of memory"), ranks=1))
    append(None, {"nowhere": 1})
    first, second = [json.loads(text) for text in path.read_text().splitlines()]
    assert (first["setting"], first["ranks"], first["steps"][0]["tokens"]) == ("a", 1, 2)
    assert (second["reason"], second["steps"]) == ("out of memory", [])
