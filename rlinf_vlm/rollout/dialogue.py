"""One conversation's ids, in two tracks that grow side by side: as the engine takes them, and as it must see them.

    RowPrompt -> Dialogue.prompt -> engine -> ``say`` (what it generated) -> ``tell`` (an observation) -> .prompt -> ..

Invariants: ids are appended and never changed or tokenised again; the two tracks differ by the expansion of image
tokens alone; ``turns`` holds exactly what was said and told, so that prompt + turns is the second track.
Not here: when a conversation ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlinf_vlm.data.images import load_image
from rlinf_vlm.data.turns import Told, TurnRenderer
from rlinf_vlm.rollout.observations import ShownMessage
from rlinf_vlm.rollout.prompts import Prompt, RowPrompt
from rlinf_vlm.rollout.records import FinishReason, Turn, digest
from rlinf_vlm.types import ProcessedImage, RowError


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the engine generated in one turn, see ``Turn``."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservationLimits:
    """Most tokens, image tokens included: of the prompt with an opening observation, and of an observation."""

    prompt_tokens: int
    observation_tokens: int


class Dialogue:
    """A conversation that begins with a row's prompt."""

    def __init__(
        self,
        row: RowPrompt,
        renderer: TurnRenderer,
        process: Callable[[bytes], ProcessedImage],
        limits: ObservationLimits,
        longest_token: int,
    ) -> None:
        """process: a PNG's content -> image as the trainer's processor makes it; longest_token: characters of the
        longest token that the tokenizer knows."""
        self._row = row
        self._renderer = renderer
        self._process = process
        self._limits = limits
        self._longest_token = longest_token
        self._ids = list(row.prompt.token_ids)
        self._seen = list(row.prompt.seen_ids)
        self._images: list[Any] = list(row.prompt.images)
        self._told = Told(token_ids=(), seen_ids=())
        self._shown: ShownMessage | None = None
        self._kept = len(self._seen)
        self._turns: list[Turn] = []

    @property
    def prompt(self) -> Prompt:
        """What the engine is asked to continue now."""
        return Prompt(token_ids=tuple(self._ids), images=tuple(self._images), seen_ids=tuple(self._seen))

    @property
    def turns(self) -> tuple[Turn, ...]:
        """What was said so far."""
        return tuple(self._turns)

    @property
    def num_generated(self) -> int:
        """Tokens that the policy generated so far."""
        return sum(len(turn.token_ids) for turn in self._turns)

    @property
    def prompt_length(self) -> int:
        """Leading tokens of the row's prompt that stand before the first turn's context."""
        return self._kept

    @property
    def prompt_digest(self) -> int:
        """Of those tokens."""
        return digest(self._row.prompt.seen_ids[: self._kept])

    def open(self, shown: ShownMessage) -> None:
        """An observation follows the prompt, before the first turn. Raises RowError where it cannot be shown."""
        assert not self._turns, "the first turn comes after the opening"
        limit = self._limits.prompt_tokens
        images = self._images_of(shown, limit)
        given_way, told = self._renderer.after_prompt(self._row.conversation, shown.message, images)
        self._kept = len(self._seen) - given_way
        if self._kept + len(told.seen_ids) > limit:
            raise RowError(
                f"prompt and opening observation have {self._kept + len(told.seen_ids)} tokens, more than "
                f"data.max_prompt_length={limit}"
            )
        del self._ids[len(self._ids) - given_way :], self._seen[self._kept :]
        self._append(shown, told)

    def say(self, said: Said) -> None:
        """The policy's turn."""
        shown = self._shown
        self._turns.append(
            Turn(
                context_ids=self._told.seen_ids,
                observation="" if shown is None else shown.text,
                images=() if shown is None else shown.images,
                token_ids=said.token_ids,
                logprobs=said.logprobs,
                text=said.text,
                finish_reason=said.finish_reason,
            )
        )
        self._ids += said.token_ids
        self._seen += said.token_ids
        self._told, self._shown = Told(token_ids=(), seen_ids=()), None

    def tell(self, shown: ShownMessage) -> None:
        """An observation follows the policy's turn. Raises RowError where it cannot be shown."""
        limit = self._limits.observation_tokens
        images = self._images_of(shown, limit)
        told = self._renderer.after_answer(shown.message, images, last_id=self._ids[-1])
        if len(told.seen_ids) > limit:
            raise RowError(
                f"an observation has {len(told.seen_ids)} tokens, more than env.max_observation_tokens={limit}"
            )
        self._append(shown, told)

    def _append(self, shown: ShownMessage, told: Told) -> None:
        self._told, self._shown = told, shown
        self._ids += told.token_ids
        self._seen += told.seen_ids
        self._images += [load_image(content) for content in shown.images]

    def _images_of(self, shown: ShownMessage, limit: int) -> Sequence[ProcessedImage]:
        """The processed images; a text that cannot fit is refused before it is tokenised, which takes seconds."""
        if len(shown.text) > limit * self._longest_token:
            raise RowError(f"an observation has {len(shown.text):,} characters, which {limit} tokens cannot hold")
        return [self._process(content) for content in shown.images]
