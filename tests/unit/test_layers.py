"""Who may import whom: only downwards, and heavy packages only in their files."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rlinf_vlm"

BASE = {"types", "registry", "tracking", "config", "checkpoints"}
MAY_IMPORT = {
    "types": set(),
    "registry": set(),
    "tracking": {"types", "registry"},
    "checkpoints": {"types"},
    "config": {"types", "registry"},
    "algorithms": BASE,
    "evaluation": BASE | {"rewards", "rollout"},
    "rewards": BASE,
    "envs": BASE | {"rewards"},
    "rollout": BASE | {"data", "rewards", "envs"},
    "data": BASE,
    "models": BASE | {"algorithms"},
    "distributed": BASE,
    "cluster": BASE,
    "workers": BASE
    | {"algorithms", "evaluation", "data", "models", "distributed", "rewards", "rollout", "workers", "envs"},
    # What runners see of models and data is what loads no torch: families, folders, kinds, files.
    "runners": BASE | {"evaluation", "cluster", "data", "models", "algorithms", "rewards", "rollout", "envs"},
}
HEAVY_ONLY_IN = {
    "ray": {"cluster/ray_cluster.py", "cluster/ray_nodes.py", "cluster/worker_group.py"},
    "hydra": set(),
    "vllm": {"workers/engine.py", "workers/engine_weights.py", "workers/push_nccl.py"},
    "transformers": {
        "data/processor.py",
        "models/attention.py",
        "models/loading.py",
        "models/naming.py",
        "models/padded.py",
        "models/vision_tables.py",
        "workers/actor.py",
        "workers/model.py",
    },
    "datasets": {"data/hub.py"},
    "peft": {"models/lora.py"},
    "math_verify": {"rewards/expressions.py"},
    "sympy": {"rewards/expressions.py"},
    "latex2sympy2_extended": {"rewards/expressions.py"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names.add(node.module or "")
    return names


def room(module: str) -> str:
    """ "rlinf_vlm.data.loader" -> "data"."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_downwards(file):
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for module in imported(file):
        if module.startswith("rlinf_vlm."):
            target = room(module)
            assert target == own or target in MAY_IMPORT[own], f"{own} may not import {module}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_heavy_packages_stay_in_their_files(file):
    where = file.relative_to(PACKAGE).as_posix()
    for package in {module.split(".")[0] for module in imported(file)} & set(HEAVY_ONLY_IN):
        assert where in HEAVY_ONLY_IN[package], f"{package} is imported by {where}"


def test_every_file_that_may_is_one_that_does():
    for package, files in HEAVY_ONLY_IN.items():
        for name in files:
            assert package in {module.split(".")[0] for module in imported(PACKAGE / name)}, f"{name}: no {package}"


def loaded_by(statement: str, *packages: str) -> list[str]:
    code = f"import sys; {statement}; print(*[p for p in {packages!r} if p in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    "module", ["types", "registry", "tracking", "checkpoints", "config.load", "config.resolve", "models.families"]
)
def test_light_modules_load_nothing_heavy(module):
    assert loaded_by(f"import rlinf_vlm.{module}", "torch", "transformers", "ray", "vllm", "hydra", "datasets") == []


@pytest.mark.parametrize("module", ["rewards", "rewards.pool", "rewards.pool_worker", "rewards.protocol", "algorithms"])
def test_naming_rewards_and_algorithms_loads_none(module):
    assert loaded_by(f"import rlinf_vlm.{module}", "torch", "sympy", "math_verify", "transformers") == []


@pytest.mark.parametrize("module", ["rollout.batching", "rollout.files", "evaluation.answered", "workers.reward"])
def test_what_becomes_of_answers_is_decided_without_torch(module):
    assert loaded_by(f"import rlinf_vlm.{module}", "torch", "transformers", "ray", "vllm", "sympy") == []


def test_grading_loads_no_torch():
    assert loaded_by("import rlinf_vlm.rewards.math", "torch", "transformers", "sympy") == ["sympy"]


def test_checking_a_config_loads_no_torch_and_no_ray():
    statement = "import rlinf_vlm.runners.launch, rlinf_vlm.runners.preflight"
    assert loaded_by(statement, "torch", "transformers", "ray", "datasets") == []


def test_the_fence_sees():
    assert loaded_by("import json", "json") == ["json"]


def test_files_and_functions_stay_readable():
    for file in FILES:
        lines = file.read_text(encoding="utf-8").count("\n")
        assert lines <= 320, f"{file.name} has {lines} lines: split it by noun"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{file.name}: {node.name} has {length} lines"
