"""Whole runs through the launcher: real Ray, real processes, real files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.small_run import choice_rows, read_jsonl, write_parquet

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "tests" / "e2e" / "rlinf_guide.yaml"


def guide(small_run: Path, folder: Path) -> Path:
    """RLinf's guide's YAML with its three paths edited."""
    text = GUIDE.read_text(encoding="utf-8")
    text = text.replace("/path/to/Robo2VLM-1/train_data", f"{small_run}/train")
    text = text.replace("/path/to/Robo2VLM-1/test_data", f"{small_run}/test")
    path = folder / "guide.yaml"
    path.write_text(text.replace("/path/to/Qwen2.5-VL-3B-Instruct", f"{small_run}/model"), encoding="utf-8")
    return path


SMALL = ["actor.global_batch_size=16", "data.num_workers=0", "actor.optim.lr=1e-3", "actor.optim.lr_warmup_steps=0"]
FP32 = "actor.fsdp_config.mixed_precision.param_dtype=fp32"


def start(config: Path | str, log: Path, *overrides: str) -> subprocess.Popen[str]:
    """The launcher, in a process group of its own."""
    environment = {**os.environ, "RLINF_VLM_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    launcher = ROOT / "examples" / "run_vlm_sft.sh"
    command = ["bash", str(launcher), str(config), *overrides, "--log-path", str(log)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def run(config: Path | str, log: Path, *overrides: str) -> tuple[int, str]:
    """Exit status and output."""
    process = start(config, log, *overrides)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def steps(log: Path) -> list[dict[str, Any]]:
    return [line for line in read_jsonl(log / "metrics.jsonl") if "train/loss" in line]


def evaluations(log: Path) -> list[dict[str, Any]]:
    return [line for line in read_jsonl(log / "metrics.jsonl") if "eval/samples" in line]


@pytest.fixture(scope="module")
def one_rank(small_run, tmp_path_factory) -> Path:
    """Three steps of the guide's config on one rank."""
    folder = tmp_path_factory.mktemp("one")
    status, output = run(guide(small_run, folder), folder / "log", "runner.max_steps=3", FP32, *SMALL)
    assert status == 0, output
    return folder / "log"


def test_the_run_folder(one_rank, small_run):
    assert {"config.yaml", "plan.txt", "metrics.jsonl", "tensorboard", "eval"} <= {
        path.name for path in one_rank.iterdir()
    }
    assert list((one_rank / "tensorboard").iterdir())
    assert "Placement" in (one_rank / "plan.txt").read_text()
    found = steps(one_rank)
    assert [line["step"] for line in found] == [1, 2, 3]
    wanted = {"train/loss", "train/grad_norm", "train/lr", "train/tokens", "perf/tokens_per_second", "perf/mfu"}
    wanted |= {"perf/peak_memory_gib", "perf/data_wait", "time/step", "data/dropped_rows"}
    assert wanted <= set(found[0])
    assert found[-1]["train/loss"] < found[0]["train/loss"]
    assert 0 < found[0]["perf/mfu"] < 1 and 0 <= found[0]["perf/data_wait"] <= 1


def test_every_test_row_is_evaluated_once(one_rank):
    (evaluation,) = evaluations(one_rank)
    assert evaluation["eval/samples"] == 101 and evaluation["eval/dropped_rows"] == 0
    records = read_jsonl(one_rank / "eval" / "step_3.jsonl")
    assert [record["row"] for record in records] == list(range(101))
    rows = choice_rows(101, seed=1)
    for record, row in zip(records, rows, strict=True):
        assert row["question"] in record["question"]
        assert record["answer"] == record["choices"][row["correct_answer"]]
        assert record["correct"] == (record["prediction"] == record["answer"])
        assert record["choice_correct"] == (record["choice_prediction"] == record["answer"])
    assert evaluation["eval/accuracy"] == sum(record["correct"] for record in records) / 101
    assert evaluation["eval/choice_accuracy"] == sum(record["choice_correct"] for record in records) / 101


def test_the_checkpoint_holds_hugging_face_weights(one_rank, small_run):
    from transformers import AutoModelForImageTextToText

    folder = one_rank / "qwen2_5_vl_sft_demo" / "checkpoints" / "global_step_3"
    assert json.loads((folder / "actor" / "state.json").read_text())["step"] == 3
    weights = torch.load(folder / "actor" / "model_state_dict" / "full_weights.pt", weights_only=True)
    model = AutoModelForImageTextToText.from_pretrained(small_run / "model", dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert unexpected == [] and missing == ["lm_head.weight"], "the head is tied to the embedding"
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights.items())


def test_two_ranks_give_the_same_numbers(one_rank, small_run, tmp_path):
    status, output = run(
        guide(small_run, tmp_path),
        tmp_path / "log",
        "runner.max_steps=3",
        "cluster.cpu_workers_per_node=2",
        "actor.micro_batch_size=2",
        "actor.fsdp_config.sharding_strategy=full_shard",
        FP32,
        *SMALL,
    )
    assert status == 0, output
    for two, one in zip(steps(tmp_path / "log"), steps(one_rank), strict=True):
        assert two["train/loss"] == pytest.approx(one["train/loss"], rel=1e-4)
        assert two["train/grad_norm"] == pytest.approx(one["train/grad_norm"], rel=1e-3)
        assert two["train/supervised_tokens"] == one["train/supervised_tokens"]
    (evaluation,), (expected,) = evaluations(tmp_path / "log"), evaluations(one_rank)
    assert evaluation["eval/samples"] == 101
    assert evaluation["eval/loss"] == pytest.approx(expected["eval/loss"], rel=1e-4)


def test_evaluation_only(small_run, tmp_path):
    overrides = ["data.train_data_paths=null", "actor.global_batch_size=3", "runner.logger.logger_backends=[]"]
    status, output = run(guide(small_run, tmp_path), tmp_path / "log", *overrides, "data.num_workers=0")
    assert status == 0, output
    (evaluation,) = evaluations(tmp_path / "log")
    assert (evaluation["step"], evaluation["eval/samples"]) == (0, 101)
    assert not (tmp_path / "log" / "qwen2_5_vl_sft_demo").exists(), "nothing was trained, nothing is saved"


def test_bad_rows_stop_the_run_or_are_counted(small_run, tmp_path):
    rows = choice_rows(32)
    rows[5]["image"] = {"bytes": rows[5]["image"]["bytes"][:40], "path": None}
    rows[20]["correct_answer"] = 9
    write_parquet(rows, tmp_path / "bad" / "rows.parquet")
    changes = [f"data.train_data_paths={tmp_path}/bad", "runner.max_epochs=1", "runner.val_check_interval=-1", *SMALL]
    config = guide(small_run, tmp_path)
    status, output = run(config, tmp_path / "stop", *changes, "data.shuffle=false")
    assert status == 2
    assert "rows.parquet row 5: " in output and "data.on_bad_row=drop" in output and "Traceback" not in output
    status, output = run(config, tmp_path / "drop", *changes, "data.on_bad_row=drop")
    assert status == 0, output
    found = steps(tmp_path / "drop")
    assert sum(line["data/dropped_rows"] for line in found) == 2
    assert sum(line["train/samples"] for line in found) == 30


def test_a_step_without_a_usable_row_ends_the_run(small_run, tmp_path):
    """In a folder whose name Hydra's grammar could not read."""
    changes = ["data.max_length=2", "data.on_bad_row=drop", "runner.max_steps=1", *SMALL]
    status, output = run(guide(small_run, tmp_path), tmp_path / "lög=(1)", *changes)
    assert status == 2, output
    assert "step 1: 16 of 16 rows cannot be used" in output and "data.max_length=2" in output
    assert not (tmp_path / "lög=(1)" / "qwen2_5_vl_sft_demo").exists()


def test_bad_test_rows_stop_the_evaluation_or_are_counted(small_run, tmp_path):
    rows = choice_rows(9, seed=4)
    rows[6]["correct_answer"] = 9
    write_parquet(rows, tmp_path / "bad" / "rows.parquet")
    changes = [f"data.eval_data_paths={tmp_path}/bad", "data.train_data_paths=null", "data.num_workers=0"]
    config = guide(small_run, tmp_path)
    status, output = run(config, tmp_path / "stop", *changes)
    assert status == 2 and "rows.parquet row 6: " in output and "Traceback" not in output
    status, output = run(config, tmp_path / "drop", *changes, "data.on_bad_row=drop")
    assert status == 0, output
    (evaluation,) = evaluations(tmp_path / "drop")
    assert (evaluation["eval/samples"], evaluation["eval/dropped_rows"]) == (8, 1)
    records = read_jsonl(tmp_path / "drop" / "eval" / "step_0.jsonl")
    assert len(records) == 9 and "rows.parquet row 6" in records[6]["error"]


def test_the_launcher_keeps_the_status_of_a_mistake(small_run, tmp_path):
    status, output = run(guide(small_run, tmp_path), tmp_path / "log", "actor.micro_batch_sze=2")
    assert status == 2
    assert "did you mean actor.micro_batch_size?" in output and "Traceback" not in output


@pytest.fixture
def long_run(small_run, tmp_path) -> Iterator[tuple[subprocess.Popen[str], set[int]]]:
    """A run that has begun to train, and its processes."""
    config = guide(small_run, tmp_path)
    process = start(
        config, tmp_path / "log", "runner.max_steps=100000", "data.num_workers=2", "actor.global_batch_size=16"
    )
    metrics = tmp_path / "log" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no step within two minutes"
        time.sleep(0.2)
    yield process, descendants(process.pid)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.stdout.close()


def descendants(root: int) -> set[int]:
    """All processes below ``root``, itself excluded."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, queue = set(), [root]
    while queue:
        for child in children.get(queue.pop(), []):
            found.add(child)
            queue.append(child)
    return found


def alive(pids: set[int]) -> set[int]:
    """Those of ``pids`` that run (zombies do not)."""
    return {
        pid
        for pid in pids
        if (stat := Path(f"/proc/{pid}/stat")).exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
    }


def gone(pids: set[int], seconds: float = 20) -> set[int]:
    """What is left of ``pids`` after at most ``seconds``."""
    deadline = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.2)
    return alive(pids)


def test_ctrl_c_ends_everything(long_run):
    process, pids = long_run
    assert len(pids) > 5  # driver, Ray, rank, loading processes
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and "stopped by Ctrl-C" in output and "Traceback" not in output
    assert gone(pids) == set()


def test_sigterm_ends_everything(long_run):
    process, pids = long_run
    process.send_signal(signal.SIGTERM)  # to the launcher, as a cluster's scheduler does
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 143 and "stopped by SIGTERM after step" in output
    assert gone(pids) == set()


def test_a_killed_rank_ends_the_run(long_run):
    process, pids = long_run
    # the rank and the loading processes that it forked later share the name
    ranks = [pid for pid in pids if b"RankHost" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(min(ranks), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "actor rank 0 lost its process" in output
    assert gone(pids) == set()
