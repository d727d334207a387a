"""The turns around a question: the system's before it, a suffix after it, the answer.

Pure functions that every kind shares, so that data.system_prompt and data.prompt_suffix mean the same to all. They do
not read rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlinf_vlm.data.kinds import KindOptions
from rlinf_vlm.types import ImagePart, Message, UserError


def ask(question: tuple[str | ImagePart, ...], said: str, options: KindOptions) -> tuple[Message, ...]:
    """The turns of one question and what the assistant says to it."""
    return dress((Message(role="user", parts=question), Message(role="assistant", parts=(said,))), options)


def dress(messages: Sequence[Message], options: KindOptions) -> tuple[Message, ...]:
    """``messages`` with the suffix after the last user turn, and the system prompt before them unless they have one."""
    dressed = list(messages)
    roles = [message.role for message in messages]
    if options.prompt_suffix is not None:
        last = len(roles) - 1 - roles[::-1].index("user")
        dressed[last] = Message(role="user", parts=_with_suffix(messages[last].parts, options.prompt_suffix))
    if options.system_prompt is not None and "system" not in roles:
        dressed.insert(0, Message(role="system", parts=(options.system_prompt,)))
    return tuple(dressed)


def boxed(answer: str) -> str:
    r"""The answer as a grader looks for it: ``5`` gives ``\boxed{5}``."""
    return f"\\boxed{{{answer}}}"


def refuse(options: KindOptions, dataset_name: str, *keys: str) -> None:
    """Raises UserError for the first of ``keys`` that is set: the kind does not read it."""
    for key in keys:
        value = getattr(options, key)
        if value is not None:
            raise UserError(
                f"data.{key}={value!r} is not read by dataset_name={dataset_name}; set it to null, or choose another "
                "data.dataset_name"
            )


def _with_suffix(parts: tuple[str | ImagePart, ...], suffix: str) -> tuple[str | ImagePart, ...]:
    """The suffix belongs to the text before it: one piece, so that it is tokenised as it reads."""
    last = parts[-1]
    if isinstance(last, ImagePart):
        return (*parts, suffix)
    parted = not last or last[-1].isspace() or suffix[:1].isspace()
    return (*parts[:-1], last + ("" if parted else "\n") + suffix)
