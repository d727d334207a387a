"""The data of reinforcement learning that crosses borders, as plain dataclasses; loads no torch.

    runner: PromptRef --rollout worker--> Rollout --reward worker--> ScoredRollout --runner: RankShare--> actor

Images do not travel: a rollout names its row, and whoever needs the pictures reads and renders that row itself. The
digest of the prompt's ids lets both sides make sure that they rendered the same. G answers to one prompt are a group.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rlinf_vlm.types import UserError

FinishReason = Literal["stop", "length"]
"""Why an answer ended: it came to its end, or to the limit of tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are sampled.

    temperature: 0 takes the likeliest token each time; top_p, top_k: 1.0 and -1 cut nothing; max_new_tokens: most
    tokens of an answer, its end included; n: answers to each prompt.
    """

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRef:
    """A prompt to be answered: ``row`` of the training or evaluation rows; group: its number in the run's stream of
    prompts (in evaluation: the row); seed: of its sampling, from which each of its answers has its own."""

    row: int
    group: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled answer.

    row, group: as in ``PromptRef``; member: which of the group's answers, from 0.
    prompt_length: tokens of the prompt, image tokens expanded; prompt_digest: ``digest`` of those ids;
    token_ids [L]: what the engine generated, the end-of-turn token included where it came; logprobs [L]: the engine's
    log-probability of each, of the distribution that it was drawn from; text: token_ids without special tokens;
    finish_reason: see ``FinishReason``; version: of the weights that sampled; question, answer: of the row.
    """

    row: int
    group: int
    member: int
    prompt_length: int
    prompt_digest: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    version: int
    question: str
    answer: str

    def __post_init__(self) -> None:
        """Raises ValueError unless there is a log-probability for every token."""
        if len(self.token_ids) != len(self.logprobs):
            raise ValueError(f"{len(self.token_ids)} tokens, but {len(self.logprobs)} log-probabilities")

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and answer."""
        return self.prompt_length + len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedPrompt:
    """A prompt that could not be asked, and why, with file and row."""

    row: int
    group: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What one rollout worker made of its prompts: all answers of a prompt follow each other, in the order of members.

    seconds: wall clock of the generation; preemptions and the like are not told.
    """

    rollouts: tuple[Rollout, ...]
    dropped: tuple[DroppedPrompt, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollout:
    """A rollout with its reward. parts: of the reward, by name; status: of ``rewards.protocol``; an answer
    whose status is not among ``JUDGED`` is counted and not trained on."""

    rollout: Rollout
    reward: float
    parts: Mapping[str, float] = field(default_factory=dict)
    status: str = "ok"
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepAnswers:
    """All answers that one step trains on, S of them, as plain numbers: every actor rank is given the same.

    They stand in the order of the update: by mini-batch, within it by rank. rewards, groups, lengths [S]: reward, group
    and number of generated tokens of each; minibatches: answers of each mini-batch, sum S.
    """

    rewards: tuple[float, ...]
    groups: tuple[int, ...]
    lengths: tuple[int, ...]
    minibatches: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankShare:
    """One actor rank's part of a step: for each mini-batch its rollouts, and the place of the first in ``StepAnswers``
    (they follow each other). A mini-batch may be empty on a rank. groups of one prompt stay on one rank."""

    minibatches: tuple[tuple[Rollout, ...], ...]
    places: tuple[int, ...]


def digest(token_ids: Sequence[int]) -> int:
    """CRC-32 of token ids."""
    return zlib.crc32(array("q", token_ids).tobytes())


def check_same_prompt(rollout: Rollout, token_ids: Sequence[int]) -> None:
    """UserError unless ``token_ids`` [P], as rendered here, are those that ``rollout`` answers."""
    if len(token_ids) != rollout.prompt_length or digest(token_ids) != rollout.prompt_digest:
        raise UserError(
            f"row {rollout.row}: its prompt has {len(token_ids)} tokens here and {rollout.prompt_length} where it was "
            "answered, or other ones; the rows, the model's tokenizer or data.* settings have changed since: use those "
            "that the rollouts were made with"
        )
