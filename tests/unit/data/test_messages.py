"""Chats and question/answer columns: hand-written rows, and every way in which one can be bad."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from rlinf_vlm.data.kinds import KindOptions
from rlinf_vlm.data.kinds.messages import Messages
from rlinf_vlm.types import Conversation, ImagePart, Message, RowError

IMAGE = ImagePart()
CHAT = KindOptions(messages_key="messages", image_keys=("images",))
ASK = KindOptions(prompt_key="problem", image_keys=("images",))


def chat_row(*contents: Any, images: Any = None, roles: tuple[str, ...] = ("user", "assistant")) -> dict[str, Any]:
    turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    return {"messages": turns, "images": images}


def user(*parts: str | ImagePart) -> Message:
    return Message(role="user", parts=parts)


def assistant(text: str) -> Message:
    return Message(role="assistant", parts=(text,))


def test_placeholders_are_the_places_of_the_images() -> None:
    row = chat_row("<image>\nLeft, then <image>: same?", "Yes.", images=["a.png", "b.png"])
    assert Messages(CHAT).convert(row) == Conversation(
        messages=(user(IMAGE, "\nLeft, then ", IMAGE, ": same?"), assistant("Yes.")),
        images=("a.png", "b.png"),
        question="Left, then : same?",
        answer="Yes.",
    )


PARTS = [{"type": "image"}, {"type": "text", "text": "What?"}]
ARROW_PARTS = [{"type": "image", "text": None, "image": None}, {"type": "text", "text": "What?", "image": None}]


@pytest.mark.parametrize("content", [PARTS, ARROW_PARTS, tuple(PARTS), json.dumps(PARTS), np.array(PARTS, object)])
def test_content_may_be_parts_in_any_form(content: Any) -> None:
    conversation = Messages(CHAT).convert(chat_row(content, "A cup.", images=["a.png"]))
    assert conversation.messages == (user(IMAGE, "What?"), assistant("A cup."))


def test_the_whole_chat_may_be_json() -> None:
    row = chat_row("<image>What?", "A cup.", images=["a.png"])
    row["messages"] = json.dumps(row["messages"])
    assert Messages(CHAT).convert(row).messages == (user(IMAGE, "What?"), assistant("A cup."))


@pytest.mark.parametrize("text", ["[1, 2] + [3]", "[1, 2]", "[]", '[{"a": 1}]', "[x]"])
def test_a_text_that_begins_like_a_list_stays_a_text(text: str) -> None:
    assert Messages(CHAT).convert(chat_row(text, "Yes.")).messages[0] == user(text)


def test_sharegpt_names_are_read() -> None:
    row = {
        "messages": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "<image>What?"},
            {"from": "gpt", "value": "A cup."},
        ],
        "images": "a.png",
    }
    conversation = Messages(CHAT).convert(row)
    system = Message(role="system", parts=("Be brief.",))
    assert conversation.messages == (system, user(IMAGE, "What?"), assistant("A cup."))


def test_images_without_a_place_come_first_in_the_first_user_turn() -> None:
    roles = ("system", "user", "assistant", "user", "assistant")
    row = chat_row("S", "One?", "1", "Two?", "2", roles=roles, images=["a.png", "b.png"])
    conversation = Messages(CHAT).convert(row)
    assert conversation.messages[1] == user(IMAGE, IMAGE, "One?")
    assert conversation.messages[3] == user("Two?")
    assert (conversation.question, conversation.answer) == ("Two?", "2")


def test_a_part_with_its_own_image_takes_none_of_the_column() -> None:
    content = [{"type": "image", "image": "own.png"}, {"type": "image"}, {"type": "text", "text": "Same? <image>"}]
    conversation = Messages(CHAT).convert(chat_row(content, "No.", images=["a.png", "b.png"]))
    assert conversation.images == ("own.png", "a.png", "b.png")
    assert conversation.messages[0] == user(IMAGE, IMAGE, "Same? ", IMAGE)


def test_the_system_prompt_yields_to_the_rows_own() -> None:
    kind = Messages(KindOptions(messages_key="messages", image_keys=(), system_prompt="Be brief."))
    own = kind.convert(chat_row("Own.", "Hi", "Ho", roles=("system", "user", "assistant")))
    assert own.messages[0] == Message(role="system", parts=("Own.",)) and len(own.messages) == 3
    without = kind.convert(chat_row("Hi", "Ho"))
    assert without.messages[0] == Message(role="system", parts=("Be brief.",)) and len(without.messages) == 3


def test_an_empty_answer_is_an_answer() -> None:
    assert Messages(CHAT).convert(chat_row("Hi", "")).messages[1] == assistant("")


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (chat_row("<image><image>?", "x", images=["a"]), "2 <image> placeholders but the row has 1 images"),
        (chat_row("<image>?", "x"), "1 <image> placeholders but the row has 0 images"),
        (chat_row("<image>?", "x", images=["a", "b"]), "1 <image> placeholders but the row has 2 images"),
        (chat_row([{"type": "image", "image": "o"}], "x", images=["a"]), "0 <image> placeholders but the row has 1"),
        (chat_row("Hi", roles=("user",)), "the last message is ['user'], not the assistant's"),
        (chat_row("Hi", "Ho", "Hi", roles=("user", "assistant", "user")), "['user', 'assistant', 'user']"),
        (chat_row("Ho", roles=("assistant",)), "no message is the user's"),
        ({"messages": [], "images": None}, "not the assistant's"),
        ({"messages": None, "images": None}, "'messages' holds no list"),
        ({"messages": "hello", "images": None}, "'messages' holds no list"),
        ({"messages": ["hello"], "images": None}, "message 0 is 'hello'"),
        ({"images": None}, "no column 'messages'"),
        (chat_row("Hi", "Ho", roles=("user", "robot")), "message 1 has the role 'robot'"),
        (chat_row("Hi", None), "message 1 has the content null"),
        (chat_row("Hi", "see <image>", images=["a"]), "message 1, the assistant's, holds an image"),
        (chat_row([{"type": "video", "video": "v.mp4"}], "x"), "message 0 holds the part {'type': 'video'"),
        (chat_row([{"type": "text", "text": None}], "x"), "message 0 holds the part"),
        (chat_row([3], "x"), "message 0 holds the part 3"),
    ],
)
def test_a_bad_chat_says_what_is_wrong(row: dict[str, Any], text: str) -> None:
    with pytest.raises(RowError) as caught:
        Messages(CHAT).convert(row)
    assert text in str(caught.value)


def test_question_and_answer_columns_make_a_chat() -> None:
    row = {"problem": "<image>Find $x$.", "answer": 27, "images": [{"bytes": b"i", "path": None}]}
    assert Messages(ASK).convert(row) == Conversation(
        messages=(user(IMAGE, "Find $x$."), assistant("27")),
        images=({"bytes": b"i", "path": None},),
        question="Find $x$.",
        answer="27",
    )


@pytest.mark.parametrize(("answer", "text"), [(3, "3"), (0.5, "0.5"), (np.int32(3), "3"), (True, "True"), ("x", "x")])
def test_answers_that_are_numbers_become_text(answer: Any, text: str) -> None:
    assert Messages(ASK).convert({"problem": "?", "answer": answer, "images": None}).answer == text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"answer": None}, "'answer' holds null, not a text or a number"),
        ({"answer": ["x"]}, "'answer' holds ['x']"),
        ({"problem": None}, "'problem' holds null"),
        ({"images": ["a", "b"]}, "1 <image> placeholders but the row has 2 images"),
    ],
)
def test_a_bad_question_says_what_is_wrong(changes: dict[str, Any], text: str) -> None:
    row = {"problem": "<image>?", "answer": "x", "images": ["a"], **changes}
    with pytest.raises(RowError) as caught:
        Messages(ASK).convert(row)
    assert text in str(caught.value)


def test_choices_of_a_question_are_the_targets_themselves() -> None:
    kind = Messages(KindOptions(prompt_key="problem", choice_key="choices", image_keys=()))
    row = {"problem": "Find $x$.", "choices": ["24", "27", "72"], "answer": "27"}
    for answer in ("27", 27, "B"):
        conversation = kind.convert({**row, "answer": answer})
        assert conversation.choices == ("24", "27", "72")
        assert (conversation.choice_index, conversation.answer) == (1, "27")
        assert conversation.messages == (user("Find $x$."), assistant("27"))
    with pytest.raises(RowError, match="is none of the choices"):
        kind.convert({**row, "answer": "2"})
    open_question = kind.convert({**row, "choices": None})
    assert (open_question.choices, open_question.choice_index, open_question.answer) == ((), None, "27")
