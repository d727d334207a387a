from __future__ import annotations

import threading
from pathlib import Path

import pytest

from rlinf_vlm.config.load import load_config
from rlinf_vlm.types import RankContext, UserError
from rlinf_vlm.workers.reward import RewardWorker
from tests.rollouts import rollout
from tests.small_run import tree

CONTEXT = RankContext(
    rank=0, world_size=1, local_rank=0, local_world_size=1, master_addr="127.0.0.1", master_port=0, device="cpu"
)
UNRULY = "tests.unit.rewards.fakes:Unruly"


def worker(folder: Path, **reward) -> RewardWorker:
    return RewardWorker(CONTEXT, load_config(tree(folder, reward=reward)))


def test_every_answer_gets_its_own_reward_in_order(tmp_path: Path):
    texts = ["abc", "a", "raise", "abc", "hang", "ab", "a"]
    given = [rollout(group, text=text) for group, text in enumerate(texts)]
    scorer = worker(tmp_path, name=UNRULY, options={"factor": 2.0}, num_workers=1, time_limit=1.0)
    found = scorer.score(given)
    assert scorer.score([]) == []
    scorer.close()
    assert [answer.rollout for answer in found] == given
    assert [answer.reward for answer in found] == [6.0, 2.0, 0.0, 6.0, 0.0, 4.0, 2.0]
    assert [answer.status for answer in found] == ["ok", "ok", "error", "ok", "timeout", "ok", "ok"]
    assert "no such answer" in found[2].detail and "more than 1 s" in found[4].detail
    assert found[0].parts.keys() == {"pid"}


def test_what_is_the_same_to_the_reward_is_judged_once(tmp_path: Path):
    scorer = worker(tmp_path, name="tests.unit.rewards.fakes:Numbered", num_workers=1)
    alike = [rollout(group, text="x") for group in range(3)]
    others = [rollout(3, text="x", answer="6"), rollout(4, text="x", finish_reason="length"), rollout(5, text="y")]
    others.append(rollout(6, text="x", question="another"))
    assert [answer.reward for answer in scorer.score([*alike, *others, *alike])] == [1, 1, 1, 2, 3, 4, 5, 1, 1, 1]
    assert [answer.reward for answer in scorer.score(alike)] == [6, 6, 6]
    scorer.close()


def test_the_reward_is_told_the_question(tmp_path: Path):
    scorer = worker(tmp_path, name="tests.unit.rewards.fakes:says_what_was_asked", num_workers=1)
    found = scorer.score([rollout(0, question="How long?"), rollout(1, question="How wide?")])
    scorer.close()
    assert [answer.detail for answer in found] == ["How long?", "How wide?"]


def test_the_reward_is_told_text_gold_answer_and_ending(tmp_path: Path):
    options = {"parts": {"math": {"weight": 0.9}, "format": {"weight": 0.1}}}
    scorer = worker(tmp_path, name="composite", options=options, num_workers=1)
    found = scorer.score(
        [
            rollout(0, text=r"\boxed{\frac{1}{2}}", answer="0.5"),
            rollout(1, text=r"\boxed{\frac{1}{2}}", answer="0.5", finish_reason="length"),
            rollout(2, text=r"\boxed{\frac{1}{2}}", answer="2"),
        ]
    )
    scorer.close()
    assert [answer.reward for answer in found] == pytest.approx([1.0, 0.9, 0.1])
    assert found[1].parts == {"math": 1.0, "format": 0.0}


def test_calls_at_the_same_time_wait_for_each_other(tmp_path: Path):
    scorer = worker(tmp_path, name=UNRULY, num_workers=2)
    found: dict[int, list[float]] = {}

    def score(number: int) -> None:
        given = [rollout(group, text="a" * (group + number)) for group in range(20)]
        found[number] = [answer.reward for answer in scorer.score(given)]

    threads = [threading.Thread(target=score, args=(number,)) for number in (10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    scorer.close()
    assert found == {number: [float(group + number) for group in range(20)] for number in (10, 20, 30)}


def test_a_reward_that_cannot_be_made_is_an_error_at_the_start(tmp_path: Path):
    with pytest.raises(UserError, match="unknown reward 'maths'; did you mean 'math'"):
        worker(tmp_path, name="maths")
    with pytest.raises(UserError, match="unexpected keyword argument 'tolerence'"):
        worker(tmp_path, name="geo3k", options={"tolerence": 0.05})
