"""The data of reinforcement learning that crosses borders, as plain dataclasses; loads no torch.

    runner: PromptRef --rollout worker--> Rollout --reward worker--> ScoredRollout --runner: RankShare--> actor

A row's images do not travel: a rollout names its row, and whoever needs the pictures reads and renders that row
itself; the digest of the prompt's ids lets both sides make sure that they rendered the same. What an environment shows
is in no row and travels with the turn. G answers to one prompt are a group.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from rlinf_vlm.types import UserError

FinishReason = Literal["stop", "length"]
"""Why a turn ended: it came to its end, or to the limit of tokens."""
Outcome = Literal["completed", "max_turns", "truncated", "env_error"]
"""How a conversation ended: its environment was done; the environment was not, after env.max_turns turns; a turn or the
whole came to its limit of tokens; the environment failed, so that nothing can be said of the answer."""
Split = Literal["train", "eval", "test"]
"""Which rows: of data.train_data_paths, data.eval_data_paths, data.test_data_paths."""
COMPLETED, MAX_TURNS, TRUNCATED, ENV_ERROR = get_args(Outcome)


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
    """A prompt to be answered: ``row`` of the rows of a ``Split``; group: its number in the run's stream of
    prompts (in evaluation: the row); seed: of its sampling, from which each of its answers has its own."""

    row: int
    group: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What the model was told since it last spoke, and what it then said.

    context_ids [C]: of the chat template and the environment's observation, image tokens expanded; empty in a first
    turn that the prompt alone leads to; observation: its text; images: its pictures in order, contents of PNG files;
    token_ids [L]: what the engine generated, the end-of-turn token included where it came; logprobs [L]: the engine's
    log-probability of each, of the distribution that it was drawn from; text: token_ids without special tokens;
    finish_reason: see ``FinishReason``.
    """

    context_ids: tuple[int, ...] = ()
    observation: str = ""
    images: tuple[bytes, ...] = ()
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason

    def __post_init__(self) -> None:
        """Raises ValueError unless there is a log-probability for every token."""
        if len(self.token_ids) != len(self.logprobs):
            raise ValueError(f"{len(self.token_ids)} tokens, but {len(self.logprobs)} log-probabilities")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled answer: a conversation, most often of one turn.

    row, group: as in ``PromptRef``; member: which of the group's answers, from 0.
    prompt_length: leading tokens of the row's rendered prompt that the first turn stands on, image tokens expanded: all
    of them, or those before its last mark where the environment begins with an observation; prompt_digest: ``digest``
    of those ids; turns: in order, none where the environment failed before the first; outcome: see ``Outcome``;
    outcome_detail: why, of an env_error; env_info: what the environment's last step told, plain data; version: of the
    weights that sampled; question, answer, choices: of the row.
    """

    row: int
    group: int
    member: int
    prompt_length: int
    prompt_digest: int
    turns: tuple[Turn, ...]
    outcome: Outcome
    outcome_detail: str = ""
    env_info: Mapping[str, Any] = field(default_factory=dict)
    version: int
    question: str
    answer: str
    choices: tuple[str, ...] = ()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All that the model generated [L], without what it was told."""
        return tuple(token for turn in self.turns for token in turn.token_ids)

    @property
    def logprobs(self) -> tuple[float, ...]:
        """The engine's log-probability of each of ``token_ids`` [L]."""
        return tuple(value for turn in self.turns for value in turn.logprobs)

    @property
    def text(self) -> str:
        """What the model said, turn by turn, and nothing else."""
        return "\n".join(turn.text for turn in self.turns)

    @property
    def finish_reason(self) -> FinishReason:
        """ "length" where it was cut."""
        return "length" if self.outcome == TRUNCATED else "stop"

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole conversation, the prompt included."""
        return self.prompt_length + sum(len(turn.context_ids) + len(turn.token_ids) for turn in self.turns)


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
    """UserError unless ``token_ids`` [P], the row's prompt as rendered here, begin with those that ``rollout`` stands
    on."""
    continued = bool(rollout.turns and rollout.turns[0].context_ids)
    kept = token_ids[: rollout.prompt_length] if continued else token_ids
    if len(kept) != rollout.prompt_length or digest(kept) != rollout.prompt_digest:
        raise UserError(
            f"row {rollout.row}: its prompt has {len(token_ids)} tokens here and {rollout.prompt_length} where it was "
            "answered, or other ones; the rows, the model's tokenizer or data.* settings have changed since: use those "
            "that the rollouts were made with"
        )
