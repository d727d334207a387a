"""Choice questions become conversations, kinds are made by name, and missing columns are named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from rlinf_vlm.data.kinds import KINDS, DatasetKind, KindOptions, check_columns, make_kind
from rlinf_vlm.data.kinds.geo3k import Geo3k
from rlinf_vlm.data.kinds.maye import Maye
from rlinf_vlm.data.kinds.messages import Messages
from rlinf_vlm.data.kinds.robo2vlm import Robo2VLMSFT
from rlinf_vlm.registry import load_dotted
from rlinf_vlm.types import Conversation, ImagePart, Message, RowError, UserError

IMAGE = ImagePart()
ROBO = KindOptions(choice_key="choices", answer_key="correct_answer")
CHAT = KindOptions(messages_key="messages", image_keys=("images",))
ASK = KindOptions(prompt_key="problem", image_keys=("images",))


def robo_row(**changes: Any) -> dict[str, Any]:
    row = {"question": "What is held?", "choices": "['a cup', 'a pan']", "correct_answer": 1, "image": {"bytes": b"i"}}
    return {**row, **changes}


def user(*parts: str | ImagePart) -> Message:
    return Message(role="user", parts=parts)


def assistant(text: str) -> Message:
    return Message(role="assistant", parts=(text,))


# robo2vlmsft


def test_robo2vlm_gives_the_exact_texts() -> None:
    assert Robo2VLMSFT(ROBO).convert(robo_row()) == Conversation(
        messages=(user(IMAGE, "What is held?\nChoices:\nA. a cup\nB. a pan\n"), assistant("B. a pan")),
        images=({"bytes": b"i"},),
        question="What is held?",
        answer="B. a pan",
        choices=("A. a cup", "B. a pan"),
        choice_index=1,
    )


@pytest.mark.parametrize(
    "choices",
    ["['a cup', 'a pan']", '["a cup", "a pan"]', ["a cup", "a pan"], ("a cup", "a pan"), np.array(["a cup", "a pan"])],
)
def test_choices_may_be_a_literal_or_a_list(choices: Any) -> None:
    assert Robo2VLMSFT(ROBO).convert(robo_row(choices=choices)).choices == ("A. a cup", "B. a pan")


def test_choices_may_be_a_json_list_that_python_does_not_read() -> None:
    # true is a name to Python.
    assert Robo2VLMSFT(ROBO).convert(robo_row(choices="[true, false]")).choices == ("A. True", "B. False")


ANSWERS = [
    (["a cup", "a pan"], 1, 1),
    (["a cup", "a pan"], np.int64(1), 1),
    (["a cup", "a pan"], 1.0, 1),
    (["a cup", "a pan"], "1", 1),
    (["a cup", "a pan"], "B", 1),
    (["a cup", "a pan"], "b", 1),
    (["a cup", "a pan"], "B.", 1),
    (["a cup", "a pan"], " (B) ", 1),
    (["a cup", "a pan"], "B. a pan", 1),
    (["a cup", "a pan"], "a pan", 1),
    (["a cup", "a pan"], " A PAN", 1),
    (["Pan", "pan"], "pan", 1),  # exact before regardless of case
    (["2", "1", "0"], "2", 0),  # the text of a choice before an index
    (["Yes", "No", "Yes"], "C", 2),  # the letter tells equal choices apart
    (["Yes", "No", "Yes"], 2, 2),
    (["A", "B", "A"], "A", 0),
    (["A", "B"], "B", 1),
]


@pytest.mark.parametrize(("choices", "answer", "index"), ANSWERS)
def test_an_answer_names_its_choice(choices: list[str], answer: Any, index: int) -> None:
    conversation = Robo2VLMSFT(ROBO).convert(robo_row(choices=choices, correct_answer=answer))
    assert conversation.choice_index == index
    assert conversation.answer == f"{'ABC'[index]}. {choices[index]}"


BAD_ANSWERS = [
    (["a cup", "a pan"], 2, "answer index 2 is outside 0..1"),
    (["a cup", "a pan"], -1, "answer index -1 is outside 0..1"),
    (["a cup", "a pan"], "C", "answer 'C' is none of the choices: ['a cup', 'a pan']"),
    (["a cup", "a pan"], "a spoon", "answer 'a spoon' is none of the choices: ['a cup', 'a pan']"),
    (["a cup", "a pan"], "B. a cup", "is none of the choices"),
    (["a cup", "a pan"], "2", "is none of the choices"),
    (["a cup", "a pan"], None, "answer null is not an index"),
    (["a cup", "a pan"], True, "answer True is not an index"),
    (["a cup", "a pan"], 0.5, "answer 0.5 is not an index"),
    (["a cup", "a pan"], [1], "answer [1] is not an index"),
    (["Yes", "No", "Yes"], "Yes", "could be choices [0, 2]"),
    (["PAN", "Pan"], "pan", "could be choices [0, 1]"),
    (["B", "A"], "A", "could be choices [0, 1]"),
    (["3", "4"], "1", "is none of the choices"),  # with numbers for choices, 1 is no index but a wrong answer
]


@pytest.mark.parametrize(("choices", "answer", "text"), BAD_ANSWERS)
def test_an_answer_that_names_no_single_choice_is_a_bad_row(choices: list[str], answer: Any, text: str) -> None:
    with pytest.raises(RowError) as caught:
        Robo2VLMSFT(ROBO).convert(robo_row(choices=choices, correct_answer=answer))
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"choices": "a cup or a pan"}, "'choices' holds 'a cup or a pan', not a list of choices"),
        ({"choices": "['a cup' 'a pan']"}, "holds 1 choice(s)"),  # Python joins texts without a comma between
        ({"choices": []}, "holds 0 choice(s)"),
        ({"choices": None}, "'choices' holds null"),
        ({"choices": {"a": 1, "b": 2}}, "not a list of choices"),
        ({"choices": ["a cup", None]}, "the choice null, not a text"),
        ({"choices": ["a cup", " "]}, "the choice ' ', not a text"),
        ({"choices": [str(number) for number in range(27)]}, "27 choices, more than there are letters"),
        ({"question": None}, "'question' holds null, not a text"),
        ({"question": "  "}, "'question' holds '  ', not a text"),
        ({"image": ["a.png", "b.png"], "question": "<image>?"}, "1 <image> placeholders but the row has 2 images"),
    ],
)
def test_a_bad_robo2vlm_row_says_what_is_wrong(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(RowError) as caught:
        Robo2VLMSFT(ROBO).convert(robo_row(**changes))
    assert text in str(caught.value)


def test_twenty_six_choices_have_letters() -> None:
    choices = [f"choice {number}" for number in range(26)]
    assert Robo2VLMSFT(ROBO).convert(robo_row(choices=choices, correct_answer="z")).answer == "Z. choice 25"


def test_images_of_all_columns_come_first_in_order() -> None:
    kind = Robo2VLMSFT(KindOptions(choice_key="choices", answer_key="correct_answer", image_keys=("image", "wrist")))
    conversation = kind.convert(robo_row(image=["a.png", "b.png"], wrist={"path": "c.png"}))
    assert conversation.images == ("a.png", "b.png", {"path": "c.png"})
    assert conversation.messages[0].parts[:3] == (IMAGE, IMAGE, IMAGE)


def test_a_row_may_lack_its_image_but_not_the_column() -> None:
    conversation = Robo2VLMSFT(ROBO).convert(robo_row(image=None))
    assert conversation.images == ()
    assert conversation.messages[0].parts == ("What is held?\nChoices:\nA. a cup\nB. a pan\n",)
    row = robo_row()
    del row["image"]
    with pytest.raises(RowError, match="no column 'image'"):
        Robo2VLMSFT(ROBO).convert(row)


def test_a_system_prompt_comes_first() -> None:
    kind = Robo2VLMSFT(KindOptions(choice_key="choices", answer_key="correct_answer", system_prompt="Be brief."))
    first, second, _ = kind.convert(robo_row()).messages
    assert first == Message(role="system", parts=("Be brief.",))
    assert second.role == "user"


# the table, the options, the columns


@dataclass(frozen=True)
class Settings:
    """Stands in for the data config."""

    dataset_name: str
    prompt_key: str = "question"
    choice_key: str | None = None
    answer_key: str = "answer"
    image_keys: tuple[str, ...] = ("image",)
    messages_key: str | None = None
    solution_key: str | None = None
    system_prompt: str | None = None
    prompt_suffix: str | None = None


class Upper:
    """A kind from outside the package."""

    def __init__(self, options: KindOptions) -> None:
        self.options = options

    def required_columns(self) -> tuple[tuple[str, str], ...]:
        return (("data.prompt_key", self.options.prompt_key),)

    def convert(self, row: dict[str, Any]) -> Conversation:
        raise RowError(row["question"].upper())


def test_every_name_of_the_table_makes_a_kind() -> None:
    assert set(KINDS) == {"robo2vlmsft", "messages", "geo3k", "maye"}
    assert load_dotted(KINDS["robo2vlmsft"]) is Robo2VLMSFT
    assert load_dotted(KINDS["messages"]) is Messages
    assert load_dotted(KINDS["geo3k"]) is Geo3k
    assert load_dotted(KINDS["maye"]) is Maye


def test_a_kind_is_made_from_settings() -> None:
    kind = make_kind(Settings("robo2vlmsft", choice_key="choices", answer_key="correct_answer"))
    assert kind.convert(robo_row()).answer == "B. a pan"
    outside = make_kind(Settings(f"{__name__}:Upper", prompt_key="q"))
    assert outside.required_columns() == (("data.prompt_key", "q"),)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (Settings("robo2vlm"), "unknown data.dataset_name 'robo2vlm'; did you mean 'robo2vlmsft'?"),
        (Settings("nowhere.at_all:Thing"), "no module named 'nowhere'"),
        (Settings("robo2vlmsft"), "data.choice_key=null"),
        (Settings("robo2vlmsft", choice_key="c", messages_key="m"), "data.messages_key='m' is not read"),
        (Settings("messages", choice_key="c", messages_key="m"), "data.choice_key='c' is not read"),
        (Settings("messages", solution_key="s"), "data.solution_key='s' is not read by dataset_name=messages"),
        (Settings("robo2vlmsft", choice_key="c", solution_key="s"), "data.solution_key='s' is not read"),
        (Settings("geo3k", solution_key="s"), "data.solution_key='s' is not read by dataset_name=geo3k"),
        (Settings("geo3k", choice_key="c"), "data.choice_key='c' is not read by dataset_name=geo3k"),
        (Settings("maye", messages_key="m"), "data.messages_key='m' is not read by dataset_name=maye"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: Settings, text: str) -> None:
    with pytest.raises(UserError) as caught:
        make_kind(settings)
    assert text in str(caught.value)


def test_required_columns_name_their_config_keys() -> None:
    assert Robo2VLMSFT(ROBO).required_columns() == (
        ("data.prompt_key", "question"),
        ("data.choice_key", "choices"),
        ("data.answer_key", "correct_answer"),
        ("data.image_keys", "image"),
    )
    assert Messages(CHAT).required_columns() == (("data.messages_key", "messages"), ("data.image_keys", "images"))
    assert [column for _, column in Messages(ASK).required_columns()] == ["problem", "answer", "images"]


def test_a_missing_column_is_named_with_its_key_and_the_nearest() -> None:
    kind: DatasetKind = Robo2VLMSFT(ROBO)
    check_columns(kind, ("id", "question", "choices", "correct_answer", "image"), "x.parquet")
    with pytest.raises(UserError) as caught:
        check_columns(kind, ("id", "question", "choice", "correct_answer", "image"), "x.parquet")
    assert str(caught.value) == (
        "data.choice_key: no column 'choices' in x.parquet, which has: id, question, choice, correct_answer, image; "
        "did you mean 'choice'?"
    )
    with pytest.raises(UserError, match=r"data\.image_keys: no column 'image'.*data\.image_keys=\[\]"):
        check_columns(kind, ("question", "choices", "correct_answer"), "x.parquet")
