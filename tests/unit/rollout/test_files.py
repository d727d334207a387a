from __future__ import annotations

import json
import math
import random
from dataclasses import fields, replace
from pathlib import Path

import pytest

from rlinf_vlm.rollout.files import forget_after, read_rollouts, recorded_steps, write_rollouts
from rlinf_vlm.rollout.records import Rollout, ScoredRollout, Turn
from rlinf_vlm.types import UserError
from tests.rollouts import rollout, scored

ODD_TEXTS = [
    "",
    'a "quoted" \\boxed{5}\n and more\r\n',
    "Länge 5 ° √2 三角形 😀",
    "half a pair: \ud83d, the other: \ude00",
    "separators: \u2028 \u2029 \x85 \x0b \x0c \x1c \x00 \x7f",
    "backslashes: \\ud83d \\n \\",
]


def test_what_is_read_is_what_was_written(tmp_path: Path):
    draw = random.Random(0)
    # Floats of all sizes, as any bits give them.
    drawn = (-math.ldexp(draw.random(), draw.randrange(-60, 5)) for _ in range(500))
    logprobs = (*drawn, 0.0, -0.0, -5e-324)
    written = [
        scored(
            group,
            1,
            0.1 + 0.2,
            token_ids=tuple(range(len(logprobs))),
            logprobs=logprobs,
            text=text,
            outcome_detail=text,
            question=text,
            answer=text,
            prompt_digest=2**32 - 1,
            finish_reason="length",
            parts={text: 1 / 3, "math": 0.0},
        )
        for group, text in enumerate(ODD_TEXTS)
    ]
    written.append(ScoredRollout(rollout=written[0].rollout, reward=0.0, status="timeout", detail="more than 10 s\n"))
    file = write_rollouts(tmp_path, 12, written)
    assert file == tmp_path / "step_12.jsonl"
    read = read_rollouts(tmp_path, 12)
    assert read == written
    assert [math.copysign(1, value) for value in read[0].rollout.logprobs[-3:]] == [1, -1, -1]
    assert isinstance(read[0].rollout.token_ids, tuple) and isinstance(read[0].rollout.logprobs, tuple)
    data = file.read_bytes()
    assert data.count(b"\n") == len(written) and "三角形 😀" in data.decode("utf-8")


def test_an_engine_may_give_whole_numbers_and_no_tokens(tmp_path: Path):
    write_rollouts(tmp_path, 0, [scored(0, 0, 1, length=0), scored(0, 1, 0, logprobs=(0, -1, -2))])
    read = read_rollouts(tmp_path, 0)
    assert read[0].rollout.token_ids == () and type(read[0].reward) is float
    assert [type(value) for value in read[1].rollout.logprobs] == [float] * 3
    write_rollouts(tmp_path, 0, [])
    assert read_rollouts(tmp_path, 0) == []


def test_a_run_folder_stands_for_the_folder_in_it(tmp_path: Path):
    write_rollouts(tmp_path / "run" / "rollouts", 7, [scored(1)])
    assert read_rollouts(tmp_path / "run", 7) == read_rollouts(tmp_path / "run" / "rollouts", 7) == [scored(1)]
    with pytest.raises(UserError, match=r"run/rollouts/step_8.jsonl: no such file; recorded: step 7$"):
        read_rollouts(tmp_path / "run", 8)


def test_a_run_that_goes_on_forgets_what_came_later(tmp_path: Path):
    for step in (1, 2, 3, 10):
        write_rollouts(tmp_path, step, [scored(step)])
    (tmp_path / "notes.txt").touch()
    forget_after(tmp_path, 2)
    assert recorded_steps(tmp_path) == [1, 2]
    assert (tmp_path / "notes.txt").exists()
    forget_after(tmp_path / "nowhere", 2)


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path):
    write_rollouts(tmp_path, 3, [scored(1)])
    with pytest.raises(TypeError):
        write_rollouts(tmp_path, 3, [scored(2), scored(3, parts={"math": object()})])
    assert read_rollouts(tmp_path, 3) == [scored(1)]
    assert recorded_steps(tmp_path) == [3]


def test_a_step_that_is_not_there(tmp_path: Path):
    with pytest.raises(UserError, match=r"no such file; .* holds no step_N.jsonl; give the rollouts folder of a run"):
        read_rollouts(tmp_path, 0)
    for step in (0, 1, 2, 10):
        write_rollouts(tmp_path, step, [scored()])
    (tmp_path / "step_x.jsonl").touch()
    with pytest.raises(UserError, match=r"step_5.jsonl: no such file; recorded: steps 0, 1, 2, 10$"):
        read_rollouts(tmp_path, 5)
    (tmp_path / "step_10.jsonl").unlink()
    with pytest.raises(UserError, match=r"recorded: steps 0 to 2$"):
        read_rollouts(tmp_path, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": None}, "'reward' is a NoneType, not a float"),
        ({"reward": math.nan}, "'reward' is nan"),
        ({"reward": True}, "'reward' is a bool"),
        ({"row": 1.5}, "'row' is a float, not a int"),
        ({"parts": {"math": None}}, "'parts' has something that is not a number"),
        ({"outcome": "gone"}, "'outcome' is 'gone', none of completed, max_turns, truncated, env_error"),
        ({"turns": {}}, "'turns' is a dict"),
        ({"turns": ["a"]}, "a turn is a str, not an object"),
        ({"token_ids": []}, "unknown 'token_ids'"),
        ({"question": None}, "'question' is a NoneType"),
    ],
)
def test_a_line_that_is_no_rollout_is_named(tmp_path: Path, change: dict[str, object], message: str):
    file = write_rollouts(tmp_path, 4, [scored(), scored()])
    first, second = file.read_text(encoding="utf-8").splitlines()
    file.write_text(first + "\n" + json.dumps(json.loads(second) | change) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="step_4.jsonl, line 2: not a recorded rollout") as raised:
        read_rollouts(tmp_path, 4)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": [1, 2, "3"]}, "'token_ids' or 'context_ids' has something that is not an integer"),
        ({"context_ids": [1.5]}, "'token_ids' or 'context_ids' has something that is not an integer"),
        ({"token_ids": [1, 2]}, "2 tokens, but 3 log-probabilities"),
        ({"logprobs": [-1.0, None, -1.0]}, "'logprobs' has something that is not a number"),
        ({"finish_reason": "abort"}, "'finish_reason' is 'abort', neither 'stop' nor 'length'"),
        ({"images": ["../../etc/passwd"]}, "no picture '../../etc/passwd'"),
        ({"images": ["0" * 32 + ".png"]}, "no picture '000"),
        ({"text": None}, "'text' is a NoneType"),
        ({"said": ""}, "unknown 'said'"),
    ],
)
def test_a_turn_that_is_none_is_named(tmp_path: Path, change: dict[str, object], message: str):
    file = write_rollouts(tmp_path, 4, [scored()])
    line = json.loads(file.read_text(encoding="utf-8"))
    line["turns"][0] |= change
    file.write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="step_4.jsonl, line 1: not a recorded rollout") as raised:
        read_rollouts(tmp_path, 4)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def a_conversation(*pictures: bytes) -> ScoredRollout:
    """Two turns, with pictures shown before the second."""
    (first,) = rollout().turns
    second = replace(
        first, context_ids=(7, 8, 9), observation="look", images=pictures, token_ids=(1,), logprobs=(-1.0,)
    )
    return scored(turns=(first, second), env_info={"score": 0.5, "calls": [1, None, "a"]}, choices=("a", "b"))


def test_turns_and_their_pictures_are_read_as_they_were(tmp_path: Path):
    written = [a_conversation(b"one", b"two"), a_conversation(b"two"), a_conversation()]
    file = write_rollouts(tmp_path / "rollouts", 3, written)
    assert read_rollouts(tmp_path, 3) == written
    assert written[0].rollout.token_ids == (0, 1, 2, 1) and written[0].rollout.num_tokens == 5 + 3 + 3 + 1
    pictures = sorted((tmp_path / "rollouts" / "images").iterdir())
    assert sorted(picture.read_bytes() for picture in pictures) == [b"one", b"two"], "each picture is kept once"
    assert not list(file.parent.rglob("*.partial"))
    pictures[0].write_bytes(b"other")
    with pytest.raises(UserError, match="is not the picture that was shown"):
        read_rollouts(tmp_path, 3)
    pictures[0].unlink()
    with pytest.raises(UserError, match="line .: not a recorded rollout .no picture"):
        read_rollouts(tmp_path, 3)


@pytest.mark.parametrize("kept", [1, 40, -2, -1])
def test_a_cut_file_is_noticed_wherever_it_was_cut(tmp_path: Path, kept: int):
    file = write_rollouts(tmp_path, 4, [scored(), scored(text="三角形")])
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1][:kept])
    with pytest.raises(UserError, match=r"step_4.jsonl, line 2: not a recorded rollout \(the line is cut\)"):
        read_rollouts(tmp_path, 4)
    file.write_bytes(lines[1].replace("角".encode(), b"\xe8") + lines[0])
    with pytest.raises(UserError, match="line 1: not a recorded rollout"):
        read_rollouts(tmp_path, 4)


def test_every_field_is_on_record(tmp_path: Path):
    line = json.loads(write_rollouts(tmp_path, 0, [scored()]).read_text(encoding="utf-8"))
    wanted = {field.name for record in (Rollout, ScoredRollout) for field in fields(record)} - {"rollout"}
    assert line.keys() == wanted
    # A file of a version that knew fewer fields.
    assert line["turns"][0].keys() == {field.name for field in fields(Turn)}
    del line["question"]
    (tmp_path / "step_0.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="no 'question'"):
        read_rollouts(tmp_path, 0)
