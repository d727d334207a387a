"""What happened in one step, as plain numbers, and its file.

    ``replay`` --StepRecord--> ``by_hand``, ``tables``     record <--> one JSON file

Everything that the trainer computed is here as it came out of it; nothing is derived. All log-probabilities are in
nats. A step has S answers with N tokens in all, which stand in the order of the update. Loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlinf_vlm.types import UserError

Floats = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What of the config the step depends on, by its names there; upper: of algorithm.rollout_correction, None where
    that is off; lr: of this step."""

    kl_beta: float
    kl_penalty_type: str
    clip_ratio_low: float
    clip_ratio_high: float
    upper: float | None
    clip_grad: float | None
    lr: float
    adam_beta1: float
    adam_beta2: float
    adam_eps: float
    weight_decay: float
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer of L tokens. question, gold, text: of the row, and what was answered; pieces [L]: its tokens as text;
    engine, old, reference [L]: log-probability by the engine, by the trainer before the step, by the reference;
    kl_rewards, advantages [L]: as the trainer has them. reference and kl_rewards are empty without a divergence.
    """

    row: int
    question: str
    gold: str
    text: str
    reward: float
    prompt_length: int
    pieces: tuple[str, ...]
    engine: Floats
    old: Floats
    reference: Floats
    kl_rewards: Floats
    advantages: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One optimizer update. first, answers: the place of its first answer among the step's, and how many it has;
    new [tokens of these]: log-probability by the weights that it starts from; denominator, loss: the number of its
    tokens, and what is minimised; grad_norm: before clipping; the rest is of one weight: value before and after,
    its gradient after clipping, the moments and the number of updates before this one."""

    first: int
    answers: int
    new: Floats
    denominator: float
    loss: float
    grad_norm: float
    weight: float
    weight_after: float
    gradient: float
    moment1: float
    moment2: float
    updates_before: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """name, shape and dtype of a tensor of the first micro-batch, and letters for the shape."""

    name: str
    shape: tuple[int, ...]
    letters: str
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A token of the first sample: its text, whether it is supervised (its label is set), its three positions."""

    piece: str
    supervised: bool
    position: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step. step: its number, from 1; weight_name: of the weight in ``Update``; metrics: as they are logged."""

    experiment: str
    step: int
    settings: Settings
    answers: tuple[Answer, ...]
    updates: tuple[Update, ...]
    tensors: tuple[Tensor, ...]
    first_sample: tuple[Place, ...]
    weight_name: str
    metrics: Mapping[str, float]


def write_record(file: Path, record: StepRecord) -> None:
    """Writes ``record``; the floats that are read back are the same."""
    file.write_text(json.dumps(asdict(record), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_record(file: Path) -> StepRecord:
    """What ``write_record`` wrote. Raises UserError for a file that is something else."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        return StepRecord(
            **{
                **tree,
                "settings": Settings(**tree["settings"]),
                "answers": tuple(Answer(**_frozen(item)) for item in tree["answers"]),
                "updates": tuple(Update(**_frozen(item)) for item in tree["updates"]),
                "tensors": tuple(Tensor(**_frozen(item)) for item in tree["tensors"]),
                "first_sample": tuple(Place(**_frozen(item)) for item in tree["first_sample"]),
            }
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: no record of a step ({error}); make one with --save") from error


def _frozen(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in item.items()}
