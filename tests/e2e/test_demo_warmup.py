"""The warm-up of RL's demo: a real training of two steps, converted, in place; made anew when its config changes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.small_run import read_jsonl
from toolkits.data.demo_folder import is_made_from
from toolkits.data.demo_warmup import CONFIG, WarmUpFailed, warmed_from
from toolkits.data.geometry_demo import GeometrySettings
from toolkits.data.make_demo import make_geometry_rl, make_warm_up

SETTINGS = GeometrySettings(train_rows=16, test_rows=8, side=112, given="text", kinds="circle_radius,square_perimeter")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo without its warm-up."""
    folder = tmp_path_factory.mktemp("warm") / "demo"
    assert make_geometry_rl(folder, SETTINGS) is True
    assert make_geometry_rl(folder, SETTINGS) is False
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The warm-up's config, of two steps."""
    text = CONFIG.read_text()
    for key, value in {"max_steps": 2, "save_interval": 2, "global_batch_size": 8}.items():
        text, found = re.subn(rf"\b{key}: \d+", f"{key}: {value}", text)
        assert found == 1, key
    path = tmp_path / "small.yaml"
    path.write_text(
        text.replace("micro_batch_size: 64", "micro_batch_size: 8").replace("num_workers: 1", "num_workers: 0")
    )
    return path


def test_the_warm_up_trains_and_is_left_alone(out: Path, config: Path) -> None:
    rows = (out / "geometry_rl" / "train.parquet").read_bytes()
    assert make_warm_up(out, config=config) is True
    assert (out / "geometry_rl" / "train.parquet").read_bytes() == rows, "the warm-up made its own rows anew"
    warm = out / "geometry_rl" / "warm"
    assert sorted(path.name for path in warm.iterdir()) == ["demo.json", "log", "model"]
    before = load_file(out / "geometry_rl" / "model" / "model.safetensors")
    after = load_file(warm / "model" / "model.safetensors")
    assert set(before) == set(after)
    assert sum(not (before[name] == after[name]).all() for name in before) > len(before) / 2, "it did not train"
    assert {str(tensor.dtype) for tensor in after.values()} == {"torch.float32"}
    trained = [line["step"] for line in read_jsonl(warm / "log" / "metrics.jsonl") if "train/loss" in line]
    assert trained == [1, 2]
    assert not list(warm.rglob("dcp_checkpoint")), "the checkpoint stays beside the model"
    assert make_warm_up(out, config=config) is False

    changed = config.with_name("changed.yaml")
    changed.write_text(config.read_text().replace("lr: 2e-3", "lr: 1e-3"))
    assert is_made_from(warm, warmed_from(out / "geometry_rl", config))
    assert not is_made_from(warm, warmed_from(out / "geometry_rl", changed))


def test_a_failed_warm_up_leaves_nothing(out: Path, config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text().replace("task_type: sft", "task_type: sftt"))
    before = sorted(path.name for path in (out / "geometry_rl").iterdir())
    with pytest.raises(WarmUpFailed, match="status 2"):
        make_warm_up(out, config=config, force=True)
    assert sorted(path.name for path in (out / "geometry_rl").iterdir()) == before


def test_other_settings_replace_the_rows_and_their_warm_up(tmp_path: Path) -> None:
    assert make_geometry_rl(tmp_path, SETTINGS) is True
    warm = tmp_path / "geometry_rl" / "warm"
    warm.mkdir()
    (warm / "demo.json").write_text("{}")
    other = GeometrySettings(train_rows=12, test_rows=8, side=112, given="text", kinds="circle_radius")
    assert make_geometry_rl(tmp_path, other) is True
    assert json.loads((tmp_path / "geometry_rl" / "demo.json").read_text())["train_rows"] == 12
    assert not warm.exists(), "the warm-up of other rows stays"
