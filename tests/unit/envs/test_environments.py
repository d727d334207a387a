"""The table of environments: names, dotted paths, what an environment has to have, what loading them loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rlinf_vlm.envs import ENVIRONMENTS, find_builder, make_env
from rlinf_vlm.envs.protocol import EnvSample, is_environment
from rlinf_vlm.types import UserError

SAMPLE = EnvSample(row=0, question="q", answer="12")


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_each_is_built_from_a_row_and_meets_the_protocol(name):
    made = make_env(find_builder(name), SAMPLE, {})
    assert is_environment(made)
    assert made.reset()[0] is None
    observation, done, info = made.step("Answer: \\boxed{12}")
    assert (observation, done) == (None, True) and isinstance(info, dict)
    made.close()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_each_refuses_options_that_it_does_not_take(name):
    with pytest.raises(UserError, match="env.options"):
        make_env(find_builder(name), SAMPLE, {"no_such_option": 1})


def build_without_close(*, sample, args):
    return object()


def test_dotted_paths_and_mistakes():
    assert find_builder("rlinf_vlm.envs.geo3k_tool:build_env") is find_builder("geo3k_tool")
    with pytest.raises(UserError, match="did you mean 'geo3k_tool'"):
        find_builder("geo3k_tol")
    with pytest.raises(UserError, match="is a tuple; name a function"):
        find_builder("rlinf_vlm.envs.geo3k_tool:TOOLS")
    with pytest.raises(TypeError, match="a object without reset, step"):
        make_env(build_without_close, SAMPLE, {})


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("def build_env(:\n", "SyntaxError: invalid syntax (broken_environment.py, line 1)"),
        ("from os import no_such_thing\n", "ImportError: cannot import name 'no_such_thing'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_in_one_line(tmp_path, monkeypatch, source, why):
    (tmp_path / "broken_environment.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as told:
        find_builder("broken_environment:build_env")
    assert str(told.value).startswith("env.name: 'broken_environment:build_env': module 'broken_environment' cannot be")
    assert why in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("module", ["envs", "envs.crop_zoom", "envs.tool_calls", "envs.single_turn"])
def test_no_environment_loads_torch_and_only_the_scoring_one_algebra(module):
    code = f"import sys, rlinf_vlm.{module}; print([m for m in ('torch', 'transformers', 'sympy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
