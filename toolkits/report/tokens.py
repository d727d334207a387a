"""What each token of an answer reads as, for the page.

A byte-level token can hold a part of a character only: its text is then empty, and the character stands with the token
that completes it. Joined, the texts are what decoding all tokens at once gives, special tokens included; bytes that
are no character at all are U+FFFD.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

LONGEST_CHARACTER = 4
"""Bytes of a character in UTF-8, so also the most tokens that it can be spread over."""

Decode = Callable[[Sequence[int]], str]
"""Ids -> text with special tokens."""


def open_decoder(model_path: object) -> Decode | None:
    """The tokenizer of a model folder; None where the folder or its tokenizer is gone or cannot be read.

    ``tokenizer.json`` is read by the tokenizers library alone, which takes no time to import.
    """
    if not isinstance(model_path, str) or not Path(model_path).expanduser().is_dir():
        return None
    folder = Path(model_path).expanduser()
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception:  # noqa: BLE001 - the library raises this very class for a file that it cannot read
            return None
        return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False)
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError):
        return None
    return lambda ids: str(slow.decode(list(ids), skip_special_tokens=False))


def token_texts(decode: Decode, ids: Sequence[int]) -> list[str]:
    """The text of each of ``ids`` [L]. Ids that the tokenizer does not know read as nothing."""
    texts: list[str] = []
    before: list[int] = []  # the last whole token(s): some decoders treat the beginning of a text in their own way
    waiting: list[int] = []
    for token in ids:
        waiting.append(token)
        text = decode([*before, *waiting])[len(decode(before)) :]
        if text.endswith("\ufffd") and len(waiting) < LONGEST_CHARACTER:
            texts.append("")
            continue
        texts.append(text)
        before, waiting = waiting, []
    if waiting:  # cut inside of a character
        texts[-1] = decode([*before, *waiting])[len(decode(before)) :]
    return texts
