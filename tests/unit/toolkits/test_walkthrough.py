"""The walk-through of one step: its arithmetic, its replay of a run, and that the page says what they say."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlinf_vlm.algorithms.advantages import AdvantageInput, reinpp
from rlinf_vlm.algorithms.kl import k1, k2, k3
from rlinf_vlm.algorithms.policy_loss import ClipSettings, PolicyTokens, clipped
from rlinf_vlm.config.load import field_paths, load_config
from rlinf_vlm.config.rl import AlgorithmConfig
from rlinf_vlm.rollout.files import FOLDER, read_rollouts, write_rollouts
from rlinf_vlm.types import UserError
from tests.rl_run import begin, rl_tree, sampled, to_bytes
from tests.small_run import run_ranks, write_small_run
from toolkits.walkthrough.by_hand import by_hand, checks, clipped_loss, kl, returns_to_go, whiten
from toolkits.walkthrough.one_step import EXAMPLE, main
from toolkits.walkthrough.record import read_record, write_record
from toolkits.walkthrough.replay import check_algorithm, choose
from toolkits.walkthrough.tables import fill, number, shown, tables

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "one_step.md"

# --- the page --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def example() -> dict[str, str]:
    record = read_record(EXAMPLE)
    return tables(record, by_hand(record))


def test_the_page_has_every_table_as_the_script_prints_it(page, example, capsys):
    assert set(re.findall(r"<!-- begin ([\w-]+) -->", page)) == set(example)
    assert fill(page, example) == page, "run: python toolkits/walkthrough/one_step.py --into docs/one_step.md"
    assert main([]) == 0
    printed = capsys.readouterr().out
    for name, text in example.items():
        assert f"## {name}\n\n{text}\n" in printed


def test_a_changed_number_is_seen(page, example):
    loss = re.search(r"\*\*(-?\d+\.\d{6})\*\*", page)
    assert loss is not None
    wrong = page.replace(loss[0], "**0.123456**")
    assert wrong != page and fill(wrong, example) == page


def test_what_the_text_quotes_of_the_tables_is_in_them(page, example):
    """Numbers of four or more decimals outside of tables and code."""
    text = re.sub(r"<!-- begin ([\w-]+) -->\n.*?<!-- end \1 -->", "", page, flags=re.DOTALL)
    text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    quoted = set(re.findall(r"\d+\.\d{4,}", text)) - {"2501.03262", "0.0001"}
    assert quoted <= {found for part in example.values() for found in re.findall(r"\d+\.\d{4,}", part)}


def test_every_function_that_the_page_names_is_there(page):
    links = re.findall(r"\[`([^`]+): ([\w.]+)`\]\(\.\./([^)]+)\)", page)
    assert len(links) >= 20
    for shown_path, name, path in links:
        assert path == f"rlinf_vlm/{shown_path}"
        found: Any = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        for part in name.split("."):
            found = getattr(found, part)
        assert callable(found), name
    assert len(re.findall(r"\]\(", page)) == len(links), "a link of another form is not looked at"
    for name in re.findall(r"`(_\w+)`", page):
        assert hasattr(importlib.import_module("rlinf_vlm.workers.rl_actor").RLActor, name)


def test_every_key_that_the_page_names_is_there(page):
    known = set(field_paths())
    named = {
        key for key in re.findall(r"\b(?:actor|algorithm|runner|data|rollout)\.[a-z_.]+\w", page) if "/" not in key
    }
    keys = {key for key in named if not key.endswith((".py", ".json", ".jsonl"))}
    assert len(keys) >= 20 and keys <= known, keys - known


def test_every_file_that_the_page_names_is_there(page):
    named = set(re.findall(r"(?:examples|toolkits|docs)/[\w/]+\.(?:sh|py|yaml|md)", page))
    assert len(named) >= 4
    for name in named:
        assert (ROOT / name).is_file(), name


# --- the arithmetic --------------------------------------------------------------------------------------------------


def test_the_arithmetic_of_a_step_by_pencil():
    # Reward 1, penalties 0.5 and 0.25: returns 1.75 - what is not: 1 + 0.5 + 0.25, then 1 + 0.25.
    assert returns_to_go(1.0, (0.5, 0.25)) == (1.75, 1.25)
    mean, deviation, values = whiten([0.25, 0.75, -1.0])
    assert (mean, round(deviation, 6)) == (0.0, 0.901388)
    assert [round(value, 4) for value in values] == [0.2773, 0.8320, -1.1094]
    assert whiten([0.9] * 8) == (pytest.approx(0.9), 0.0, [0.0] * 8)
    assert clipped_loss(1.3, 2.0, 0.2, 0.2) == (-2.4, True)
    assert clipped_loss(1.3, -2.0, 0.2, 0.2) == (2.6, False)
    assert clipped_loss(0.5, -2.0, 0.2, 0.2) == (1.6, True)
    assert clipped_loss(0.5, 2.0, 0.2, 0.2) == (-1.0, False)


def test_the_trainers_functions_agree_also_where_the_bound_holds():
    generator = torch.Generator().manual_seed(0)
    new, old, advantages = (torch.randn(200, generator=generator, dtype=torch.float64) for _ in range(3))
    found = clipped(
        PolicyTokens(logprobs=new, old_logprobs=old, advantages=advantages, lengths=torch.tensor([200])),
        ClipSettings(low=0.2, high=0.28),
    )
    ours = [
        clipped_loss(float(torch.exp(n - o)), float(a), 0.2, 0.28) for n, o, a in zip(new, old, advantages, strict=True)
    ]
    torch.testing.assert_close(found.token_losses, torch.tensor([loss for loss, _ in ours], dtype=torch.float64))
    bounded = sum(flag for _, flag in ours)
    assert bounded == int(found.sums["clipped_low"] + found.sums["clipped_high"]) > 50
    for name, function in {"k1": k1, "k2": k2, "k3": k3}.items():
        torch.testing.assert_close(
            function(new, old), torch.tensor([kl(name, float(d)) for d in new - old], dtype=torch.float64)
        )


def test_whitening_is_global_with_zero_mean_and_unit_deviation():
    """Over all tokens of all answers of all ranks; not of a rank's, and without the mean added again."""
    generator = torch.Generator().manual_seed(3)
    rewards = (torch.rand(24, generator=generator) < 0.3).double()
    lengths = torch.randint(1, 9, (24,), generator=generator)
    penalties = torch.randn(int(lengths.sum()), generator=generator, dtype=torch.float64) * 0.01
    step = AdvantageInput(rewards=rewards, groups=torch.arange(24), lengths=lengths, token_rewards=penalties)
    found = reinpp(step).double()
    assert abs(float(found.mean())) < 1e-6
    assert float(found.std(unbiased=True)) == pytest.approx(1.0, abs=1e-5)
    returns = [
        value
        for reward, part in zip(rewards.tolist(), penalties.split(lengths.tolist()), strict=True)
        for value in returns_to_go(reward, part.tolist())
    ]
    torch.testing.assert_close(found, torch.tensor(whiten(returns)[2], dtype=torch.float64), atol=1e-6, rtol=1e-6)
    half = int(lengths[:12].sum())
    of_one_rank = torch.tensor(whiten(returns[:half])[2], dtype=torch.float64)
    assert float((found[:half] - of_one_rank).abs().max()) > 1e-2, "a rank's own statistics would pass too"


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.9, -0.1])
def test_equal_rewards_teach_exactly_nothing_until_there_is_a_penalty(reward):
    lengths = torch.tensor([3, 1, 7, 2])
    rewards = torch.full((4,), reward, dtype=torch.float64)
    none = torch.zeros(13, dtype=torch.float64)
    step = AdvantageInput(rewards=rewards, groups=torch.arange(4), lengths=lengths, token_rewards=none)
    assert reinpp(step).tolist() == [0.0] * 13
    assert reinpp(replace(step, token_rewards=None)).tolist() == [0.0] * 13
    small = torch.linspace(-1e-3, 1e-3, 13, dtype=torch.float64)
    found = reinpp(replace(step, token_rewards=small))
    assert float(found.std(unbiased=True)) == pytest.approx(1.0, abs=1e-2)


# --- a run, replayed -------------------------------------------------------------------------------------------------

REINPP: dict[str, Any] = {
    "algorithm": {
        "adv_type": "reinpp",
        "group_size": 1,
        "n_minibatches": 2,
        "clip_ratio_low": 0.2,
        "clip_ratio_high": 0.2,
        "kl_beta": 0.05,
        "kl_penalty_type": "k1",
        "kl_in": "reward",
        "sampling_params": {"temperature": 0.7, "max_new_tokens": 12},
    },
    "actor__optim": {"lr": 2e-3, "clip_grad": 0.5, "weight_decay": 0.1, "lr_scheduler": "constant"},
}


def answered(actor: Any, config: Any) -> bytes:
    """Answers to eight rows."""
    begin(actor, config)
    folder = Path(config.actor.model.model_path).parent
    return to_bytes(sampled(actor, folder, rows=8, group_size=1, empty=False))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run that recorded its first step."""
    folder = write_small_run(tmp_path_factory.mktemp("run"), train_rows=12, test_rows=4)
    tree = rl_tree(folder, **REINPP)
    config = load_config(tree)
    content = run_ranks(config, 1, answered)[0]
    scored = torch.load(io.BytesIO(content), weights_only=False)
    write_rollouts(folder / FOLDER, 1, scored)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    return folder


def without_path() -> dict[str, str]:
    """The environment, in which the script has to find the packages by itself."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_a_runs_step_is_what_the_formulas_say(run, tmp_path):
    """As a script: it joins a process group, which is not for the process of the tests."""
    file, script = tmp_path / "step.json", ROOT / "toolkits" / "walkthrough" / "one_step.py"
    command = [sys.executable, str(script), str(run), "--answers", "6", "--updates", "3", "--save", str(file)]
    done = subprocess.run(command, cwd=tmp_path, env=without_path(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    record = read_record(file)
    assert len(record.answers) == 6 and [update.answers for update in record.updates] == [2, 2, 2]
    assert sum(len(answer.pieces) for answer in record.answers) == record.metrics["train/answer_tokens"]
    assert {answer.reward >= 1 for answer in record.answers} == {True, False}
    hand = by_hand(record)
    found = checks(record, hand)
    assert len(found) > 40 and all(check.agrees for check in found)
    # The second and third update are of weights that have moved, and some tokens are beyond the bound.
    assert any(token.bounded for update in hand.updates[1:] for token in update.tokens)
    assert not any(token.bounded for token in hand.updates[0].tokens)
    assert [update.updates_before for update in record.updates] == [0, 1, 2]
    assert any(update.clip < 1 for update in hand.updates)
    assert "NO" not in tables(record, hand)["checks"] and "## update-3" in done.stdout
    write_record(tmp_path / "again.json", record)
    assert read_record(tmp_path / "again.json") == record


@pytest.mark.parametrize("updates", [1, 2])
def test_without_divergence_and_correction_and_with_less_for_long_answers(run, tmp_path, updates):
    """No reference; with one update, no pass before it either."""
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    settings["algorithm"] |= {"kl_beta": 0.0, "rollout_correction": {"enabled": False}}
    settings["algorithm"]["overlong"] |= {"buffer": 12, "factor": 0.3}
    settings["actor"]["optim"]["clip_grad"] = None
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    shutil.copytree(run / FOLDER, tmp_path / FOLDER)
    file, script = tmp_path / "step.json", ROOT / "toolkits" / "walkthrough" / "one_step.py"
    command = [sys.executable, str(script), str(tmp_path), "--updates", str(updates), "--save", str(file)]
    done = subprocess.run(command, cwd=tmp_path, env=without_path(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    record = read_record(file)
    assert all(not answer.reference and not answer.kl_rewards and len(answer.old) for answer in record.answers)
    # What is taken off a long answer is off the reward: 0.3 x its part of 12 tokens.
    recorded = {item.rollout.row: item.reward for item in read_rollouts(tmp_path, 1)}
    for answer in record.answers:
        assert answer.reward == pytest.approx(recorded[answer.row] - 0.3 * len(answer.pieces) / 12)
    hand = by_hand(record)
    assert {token.weight for update in hand.updates for token in update.tokens} == {1.0}
    assert all(update.clip == 1.0 for update in hand.updates)
    moved = [abs(token.ratio - 1) > 1e-3 for token in hand.updates[-1].tokens]
    assert any(moved) == (updates == 2)


def test_a_trainer_that_computes_something_else_is_found(tmp_path, capsys):
    record = read_record(EXAMPLE)
    answer = record.answers[0]
    mean = 0.5  # MAYE's code adds the mean of the returns again
    moved = replace(answer, advantages=tuple(value + mean for value in answer.advantages))
    write_record(tmp_path / "wrong.json", replace(record, answers=(moved, *record.answers[1:])))
    assert main(["--record", str(tmp_path / "wrong.json")]) == 1
    assert "advantage of answer 1, token 1" in capsys.readouterr().err


def test_mistakes_are_one_line(run, tmp_path, capsys):
    (tmp_path / "cut.json").write_text(EXAMPLE.read_text(encoding="utf-8")[:500], encoding="utf-8")
    (tmp_path / "page.md").write_text("<!-- begin lost -->\n<!-- end lost -->\n", encoding="utf-8")
    for arguments, words in (
        ([str(tmp_path)], "no config.yaml"),
        ([str(run), "--answers", "60"], "--answers=60, but the step has 8 judged answers"),
        ([str(run), "--answers", "2", "--updates", "3"], "--updates=3 is more than --answers=2"),
        ([str(run), "--step", "0"], "--step=0 is below 1"),
        ([str(run), "--step", "2"], "step_2.jsonl: no such file"),
        (["--record", str(tmp_path / "cut.json")], "no record of a step"),
        (["--into", str(tmp_path / "page.md")], "no such table"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error


def test_a_later_step_needs_its_checkpoint(run, capsys):
    copied = run / FOLDER / "step_2.jsonl"
    copied.write_bytes((run / FOLDER / "step_1.jsonl").read_bytes())
    assert main([str(run), "--step", "2"]) == 2
    assert "global_step_1, which are not there" in capsys.readouterr().err
    copied.unlink()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"adv_type": "grpo"}, "algorithm.adv_type='grpo'"),
        ({"loss_type": "gspo"}, "algorithm.loss_type='gspo'"),
        ({"kl_beta": 0.1}, "algorithm.kl_in='loss'"),
        ({"entropy_bonus": 0.1}, "algorithm.entropy_bonus=0.1"),
        ({"rollout_correction": {"level": "sequence"}}, "level=sequence"),
        ({"overlong": {"filter_truncated": True}}, "algorithm.overlong.filter_truncated"),
    ],
)
def test_other_algorithms_are_refused(changed, words):
    check_algorithm(AlgorithmConfig(adv_type="reinpp"))
    with pytest.raises(UserError, match=re.escape(words)):
        check_algorithm(AlgorithmConfig(**{"adv_type": "reinpp", **changed}))


def test_right_and_wrong_answers_are_chosen():
    from tests.rollouts import scored

    answers = [scored(group, reward=float(group in (3, 5, 6)), length=2) for group in range(8)]
    found = choose(answers[::-1], 4)
    assert [item.rollout.group for item in found] == [0, 1, 3, 5]
    assert [item.rollout.group for item in choose(answers[:3], 2)] == [0, 1]
    broken = [scored(9, status="timeout"), *answers[:2]]
    with pytest.raises(UserError, match="2 judged answers"):
        choose(broken, 3)


def test_what_cannot_be_read_in_a_table_is_written_otherwise():
    assert shown("a|b\nc`d") == "`a\\|b\\nc'd`"
    assert (number(-0.00001), number(-0.5, 2)) == ("0.0000", "-0.50")
    assert json.loads(EXAMPLE.read_text(encoding="utf-8"))["step"] == 21
