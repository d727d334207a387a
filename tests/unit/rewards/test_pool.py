from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlinf_vlm.rewards.pool import RewardPool
from rlinf_vlm.rewards.protocol import RewardInput, Score, score_all
from rlinf_vlm.types import UserError

ROOT = Path(__file__).parents[3]
FAKES = "tests.unit.rewards.fakes"


def item(prediction: str, answer: str = "") -> RewardInput:
    return RewardInput(prediction=prediction, answer=answer)


def is_running(pid: float) -> bool:
    try:
        state = Path(f"/proc/{int(pid)}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # ended, and nobody has asked how


def test_whatever_a_reward_does_each_input_gets_its_score():
    commands = ["abc", "hang", "raise", "die", "print", "exit", "memory", "nan", "quit", "spin", "abcd"]
    began = time.monotonic()
    with RewardPool(f"{FAKES}:Unruly", {"factor": 2.0}, num_workers=2, time_limit=1.0) as pool:
        scores = pool.score([item(command) for command in commands])
        again = pool.score([item("ab")] * 4)
    assert [score.status for score in scores] == [
        "ok",
        "timeout",
        "error",
        "died",
        "ok",
        "died",
        "error",
        "error",
        "died",
        "timeout",
        "ok",
    ]
    assert [score.value for score in scores if score.status == "ok"] == [6.0, 10.0, 8.0]
    assert "no such answer" in scores[2].detail and "signal 9" in scores[3].detail and "3" in scores[5].detail
    assert "MemoryError" in scores[6].detail and "nan" in scores[7].detail
    assert [score.value for score in again] == [4.0] * 4
    assert time.monotonic() - began < 30
    assert not any(is_running(score.parts["pid"]) for score in [*scores, *again] if score.parts)


def test_a_hanging_answer_does_not_hold_up_the_others():
    with RewardPool(f"{FAKES}:Unruly", num_workers=2, time_limit=4.0) as pool:
        pool.score([item("a")] * 4)  # both workers are there
        hanging = pool.submit(item("hang"))
        began = time.monotonic()
        assert [score.value for score in pool.score([item("ab")] * 50)] == [2.0] * 50
        assert time.monotonic() - began < 3.0 and not hanging.done()
        assert hanging.result().status == "timeout"


def test_it_grades_and_bombs_cost_the_time_limit_at_most():
    items = [item(r"\boxed{\dfrac12}", "0.5"), item(r"\boxed{9^{9^{9^9}}}", "5"), item(r"\boxed{" + "7" * 100_000, "7")]
    with RewardPool("math", num_workers=1, time_limit=10.0) as pool:
        scores = pool.score(items)
    assert [(score.value, score.status) for score in scores] == [(1.0, "ok"), (0.0, "refused"), (0.0, "ok")]


def test_it_is_a_reward_of_any_loop_and_thread():
    with RewardPool(f"{FAKES}:slow_length", num_workers=1) as pool:
        found: list[list[Score]] = []
        threads = [
            threading.Thread(target=lambda: found.append(asyncio.run(score_all(pool, [item("abc")] * 3))))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with_lock = RewardInput(prediction="a", answer="", metadata={"lock": threading.Lock()})
        assert pool.score([with_lock])[0].status == "error"
        assert pool.score([item("a")])[0].value == 1.0
    assert [[score.value for score in scores] for scores in found] == [[3.0] * 3] * 3
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(item("a"))


@pytest.mark.parametrize("command", ["hang", "a"])
def test_no_worker_outlives_its_parent(command: str):
    # Busy or idle: the parent is killed outright and cannot tidy up.
    script = f"""
import time
from rlinf_vlm.rewards.pool import RewardPool
from rlinf_vlm.rewards.protocol import RewardInput
pool = RewardPool("{FAKES}:Unruly", num_workers=1, time_limit=1.0)
pid = pool.score([RewardInput(prediction="a", answer="")])[0].parts["pid"]
pool.submit(RewardInput(prediction="{command}", answer=""))
time.sleep(0.4)
print(pid, flush=True)
input()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert parent.stdout is not None
    worker = float(parent.stdout.readline())
    assert is_running(worker)
    parent.kill()
    parent.communicate()
    end = time.monotonic() + 15
    while is_running(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(worker)


def test_a_reward_that_cannot_be_made_is_an_error_at_once():
    with pytest.raises(UserError, match="no model to judge with"):
        RewardPool(f"{FAKES}:Broken", num_workers=1)
    with pytest.raises(UserError, match="unknown reward 'maths'; did you mean 'math'"):
        RewardPool("maths", num_workers=1)
    with pytest.raises(UserError, match="num_workers=0"):
        RewardPool("math", num_workers=0)
