"""One run of the trainer, started as a user starts it and read from what it writes.

    RunOptions, overrides -> config.yaml -> bash examples/run_vlm_sft.sh -> metrics.jsonl, run.out -> TrainerRun

Rows are read in the order of the file: it is known which rows a step had, and runs can be compared loss by loss.
Everything that ``overrides`` does not name is the schema's default, i.e. the recommended setting.
Does not interpret figures (``results``).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import IO, Any

import yaml

from benchmarks.results import Failure, Outcome, StepFigures, check_appendable, step_figures, summarise
from benchmarks.workload import ModelSize, Order, Workload, check_replaceable, is_complete, read_workload
from rlinf_vlm.models.flops import model_shape
from rlinf_vlm.runners.preflight import count_local_gpus
from rlinf_vlm.types import UserError

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "ray")
PATIENCE_S = 60
"""Seconds that a run has to end in good order once its time is up."""
SMALL_SAMPLES, LARGE_SAMPLES = 16, 96
"""Rows of a rank in one optimizer step; the large one is a multiple of 4, 8, 12, 16, 24 and 32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What all runs of a benchmark have in common.

    small: the small model in fp32 on the CPU; steps, warmup: optimizer steps, and those that are not measured; samples:
    rows of a rank a step; tokens: budget of a micro-batch; workers: loading processes of a rank; timeout: seconds.
    """

    work: Path
    small: bool
    steps: int
    warmup: int
    samples: int
    tokens: int
    rows: int
    workers: int
    timeout: float
    out: Path | None
    markdown: bool

    @property
    def size(self) -> ModelSize:
        """The workload's model."""
        return "small" if self.small else "3b"

    @property
    def learning_rate(self) -> float:
        """Of all runs, constant: the small model, which is trained from nothing, takes larger steps."""
        return 1e-3 if self.small else 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerRun:
    """What one run gave. ``steps`` are all that it made, those of the warm-up included."""

    outcome: Outcome
    steps: tuple[StepFigures, ...] = ()


def add_options(parser: argparse.ArgumentParser, *, steps: int) -> None:
    """The options of every benchmark."""
    add = parser.add_argument
    add("--small", action="store_true", help="a small model in fp32 on the CPU; chosen where there is no GPU")
    add("--steps", type=positive, default=steps, help=f"optimizer steps of a run (default: {steps})")
    add("--warmup", type=positive, default=2, help="first steps, which are not measured (default: 2)")
    add("--samples", type=positive, help=f"rows of a rank a step (default: {LARGE_SAMPLES}, small: {SMALL_SAMPLES})")
    add("--tokens", type=positive, default=8192, help="token budget of a micro-batch (default: 8192)")
    add("--rows", type=positive, help="rows of the workload, read over and over (default: 2304, small: 192)")
    add(
        "--workers",
        type=not_negative,
        help="loading processes of a rank (default: the cores' share less one, at most 8)",
    )
    add("--timeout", type=positive, default=600, help="seconds that one run may take (default: 600)")
    add("--work", type=Path, help="folder of rows and model, kept for the next time (default: benchmarks/.work/MODEL)")
    add("--out", type=Path, help="append each result to this JSONL file as soon as it is there")
    add("--markdown", action="store_true", help="print tables as markdown")


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def not_negative(text: str) -> int:
    """A whole number, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def run_options(options: argparse.Namespace, ranks: int) -> RunOptions:
    """The options of a benchmark whose largest run has ``ranks`` ranks. Raises UserError when they do not fit."""
    small = options.small or available_gpus() == 0
    if options.steps <= options.warmup:
        raise UserError(f"--steps={options.steps} and --warmup={options.warmup} leave no step; raise --steps")
    if not small and ranks > available_gpus():
        raise UserError(f"--gpus={ranks}, but {available_gpus()} GPUs are here; lower it, or add --small for the CPU")
    check_appendable(options.out)
    cores = len(os.sched_getaffinity(0)) // ranks
    return RunOptions(
        work=(options.work or ROOT / "benchmarks" / ".work" / ("small" if small else "3b")).resolve(),
        small=small,
        steps=options.steps,
        warmup=options.warmup,
        samples=options.samples or (SMALL_SAMPLES if small else LARGE_SAMPLES),
        tokens=options.tokens,
        rows=options.rows or (192 if small else 2304),
        workers=max(1, min(8, cores - 1)) if options.workers is None else options.workers,
        timeout=options.timeout,
        out=options.out,
        markdown=options.markdown,
    )


def available_gpus() -> int:
    """GPUs that a run may use."""
    return count_local_gpus(os.environ)


def prepare(options: RunOptions) -> Workload:
    """The workload, made where it is not there yet."""
    order = Order(model=options.size, rows=options.rows, seed=0)
    if not is_complete(options.work, order):
        check_replaceable(options.work)
        # In a process of its own: one that has made the 3B's weights on a GPU keeps memory there until it ends.
        script = str(ROOT / "benchmarks" / "workload.py")
        asked = ["--out", str(options.work), "--model", order.model, "--rows", str(order.rows)]
        status = subprocess.run([sys.executable, script, *asked], stdout=sys.stderr, check=False).returncode
        if status != 0:
            raise UserError(f"--work={options.work}: the workload could not be made there (status {status}, see above)")
    workload = read_workload(options.work)
    mean = sum(row.tokens for row in workload.lengths) / len(workload.lengths)
    say(f"{len(workload.lengths):,} rows of {mean:.0f} tokens on average; model {workload.model}")
    return workload


def run_trainer(
    name: str, overrides: Sequence[str], workload: Workload, options: RunOptions, *, ranks: int = 1
) -> TrainerRun:
    """Trains with ``overrides`` on ``ranks`` GPUs (or CPU slots). A run that fails is an outcome as well."""
    folder = new_run_folder(options, name)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(base_config(workload, options, ranks), sort_keys=False))
    say(f"{name}: {' '.join(overrides) or 'as recommended'}")
    log_path = f"runner.logger.log_path={folder / 'run'}"
    command = ["bash", str(ROOT / "examples" / "run_vlm_sft.sh"), str(config), log_path, *overrides]
    metrics = folder / "run" / "metrics.jsonl"
    with (folder / "run.out").open("w", encoding="utf-8") as out:
        status, first_step_s = watch(command, environment(ranks), out, metrics, options.timeout)
    if status != 0 or first_step_s is None:
        return TrainerRun(outcome=Failure(setting=name, reason=failure_reason(folder / "run.out", status)))
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    shape = model_shape(json.loads((workload.model / "config.json").read_text()))
    try:
        steps = step_figures(lines, workload, shape, options.samples * ranks)
    except ValueError as error:
        return TrainerRun(outcome=Failure(setting=name, reason=f"failed: {error}"))
    outcome = summarise(name, steps, warmup=options.warmup, first_step_s=first_step_s)
    return TrainerRun(outcome=outcome, steps=tuple(steps))


def new_run_folder(options: RunOptions, name: str) -> Path:
    """An empty folder for the run ``name``, beside the workload; an earlier run's is removed."""
    folder = options.work.with_name(f"{options.work.name}-runs") / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def base_config(workload: Workload, options: RunOptions, ranks: int) -> dict[str, Any]:
    """The config of a run, as a YAML file says it."""
    precision = {"mixed_precision": {"param_dtype": "fp32"}} if options.small else {}
    return {
        "cluster": {"cpu_workers_per_node": ranks, "component_placement": {"actor": "all"}},
        "runner": {
            "task_type": "sft",
            "max_steps": options.steps,
            "logger": {"experiment_name": "benchmark", "logger_backends": []},
        },
        "data": {
            "dataset_name": "messages",
            "messages_key": "messages",
            "image_keys": ["image"],
            "train_data_paths": str(workload.rows_file.resolve()),
            "shuffle": False,
            "num_workers": options.workers,
        },
        "actor": {
            "global_batch_size": options.samples * ranks,
            "max_tokens_per_micro_batch": options.tokens,
            "model": {"model_type": "qwen2.5_vl", "model_path": str(workload.model.resolve())},
            "optim": {"lr": options.learning_rate, "lr_scheduler": "constant"},
            "fsdp_config": precision,
        },
    }


def environment(ranks: int) -> dict[str, str]:
    """This process's environment, with ``ranks`` of its GPUs and its own interpreter."""
    environment = {**os.environ, "RLINF_VLM_PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}
    if available_gpus():
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible_gpus()[:ranks])
        environment.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    return environment


def visible_gpus() -> list[str]:
    """The GPUs that a run may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(index) for index in range(available_gpus())]


def watch(
    command: Sequence[str], environment: dict[str, str], out: IO[str], first_sign: Path, timeout: float
) -> tuple[int | None, float | None]:
    """Runs ``command`` to its end or for ``timeout`` seconds, its output to ``out``: (exit status, None where the time
    was up; seconds until the file ``first_sign`` had something in it, None where that did not happen)."""
    start = time.perf_counter()
    first_step_s = None
    # The run has a session of its own: who ends the benchmark would leave it on the GPUs.
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        while process.poll() is None:
            elapsed = time.perf_counter() - start
            if first_step_s is None and first_sign.is_file() and first_sign.stat().st_size:
                first_step_s = elapsed
            if elapsed > timeout:
                return None, first_step_s
            time.sleep(0.05)
        return process.returncode, first_step_s
    finally:
        if process.poll() is None:
            _end(process)
        signal.signal(signal.SIGTERM, previous)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a run and what it started: kindly, then not."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def failure_reason(output: Path, status: int | None) -> str:
    """Why a run failed, in a few words, from what it printed."""
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    if any("out of memory" in line.lower() or "OutOfMemoryError" in line for line in lines):
        return "out of memory"
    if status is None:
        return "took too long (--timeout)"
    errors = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line.strip()]
    return f"failed: {errors[-1].removeprefix('error: ')[:300]}" if errors else f"failed with status {status}"


def versions(packages: Sequence[str]) -> str:
    """The packages with their versions, as far as they are installed."""
    found = []
    for name in packages:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:  # not there, or copied without its metadata
            continue
    return ", ".join(found)


def machine(packages: Sequence[str] = PACKAGES) -> str:
    """Date, versions and hardware: what a table has to say to be read later."""
    hardware = f"{len(os.sched_getaffinity(0))} CPU cores"
    if available_gpus() and shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        hardware = f"{names[0]}, {hardware}"
    return f"{date.today()}, Python {platform.python_version()}, {versions(packages)}; {hardware}"


def say(line: str) -> None:
    """A line about the progress, on standard error: tables alone go to standard output."""
    print(line, file=sys.stderr, flush=True)
