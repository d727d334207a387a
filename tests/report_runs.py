"""Run folders as a run would have left them, written with the package's own writers, without a run."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw
from tokenizers import Tokenizer

from rlinf_vlm.config.load import load_config
from rlinf_vlm.evaluation.answered import records_of
from rlinf_vlm.rollout.files import FOLDER, write_rollouts
from rlinf_vlm.rollout.records import Rollout, ScoredRollout, Turn
from rlinf_vlm.rollout.trained import TrainedAnswer, TrainedTokens, write_trained
from rlinf_vlm.tracking import JsonLines, TrackedRun
from tests.rollouts import scored
from tests.small_run import rl_tree, tree

GROUP = 4
"""Answers to a prompt."""


def write_run(
    folder: Path, data: Path, *, steps: int = 20, seed: int = 1, task: str = "reasoning", **changes: Any
) -> Path:
    """A run folder with config, plan, metrics, and of reinforcement learning rollouts and two evaluations.

    ``data`` holds model and rows (``small_run.write_small_run``); changes: of the config, as of ``small_run.tree``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    changes = {"actor__seed": seed, **changes}
    config = tree(data, **changes) if task == "sft" else rl_tree(data, "made_up", **changes)
    config["runner"]["logger"]["log_path"] = str(folder)
    written = load_config(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(written.model_dump(mode="json"), sort_keys=False))
    (folder / "plan.txt").write_text("Placement\n  actor 0\n")
    write_metrics(folder, sft_lines(steps, seed) if task == "sft" else rl_lines(steps, seed))
    if task != "sft":
        tokenizer = Tokenizer.from_file(str(data / "model" / "tokenizer.json"))
        for step in sorted({1, (steps + 1) // 2, steps}):
            write_step(folder, step, tokenizer, seed)
        write_evaluation(folder, steps, seed)
    return folder


def write_metrics(folder: Path, lines: Iterable[tuple[int, Mapping[str, float]]]) -> None:
    """metrics.jsonl, as a run writes it."""
    run = TrackedRun(folder=folder, project="p", experiment="e", config={}, resumed_step=None)
    backend = JsonLines(run)
    for step, metrics in lines:
        backend.log(step, metrics)
    backend.close()


def rl_lines(steps: int, seed: int) -> Iterable[tuple[int, dict[str, float]]]:
    """Metrics of reinforcement learning that goes well."""
    rng = random.Random(seed)
    every = max(1, steps // 5)
    for step in range(steps + 1):
        done = step / steps
        if step:
            yield step, _rl_step(step, done, rng)
        if step % every == 0 or step == steps:
            yield step, _evaluation(done, rng, "eval") | {"time/eval": 3.0}
            yield step, _evaluation(done, rng, "test")


def _rl_step(step: int, done: float, rng: random.Random) -> dict[str, float]:
    train = 0.6 + 0.1 * rng.random()
    parts = {"time/generate": 0.8 + 0.3 * rng.random(), "time/reward": 0.1, "time/push": 0.05, "time/train": train}
    return {
        "rollout/reward_mean": 0.2 + 0.5 * done + rng.gauss(0, 0.05),
        "rollout/response_length": 30 + 20 * done + rng.gauss(0, 2),
        "rollout/response_length_max": 60.0,
        "rollout/truncated": max(0.0, rng.gauss(0.02, 0.01)),
        "rollout/reflection_ratio": 0.1 + 0.3 * done,
        "rollout/logprob_gap": 2e-7 * math.exp(rng.gauss(0, 0.2)),
        "rollout/logprob_gap_max": 9e-6,
        "reflection/wait": rng.randint(0, 9),
        "train/loss": rng.gauss(0, 0.02),
        "train/grad_norm": 0.4 + 0.1 * rng.random(),
        "train/lr": 1e-4,
        "train/entropy": 0.9 - 0.5 * done + 0.02 * rng.random(),
        "train/epoch": step * 0.05,
        "train/kl_old": 0.0,
        "perf/tokens_per_second": 9000 + 500 * rng.random(),
        "data/dropped_prompts": 0,
        **parts,
        "time/render": 0.1,
        "time/update": train - 0.15,
        "time/step": 0.02 + sum(parts.values()),
    }


def _evaluation(done: float, rng: random.Random, split: str) -> dict[str, float]:
    found: dict[str, float] = {f"{split}/samples": 21}
    for name, start in (("accuracy", 0.2), ("sampled_accuracy", 0.15), ("pass@1", 0.15), ("cold/pass@1", 0.2)):
        value = start + 0.4 * done + rng.gauss(0, 0.01)
        found |= {f"{split}/{name}": value, f"{split}/{name}_low": value - 0.05, f"{split}/{name}_high": value + 0.05}
    return found


def sft_lines(steps: int, seed: int) -> Iterable[tuple[int, dict[str, float]]]:
    """Metrics of supervised fine-tuning."""
    rng = random.Random(seed)
    for step in range(1, steps + 1):
        yield (
            step,
            {
                "train/loss": 0.3 + 5 * math.exp(-6 * step / steps) + 0.05 * rng.random(),
                "train/grad_norm": 1 + 10 * math.exp(-4 * step / steps),
                "train/lr": 1e-3 * (1 - step / (steps + 1)),
                "train/tokens": 1800 + rng.randint(0, 99),
                "perf/tokens_per_second": 9000 + 500 * rng.random(),
                "time/step": 0.2 + 0.01 * rng.random(),
                "time/data_wait": 0.01,
            },
        )
    yield steps, {"eval/samples": 21, "eval/accuracy": 0.7, "eval/loss": 0.4, "time/eval": 2.0}


def write_step(folder: Path, step: int, tokenizer: Tokenizer, seed: int = 1, prompts: int = 6) -> None:
    """Rollouts of one step, of one to three turns, the last answer of each group not trained on."""
    rng = random.Random(1000 * seed + step)
    answers, trained = [], []
    for group in range(prompts):
        for member in range(GROUP):
            answer = conversation(tokenizer, rng, group, member)
            right = rng.random() < 0.5
            status = "timeout" if (group, member) == (0, 3) else "ok"
            parts = {"math": float(right), "format": 1.0}
            answers.append(ScoredRollout(rollout=answer, reward=float(right), parts=parts, status=status, detail="5"))
            if member < GROUP - 1:
                advantage = 0.8 if right else -0.6
                seen = tuple(value + rng.gauss(0, 0.01) for value in answer.logprobs)
                tokens = TrainedTokens(advantages=(advantage,) * len(seen), logprobs=seen)
                trained.append(TrainedAnswer(group=group, member=member, tokens=tokens))
    write_rollouts(folder / FOLDER, step, answers)
    write_trained(folder / FOLDER, step, trained)


def conversation(tokenizer: Tokenizer, rng: random.Random, group: int, member: int) -> Rollout:
    """An answer: that of member 1 has three turns with a picture between, that of member 2 is cut off."""
    texts = ["I look: é 红 <b>red</b> & \\boxed{red}", "No, wait: </script> green", "So it is \\boxed{blue}"]
    turns = []
    for number in range(3 if member == 1 else 1):
        ids = tuple(tokenizer.encode(texts[(number + group) % 3]).ids)
        cut = member == 2
        turns.append(
            Turn(
                context_ids=(1, 2) if number else (),
                observation=f"Here is part {number}: <img src=x onerror=alert(1)>" if number else "",
                images=(drawing(number, group),) if number == 1 else (),
                token_ids=ids if cut else (*ids, tokenizer.token_to_id("<|im_end|>")),
                logprobs=tuple(-abs(rng.gauss(0, 1)) for _ in range(len(ids) + (not cut))),
                text=texts[(number + group) % 3],
                finish_reason="length" if cut else "stop",
            )
        )
    return Rollout(
        row=group,
        group=group,
        member=member,
        prompt_length=20,
        prompt_digest=1,
        turns=tuple(turns),
        outcome={1: "max_turns", 2: "truncated"}.get(member, "completed"),
        env_info={"tool_calls": 2} if member == 1 else {},
        version=1,
        question="What colour is the picture?",
        answer="red",
    )


def drawing(number: int, group: int) -> bytes:
    """A PNG as an environment shows it."""
    image = Image.new("RGB", (80, 60), (250, 250, 250))
    ImageDraw.Draw(image).ellipse((10, 10, 30 + 5 * group, 50), fill=(200, 60 * number, 30))
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def write_evaluation(folder: Path, step: int, seed: int) -> None:
    """eval/step_N.jsonl of 21 rows with two sampled answers each; no metrics."""
    rng = random.Random(seed)
    greedy = [scored(row, 0, float(rng.random() < 0.5), text=f"greedy answer {row}") for row in range(21)]
    sampled = [scored(row, member, float(rng.random() < 0.5)) for row in range(21) for member in range(2)]
    records = records_of(greedy, sampled)
    (folder / "eval").mkdir(exist_ok=True)
    lines = "".join(json.dumps(record.as_json()) + "\n" for record in records)
    (folder / "eval" / f"step_{step}.jsonl").write_text(lines)
