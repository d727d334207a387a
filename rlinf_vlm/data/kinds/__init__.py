"""How a row of a dataset is read as a conversation: one class a kind, found by name or dotted path.

    data.dataset_name -> KINDS -> kind(KindOptions) -> required_columns (checked before the run), convert (each row)

A kind is a class that is made from ``KindOptions`` and meets ``DatasetKind``; it needs no base class. Adding one is a
module and a line in ``KINDS``, or ``dataset_name: my_pkg.module:Thing`` and no line at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlinf_vlm.registry import nearest, resolve
from rlinf_vlm.types import Conversation, UserError

KINDS = {
    "robo2vlmsft": "rlinf_vlm.data.kinds.robo2vlm:Robo2VLMSFT",
    "messages": "rlinf_vlm.data.kinds.messages:Messages",
    "geo3k": "rlinf_vlm.data.kinds.geo3k:Geo3k",
    "maye": "rlinf_vlm.data.kinds.maye:Maye",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KindOptions:
    """The data.* settings of the same names: which columns hold what."""

    prompt_key: str = "question"
    choice_key: str | None = None
    answer_key: str = "answer"
    image_keys: tuple[str, ...] = ("image",)
    messages_key: str | None = None
    solution_key: str | None = None
    system_prompt: str | None = None
    prompt_suffix: str | None = None


class DatasetKind(Protocol):
    """Reads rows as conversations."""

    def required_columns(self) -> tuple[tuple[str, str], ...]:
        """(config key, column) of every column that ``convert`` reads; no other column is loaded."""

    def convert(self, row: Mapping[str, Any]) -> Conversation:
        """The conversation of a row, images undecoded. Raises RowError when the row cannot be used."""


class KindSettings(Protocol):
    """The part of the data config that says how rows are read."""

    @property
    def dataset_name(self) -> str:
        """A name in ``KINDS``, or a dotted path."""

    @property
    def prompt_key(self) -> str:
        """As in ``KindOptions``."""

    @property
    def choice_key(self) -> str | None:
        """As in ``KindOptions``."""

    @property
    def answer_key(self) -> str:
        """As in ``KindOptions``."""

    @property
    def image_keys(self) -> tuple[str, ...]:
        """As in ``KindOptions``."""

    @property
    def messages_key(self) -> str | None:
        """As in ``KindOptions``."""

    @property
    def solution_key(self) -> str | None:
        """As in ``KindOptions``."""

    @property
    def system_prompt(self) -> str | None:
        """As in ``KindOptions``."""

    @property
    def prompt_suffix(self) -> str | None:
        """As in ``KindOptions``."""


def make_kind(settings: KindSettings) -> DatasetKind:
    """The kind that ``settings.dataset_name`` names, made from the settings. Raises UserError."""
    options = KindOptions(
        prompt_key=settings.prompt_key,
        choice_key=settings.choice_key,
        answer_key=settings.answer_key,
        image_keys=tuple(settings.image_keys),
        messages_key=settings.messages_key,
        solution_key=settings.solution_key,
        system_prompt=settings.system_prompt,
        prompt_suffix=settings.prompt_suffix,
    )
    try:
        found = resolve("data.dataset_name", settings.dataset_name, KINDS)
    except ValueError as error:
        raise UserError(f"data.dataset_name: {error}") from error
    if not isinstance(found, type) or not hasattr(found, "convert") or not hasattr(found, "required_columns"):
        raise UserError(
            f"data.dataset_name={settings.dataset_name!r} is no dataset kind: a class with required_columns() and "
            f"convert(row); the kinds here are {', '.join(KINDS)}"
        )
    return found(options)


def check_columns(kind: DatasetKind, columns: Sequence[str], path: str) -> None:
    """All that ``kind`` reads is among ``columns``, those of ``path``. Raises UserError with the nearest column."""
    for key, column in kind.required_columns():
        if column in columns:
            continue
        guess = nearest(column, columns)
        remedy = f"did you mean {guess!r}?" if guess else f"set {key} to the right column"
        if key == "data.image_keys":
            remedy += " (data.image_keys=[] for rows without images)"
        raise UserError(f"{key}: no column {column!r} in {path}, which has: {', '.join(columns)}; {remedy}")
