"""What the demos' tokenizers learn from, so that questions, answers and instructions become few tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkits.data.demo_tables import VqaRow
    from toolkits.data.geometry_tables import Chat, GeometryRow

ANSWER_WEIGHT = 2000
"""Each answer's weight beside the questions in the tokenizer's training text: each becomes one token early."""
PROMPT_WEIGHT = 20
PROMPTS = (
    "system",
    "user",
    "assistant",
    "You are a helpful assistant.",
    "Answer the question.",
    "Answer with the letter of the correct choice.",
    "Which of these choices is correct?",
    "Think step by step and put the final answer in \\boxed{}.",
)
"""Words of templates and instructions, so that a prompt that uses them stays short."""


def vqa_texts(rows: Sequence[VqaRow], kinds: Iterable[Iterable[str]]) -> Iterator[str]:
    """The questions, the answers bare and as lettered choices, words of prompts."""
    answers = [answer for kind in kinds for answer in kind]
    lettered = [f"{letter}. {answer}\n" for letter in "ABCD" for answer in answers]
    return chain(
        (row.question for row in rows),
        chain.from_iterable(repeat(answer, ANSWER_WEIGHT) for answer in answers),
        chain.from_iterable(repeat(text, PROMPT_WEIGHT) for text in chain(lettered, PROMPTS)),
    )


def chat_texts(chats: Iterable[Chat]) -> Iterator[str]:
    """All that is said in ``chats``, words of prompts."""
    return chain(
        (message["content"] for chat in chats for message in chat),
        chain.from_iterable(repeat(text, PROMPT_WEIGHT) for text in PROMPTS),
    )


def geometry_texts(rows: Sequence[GeometryRow]) -> Iterator[str]:
    """The problems, the form of the answers, words of prompts. Numbers stay digits: the pre-tokenizer cuts them."""
    from toolkits.data.geometry_tables import worked

    return chain(
        (row.question for row in rows),
        (worked(row) for row in rows),
        chain.from_iterable(repeat(text, PROMPT_WEIGHT) for text in PROMPTS),
    )
