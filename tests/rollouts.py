"""Rollouts as an engine and a reward would have made them."""

from __future__ import annotations

from rlinf_vlm.rollout.records import Rollout, ScoredRollout, Turn


def rollout(group: int = 0, member: int = 0, *, length: int = 3, prompt: int = 5, **other: object) -> Rollout:
    """An answer of ``length`` tokens to a prompt of ``prompt`` tokens; other: fields of ``Rollout``, or of its one
    ``Turn``."""
    turn = {
        "token_ids": tuple(range(length)),
        "logprobs": tuple(-1.0 / (place + 3) for place in range(length)),
        "text": "so \\boxed{5}",
        "finish_reason": "stop",
    }
    turn |= {name: other.pop(name) for name in turn if name in other}
    settings = {
        "row": group,
        "group": group,
        "member": member,
        "prompt_length": prompt,
        "prompt_digest": 17,
        "turns": (Turn(**turn),),
        "outcome": "truncated" if turn["finish_reason"] == "length" else "completed",
        "version": 0,
        "question": "what?",
        "answer": "5",
    }
    return Rollout(**(settings | other))


def scored(
    group: int = 0, member: int = 0, reward: float = 0.0, *, status: str = "ok", **other: object
) -> ScoredRollout:
    """A judged answer; other: its parts, and of ``rollout``."""
    parts = other.pop("parts", {})
    return ScoredRollout(rollout=rollout(group, member, **other), reward=reward, status=status, parts=parts)
