"""An evaluation of some rows: which answers are taken, and what comes of them.

    rows of a split -> greedy answers, sampled ones, those of each of algorithm.eval_settings -> records and metrics

Every pass asks all rows, with seeds of its own. Weights are pushed, and results logged, by the caller.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from rlinf_vlm.config.schema import Config
from rlinf_vlm.evaluation.answered import AnsweredRecord, records_of, summarise
from rlinf_vlm.rollout.records import PromptRef, Sampling, ScoredRollout
from rlinf_vlm.runners.collecting import Collector, sampling_seed
from rlinf_vlm.runners.rl_plan import eval_samplings
from rlinf_vlm.runners.session import Clock


def setting_samplings(config: Config) -> dict[str, Sampling]:
    """Name -> how the further answers of an evaluation are sampled, of algorithm.eval_settings."""
    greedy, _ = eval_samplings(config)
    return {
        one.name: replace(greedy, temperature=one.temperature, top_p=one.top_p, top_k=one.top_k, n=one.n)
        for one in config.algorithm.eval_settings
    }


def evaluate_rows(
    collector: Collector, config: Config, split: Literal["eval", "test"], rows: int
) -> tuple[list[AnsweredRecord], dict[str, float]]:
    """A record of each of the ``rows`` rows of ``split``, and their metrics (``summarise``, and time/eval or time/test
    in seconds)."""
    clock = Clock()
    greedy, sampled = eval_samplings(config)
    first = collector.ask(_prompts(config, split, rows), greedy, split=split)
    said = collector.score(first.rollouts)
    more: list[ScoredRollout] = []
    if sampled is not None:
        more = collector.score(collector.ask(_prompts(config, split, rows), sampled, split=split).rollouts)
    others = {
        name: collector.score(collector.ask(_prompts(config, f"{split}:{name}", rows), one, split=split).rollouts)
        for name, one in setting_samplings(config).items()
    }
    records = records_of(said, more, first.dropped, others)
    algorithm = config.algorithm
    metrics = summarise(
        records,
        split=split,
        words=algorithm.reflection_words,
        setting_ks={one.name: one.k for one in algorithm.eval_settings},
    )
    return records, {**metrics, f"time/{split}": clock.seconds()}


def _prompts(config: Config, purpose: str, rows: int) -> list[PromptRef]:
    seed = config.actor.seed
    return [PromptRef(row=row, group=row, seed=sampling_seed(seed, row, purpose)) for row in range(rows)]
