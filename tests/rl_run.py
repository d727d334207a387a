"""Answers to the rows of a small run as an engine would have given them, and what plain transformers says of them.

The log-probabilities come from transformers' own forward of one sample at a time, which knows nothing of packing,
positions or sharding as they are done here.
"""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import torch

from rlinf_vlm.config.load import load_config
from rlinf_vlm.config.resolve import resolve_schedule
from rlinf_vlm.rollout.batching import divide
from rlinf_vlm.rollout.records import Rollout, ScoredRollout, Turn, digest
from rlinf_vlm.types import Sample
from tests.small_run import Task, run_ranks, tree

TEMPERATURE = 0.7
NOISE = 0.02
"""Of the engine's log-probabilities around the model's own."""


def rl_tree(folder: Path, **changes: Any) -> dict[str, Any]:
    """A config of reinforcement learning over the files of a small run."""
    made: dict[str, Any] = {
        "runner__task_type": "reasoning",
        "actor__optim__clip_grad": None,
        "actor__optim__lr": 1e-3,
        "algorithm__group_size": 4,
        "algorithm__sampling_params__temperature": TEMPERATURE,
        "algorithm__sampling_params__max_new_tokens": 12,
        "data__max_prompt_length": 512,
        "data__rollout_batch_size": 6,
    }
    return tree(folder, **{**made, **changes})


def run_rl(folder: Path, world: int, task: Task, **changes: Any) -> Any:
    """What ``task`` gives, as ``to_bytes``, on rank 0 of ``world``."""
    content = run_ranks(load_config(rl_tree(folder, **changes)), world, task)[0]
    return torch.load(io.BytesIO(content), weights_only=False)


def to_bytes(value: Any) -> bytes:
    """Anything with tensors in it; those would travel by way of their process, which is gone by then."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def plain_model(folder: Path) -> Any:
    """transformers' own model of the folder, in fp32."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32).eval()


def plain_logits(model: Any, prompt: Sample, token_ids: tuple[int, ...], banned: tuple[int, ...]) -> torch.Tensor:
    """What the answer's tokens are drawn from [L, vocabulary], by transformers' forward with its own positions."""
    ids = torch.cat([prompt.input_ids, torch.tensor(token_ids, dtype=torch.int64)])[None]
    images = [image.tensors for image in prompt.images]
    inputs = {name: torch.cat([image[name] for image in images]) for name in (images[0] if images else {})}
    marks = (ids == model.config.image_token_id).int()
    logits = model(input_ids=ids, mm_token_type_ids=marks, **inputs).logits[0, prompt.prompt_length - 1 : -1].float()
    mask = torch.zeros(logits.shape[-1])
    mask[list(banned)] = float("-inf")
    return (logits + mask) / TEMPERATURE


def plain_logprobs(model: Any, prompt: Sample, token_ids: tuple[int, ...], banned: tuple[int, ...]) -> torch.Tensor:
    """The log-probability of each token of the answer [L]."""
    logprobs = plain_logits(model, prompt, token_ids, banned).log_softmax(-1)
    return logprobs.gather(1, torch.tensor(token_ids, dtype=torch.int64)[:, None])[:, 0]


def prompt_of(actor: Any, row: int) -> Sample:
    """A row's prompt, rendered."""
    found = actor.feed.answered()._readers[0].prompt(row)
    assert isinstance(found, Sample), found
    return found


def sampled(
    actor: Any, folder: Path, *, rows: int = 6, group_size: int = 4, seed: int = 0, empty: bool = True
) -> list[ScoredRollout]:
    """Random answers of 1 to 12 tokens (one of none) to the first ``rows`` rows, with rewards of 0, 0.5 and 1.

    Row 3 of a small run has no image. The same on every rank.
    """
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    model, banned = plain_model(folder), actor.feed.banned_ids
    allowed = sorted(set(range(model.config.get_text_config().vocab_size)) - set(banned))
    found = []
    for row in range(rows):
        prompt = prompt_of(actor, row)
        for member in range(group_size):
            length = 0 if empty and (row, member) == (1, 2) else rng.randint(1, 12)
            ids = tuple(rng.choices(allowed, k=length))
            with torch.no_grad():
                logprobs = plain_logprobs(model, prompt, ids, banned) if length else torch.zeros(0)
            noise = torch.randn(length, generator=generator) * NOISE
            rollout = Rollout(
                row=row,
                group=100 + row,
                member=member,
                prompt_length=prompt.prompt_length,
                prompt_digest=digest(prompt.input_ids.tolist()),
                turns=(
                    Turn(
                        token_ids=ids,
                        logprobs=tuple((logprobs + noise).tolist()),
                        text="",
                        finish_reason="length" if length == 12 else "stop",
                    ),
                ),
                outcome="truncated" if length == 12 else "completed",
                version=0,
                question="",
                answer="",
            )
            found.append(ScoredRollout(rollout=rollout, reward=rng.choice([0.0, 0.5, 1.0])))
    return found


def begin(actor: Any, config: Any, first_weights: str | None = None) -> None:
    """Loads, and gets ready to train."""
    actor.start_training(resolve_schedule(config, actor.load().train_rows), None, first_weights)


def keep_gradients(actor: Any) -> list[dict[str, torch.Tensor]]:
    """A list that each update puts its gradients in, whole, before they are applied."""
    kept: list[dict[str, torch.Tensor]] = []
    update = actor._update

    def keeping(step: int) -> float:
        named = actor.policy.module.named_parameters()
        kept.append({actor.policy.module.hf_state_name(name): _whole(value.grad) for name, value in named})
        return update(step)

    actor._update = keeping
    return kept


def _whole(gradient: Any) -> torch.Tensor:
    if gradient is None:
        return torch.zeros(0)
    return (gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient).detach().clone()


def train_on(actor: Any, config: Any, scored: list[ScoredRollout], step: int = 0) -> dict[str, float]:
    """One step on these answers, divided among the ranks."""
    count = config.algorithm.n_minibatches
    answers, shares = divide(scored, world_size=actor.context.world_size, n_minibatches=count)
    return actor.train_rollouts(step, answers, shares[actor.context.rank]).metrics
