"""The report's samples and page: token texts, pictures, what is missing, escaping, sizes, and the command."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from tokenizers import Tokenizer

from rlinf_vlm.rollout.files import FOLDER, write_rollouts
from tests.report_runs import write_metrics, write_run, write_step
from tests.rollouts import scored
from toolkits.report.make_report import main, make_report
from toolkits.report.page import script_json, text_html
from toolkits.report.pictures import SIDE, Pictures
from toolkits.report.records import read_run
from toolkits.report.samples import Choice, collect
from toolkits.report.tokens import open_decoder, token_texts


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_run) -> Path:
    """A run of reinforcement learning with everything on record."""
    return write_run(tmp_path_factory.mktemp("report") / "run", small_run)


@pytest.fixture
def copied(run, tmp_path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(run, tmp_path / "copied")


def page_data(page: Path) -> dict:
    """What the page's scripts are given."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)
    return json.loads(found[1])


@pytest.mark.parametrize(
    "text", ["plain", "é", "红色 é", "a\U0001f600b", "\u200d\U0001f468\u200d\U0001f469", "  two", ""]
)
def test_token_texts_join_to_the_text(small_run, text):
    tokenizer = Tokenizer.from_file(str(small_run / "model" / "tokenizer.json"))
    decode = open_decoder(str(small_run / "model"))
    ids = [*tokenizer.encode(text).ids, tokenizer.token_to_id("<|im_end|>")]
    texts = token_texts(decode, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text + "<|im_end|>"
    assert "\ufffd" not in "".join(texts)


def test_a_character_that_was_cut_off_is_a_mark(small_run):
    tokenizer = Tokenizer.from_file(str(small_run / "model" / "tokenizer.json"))
    ids = tokenizer.encode("a红").ids
    assert len(ids) == 4  # the character is three tokens of a byte each
    texts = token_texts(open_decoder(str(small_run / "model")), ids[:-1])
    assert texts == ["a", "", "\ufffd"]


def test_a_folder_without_a_tokenizer_has_no_decoder(tmp_path):
    assert open_decoder(str(tmp_path / "gone")) is None
    assert open_decoder(None) is None
    (tmp_path / "tokenizer.json").write_text("{cut")
    assert open_decoder(str(tmp_path)) is None


def test_pictures_are_shrunk_and_stand_once():
    pictures = Pictures()
    first = pictures.add(Image.new("RGB", (2000, 1000), (9, 9, 9)))
    assert pictures.add(Image.new("RGB", (2000, 1000), (9, 9, 9))) == first
    (url,) = pictures.urls.values()
    content = base64.b64decode(url.partition(",")[2])
    assert Image.open(io.BytesIO(content)).size == (SIDE, SIDE // 2)
    assert "does not decode" in pictures.add({"bytes": b"no picture", "path": None})["lost"]
    assert "no room" in Pictures(budget=10).add(Image.new("RGB", (9, 9)))["lost"]


def test_samples_hold_conversations_pictures_and_numbers(run):
    samples = collect([read_run(run)], Choice())
    several = next(item for item in samples.items if len(item["turns"]) == 3)
    assert several["outcome"] == "max_turns"
    assert several["turns"][1]["observation"].startswith("Here is part 1")
    assert several["turns"][1]["images"][0]["image"] in samples.pictures.urls
    turn = several["turns"][0]
    assert len(turn["tokens"]) == len(turn["lp"]) == len(turn["gap"])
    assert turn["adv"] in (0.8, -0.6)  # one for all tokens
    assert "".join(turn["tokens"]) == turn["text"] + "<|im_end|>"
    untrained = next(item for item in samples.items if item["set"] == "training" and item["member"] == 3)
    assert "gap" not in untrained["turns"][0] and "adv" not in untrained["turns"][0]
    asked = samples.prompts[several["prompt"]]
    assert [message["role"] for message in asked] == ["user"]
    assert asked[0]["parts"][0]["image"] in samples.pictures.urls
    assert {item["verdict"] for item in samples.items} == {"right", "wrong", "unjudged"}
    greedy = [item for item in samples.items if item.get("setting") == "greedy"]
    assert len(greedy) == Choice().eval_rows
    assert greedy[0]["turns"][0]["text"] == "greedy answer 0"


def test_what_is_left_out_is_said(run):
    samples = collect([read_run(run)], Choice(per_step=4, steps=2))
    steps = [item["step"] for item in samples.items if item["set"] == "training"]
    assert steps == [1] * 4 + [20] * 4
    assert "Rollouts of 2 of 3 recorded steps are shown." in samples.notes
    assert any(note.startswith("At most 4 answers of a step") for note in samples.notes)
    assert not any("At most" in note for note in collect([read_run(run)], Choice(per_step=99)).notes)


def test_the_budget_of_bytes_holds(run):
    samples = collect([read_run(run)], Choice(), budget=20_000)
    assert len(json.dumps(samples.items)) < 22_000
    assert any("long answers of step 1 were left out" in note for note in samples.notes)


def test_long_texts_have_both_ends_and_prompts_count(copied, tmp_path):
    long = "a" * 3_000_000 + "\u2028z"
    answers = [scored(row, 0, 1.0, text=long, question=long) for row in range(1000, 1030)]
    write_rollouts(copied / FOLDER, 20, answers)
    samples = collect([read_run(copied)], Choice(), budget=500_000)
    assert len(json.dumps([samples.items, samples.prompts])) < 600_000
    shown = [item for item in samples.items if item["step"] == 20 and item["set"] == "training"]
    assert shown and any("long answers of step 20 were left out" in note for note in samples.notes)
    text = shown[0]["turns"][0]["text"]
    assert text.endswith("\u2028z") and "2,980,002 characters are left out" in text
    assert samples.prompts[shown[0]["prompt"]][0]["parts"][0] == text


def test_an_evaluation_shows_conversations_and_only_what_is_readable(copied):
    turns = [{"observation": "", "text": "I call"}, {"observation": "wrong, <b>again</b>", "text": "so 5"}]
    fields = {"correct": True, "status": "ok", "finish_reason": "length", "num_tokens": 4, "outcome": "max_turns"}
    lines = [
        {"row": 0, "prediction": "I callso 5", "reward": 1, "parts": {"math": 1.0}, "turns": turns, **fields},
        {"row": 1, "prediction": None, "reward": float("nan"), "parts": {"math": "x"}, "turns": 3, "outcome": 4},
    ]
    (copied / "eval" / "step_20.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    items = [item for item in collect([read_run(copied)], Choice()).items if item["set"] == "evaluation"]
    talk, odd = (next(item for item in items if item["row"] == row) for row in range(2))
    assert talk["turns"] == [
        {"text": "I call", "finish": "stop"},
        {"text": "so 5", "finish": "length", "observation": "wrong, <b>again</b>"},
    ]
    assert talk["reward"] == 1 and talk["parts"] == {"math": 1}
    assert "reward" not in odd and odd["parts"] == {} and odd["outcome"] == "4"
    assert [turn["text"] for turn in odd["turns"]] == ["None"]


def test_a_model_and_rows_that_are_gone_leave_texts(small_run, tmp_path):
    folder = write_run(tmp_path / "run", small_run)
    config = (folder / "config.yaml").read_text().replace(str(small_run), str(tmp_path / "gone"))
    (folder / "config.yaml").write_text(config)
    samples = collect([read_run(folder)], Choice())
    assert samples.items[0]["turns"][0]["text"] and "tokens" not in samples.items[0]["turns"][0]
    assert samples.prompts[0] == [{"role": "user", "parts": ["What colour is the picture?"]}]
    assert any("tokenizer" in note for note in samples.notes)
    assert any("data.train_data_paths" in note and "gone" in note for note in samples.notes)


def test_rollouts_that_cannot_be_read_are_said_and_the_others_shown(copied):
    (copied / FOLDER / "step_10.jsonl").write_text('{"row": 1}\n')
    samples = collect([read_run(copied)], Choice())
    assert {item["step"] for item in samples.items if item["set"] == "training"} == {1, 20}
    assert any("step 10" in note and "line 1" in note for note in samples.notes)


def test_an_evaluation_line_that_was_cut_is_said(copied):
    file = copied / "eval" / "step_20.jsonl"
    file.write_text(file.read_text()[:-20])
    samples = collect([read_run(copied)], Choice())
    assert any("1 line of eval/step_20.jsonl" in note for note in samples.notes)
    assert any(item["set"] == "evaluation" for item in samples.items)


class Elements(HTMLParser):
    """The tags of a page, and what it refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]


def test_no_text_of_a_run_becomes_markup(copied):
    evil = '</script><script>alert(1)</script><img src="http://x/"> $title ${heading} \ud83d & \u2028'
    write_rollouts(copied / FOLDER, 20, [scored(0, 0, text=evil, question=evil, outcome_detail=evil)])
    plan = evil.replace("\ud83d", "")
    (copied / "plan.txt").write_text(plan)
    page = make_report([copied])
    elements = Elements()
    elements.feed(page.read_text())
    assert elements.tags.count("script") == 2
    assert "img" not in elements.tags
    assert all(reference.startswith("#") for reference in elements.references)
    item = next(
        item for item in page_data(page)["samples"]["items"] if item["step"] == 20 and item["set"] == "training"
    )
    assert item["turns"][0]["text"].startswith("</script>") and "${heading}" in item["turns"][0]["text"]
    assert text_html(plan.strip()).split("\u2028")[0] in page.read_text()


def test_json_in_a_script_ends_nothing():
    assert script_json({"a": "</script> é \ud83d"}) == '{"a":"\\u003c/script> \\u00e9 \\ud83d"}'
    assert text_html("\ud83d<") == "?&lt;"
    with pytest.raises(ValueError):
        script_json(float("nan"))


def test_the_command_writes_page_and_pictures(run, capsys):
    assert main([str(run)]) == 0
    assert "index.html" in capsys.readouterr().out
    names = {path.name for path in (run / "report").iterdir()}
    assert {"index.html", "reward.png", "accuracy.png", "loss.png", "step_time.png", "logprob_gap.png"} <= names
    assert Image.open(run / "report" / "reward.png").size == (960, 540)
    assert not list((run / "report").glob("*.partial"))


def test_a_second_report_leaves_no_chart_of_the_first(copied):
    make_report([copied])
    own = copied / "report" / "own.png"
    own.write_bytes(b"mine")
    (copied / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n')
    make_report([copied])
    assert {path.name for path in (copied / "report").iterdir()} == {"index.html", "loss.png", "own.png"}


def test_a_folder_given_twice_is_one_run(run, tmp_path):
    page = make_report([run, run / ".." / run.name], tmp_path / "out")
    assert page_data(page)["runs"] == ["run"]


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [tmp_path / name for name in ("a/x/run", "b/x/run", "b/x/<other>")]
    for folder in folders:
        folder.mkdir(parents=True)
        write_metrics(folder, [(1, {"train/loss": 1.0})])
    page = make_report(folders, tmp_path / "out")
    assert page_data(page)["runs"] == ["a/x/run", "b/x/run", "<other>"] and "<other>" not in page.read_text()


def test_several_runs_are_grouped_by_settings(run, small_run, tmp_path):
    second = write_run(tmp_path / "a" / "run", small_run, seed=2)
    hot = write_run(tmp_path / "hot", small_run, actor__optim__lr=5e-3)
    data = page_data(make_report([run, second, hot], tmp_path / "out"))
    assert data["runs"] == [f"{run.parent.name}/run", "a/run", "hot"]
    assert [(group["label"], group["runs"]) for group in data["groups"]] == [("lr=0.001", 2), ("lr=0.005", 1)]
    reward = next(panel for panel in data["panels"] if panel["id"] == "reward")
    assert "standard deviation over 2 runs" in reward["lines"][0]["series"][0]["band"]
    assert {item["run"] for item in data["samples"]["items"]} == {0, 1, 2}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["RUN", "--samples-per-step=-1"], "--samples-per-step=-1"),
        (["RUN", "--sample-steps=some"], "--sample-steps='some'"),
        (["RUN", "--sample-steps=1,7"], "no rollouts of step 7"),
        (["RUN", "--out=/dev/null/x"], "--out=/dev/null/x: cannot be written to"),
    ],
)
def test_mistakes_are_one_line(run, capsys, arguments, said):
    assert main([argument.replace("RUN", str(run)) for argument in arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and said in shown and shown.count("\n") == 1


def test_a_run_of_one_step(small_run, tmp_path):
    data = page_data(make_report([write_run(tmp_path / "one", small_run, steps=1)]))
    loss = next(panel for panel in data["panels"] if panel["id"] == "loss")
    assert loss["lines"][0]["series"][0]["x"] == [1]


@pytest.mark.parametrize(
    "left", [("metrics.jsonl",), ("config.yaml",), ("rollouts",), ("eval", "rollouts"), ("plan.txt",)]
)
def test_any_part_of_a_run_may_be_missing(copied, left):
    for name in left:
        path = copied / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    data = page_data(make_report([copied]))
    assert bool(data["panels"]) == ("metrics.jsonl" not in left)
    assert bool(data["samples"]["items"]) == (len(left) == 1)


def test_a_run_with_one_metric_and_nothing_else(tmp_path):
    write_metrics(tmp_path, [(1, {"train/loss": 1.0})])
    data = page_data(make_report([tmp_path]))
    assert [panel["id"] for panel in data["panels"]] == ["loss"]
    assert data["samples"]["items"] == []


def test_ten_thousand_steps_make_a_page_of_a_usable_size(small_run, tmp_path):
    folder = write_run(tmp_path / "long", small_run, steps=10_000)
    tokenizer = Tokenizer.from_file(str(small_run / "model" / "tokenizer.json"))
    for step in range(100, 3000, 100):
        write_step(folder, step, tokenizer)
    page = make_report([folder])
    assert page.stat().st_size < 5e6
    assert len({item["step"] for item in page_data(page)["samples"]["items"] if item["set"] == "training"}) == 8


def test_rows_that_are_not_there_are_counted(small_run, tmp_path):
    folder = write_run(tmp_path / "run", small_run)
    write_rollouts(folder / FOLDER, 20, [scored(group, 0, row=1000 + group) for group in range(5)])
    notes = collect([read_run(folder)], Choice()).notes
    assert [
        note for note in notes if note.startswith("5 rows of data.train_data_paths cannot be shown, such as row 1000")
    ]
