"""The blocks of reinforcement learning: ``algorithm``, ``rollout``, ``env``, ``reward``. Supervised fine-tuning reads
none."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rlinf_vlm.config.actor import Precision, Switch
from rlinf_vlm.config.base import Block

MIN_TEMPERATURE = 0.01
"""What vLLM raises lower temperatures to; 0 is none of them."""
REFLECTION_WORDS = (
    "re-check",
    "re-evaluate",
    "re-examine",
    "re-think",
    "recheck",
    "reevaluate",
    "reexamine",
    "reevaluation",
    "rethink",
    "check again",
    "think again",
    "try again",
    "verify",
    "wait",
    "yet",
)
"""Words by which an answer goes back to what it said: the list of MAYE (Ma et al., "Rethinking RL Scaling for Vision
Language Models", arXiv:2504.02587)."""


class SamplingConfig(Block):
    """How answers are sampled."""

    temperature: float = Field(default=1.0, ge=0.0)
    """Divides the logits; 0 takes the likeliest token each time (in evaluation only)."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Sample among the likeliest tokens that together have this probability; 1 is all. What answers are trained on are
    drawn from all tokens: a cut would bias the log-probabilities."""
    top_k: int = Field(default=-1, ge=-1)
    """Sample among so many likeliest tokens; -1 is all."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Most tokens of an answer, its end-of-turn token included."""

    @model_validator(mode="after")
    def _consistent(self) -> SamplingConfig:
        if self.top_k == 0:
            raise ValueError("top_k=0 leaves no token to sample; set it to -1 for all, or to at least 1")
        return self


class EvalSamplingConfig(SamplingConfig):
    """How answers are sampled in evaluation, beside the greedy ones."""

    n: int = Field(default=0, ge=0)
    """Answers to each row at this temperature, for eval/pass@k; 0 takes greedy answers only."""


class EvalSettingConfig(Block):
    """One more way of sampling in evaluation, with figures of its own under eval/NAME/ and test/NAME/."""

    name: str
    """What its figures are called: letters, digits and any of _ . - between them."""
    temperature: float = Field(ge=0.0)
    """Divides the logits; 0 takes the likeliest token each time. Engines know no temperature between 0 and 0.01."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Sample among the likeliest tokens that together have this probability; 1 is all."""
    top_k: int = Field(default=-1, ge=-1)
    """Sample among so many likeliest tokens; -1 is all."""
    n: int = Field(default=1, ge=1)
    """Answers to each row."""
    k: int | None = Field(default=None, ge=1)
    """Which pass@k is reported, at most n; null: 1, 2, 4, .. up to n."""

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?", value):
            raise ValueError(f"{value!r} cannot be part of a metric's name; use letters, digits, '_', '.' and '-'")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> EvalSettingConfig:
        if self.top_k == 0:
            raise ValueError("top_k=0 leaves no token to sample; set it to -1 for all, or to at least 1")
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise ValueError(
                f"temperature={self.temperature:g} is below {MIN_TEMPERATURE:g}, which an engine would raise it to; "
                f"set it to 0 for the likeliest tokens, or to at least {MIN_TEMPERATURE:g}"
            )
        if self.temperature == 0 and self.n > 1:
            raise ValueError(
                f"temperature=0 would give n={self.n} equal answers to each row; set n=1, or a temperature"
            )
        if self.k is not None and self.k > self.n:
            raise ValueError(f"k={self.k} is more than the n={self.n} answers to a row; lower k, or raise n")
        return self


class OverlongConfig(Block):
    """Soft punishment of long answers (DAPO)."""

    buffer: int = Field(default=0, ge=0)
    """Tokens before max_new_tokens over which the punishment grows from 0 to factor; 0 punishes nothing."""
    factor: float = Field(default=1.0, ge=0.0)
    """What is taken off the reward of an answer that reaches the limit."""
    filter_truncated: bool = False
    """Leave answers that were cut off at the limit out of the loss (they still count in their group's statistics)."""


class DynamicSamplingConfig(Block):
    """Drop groups whose answers all have one reward, and ask other prompts instead (DAPO)."""

    enabled: bool = False
    """Whether to."""
    max_rounds: int = Field(default=3, ge=1)
    """Times that prompts are asked in one step, the first included; then the step trains on the groups that it has."""


class RolloutCorrectionConfig(Block):
    """Importance weights between the engine that sampled and the trainer (truncated importance sampling)."""

    enabled: bool = True
    """Whether to."""
    level: Literal["token", "sequence", "geometric"] = "token"
    """What has one ratio: a token, an answer (product over its tokens), or an answer (their geometric mean)."""
    mode: Literal["truncate", "mask"] = "truncate"
    """Ratios above upper are set to it, or those outside of lower and upper to 0."""
    upper: float = Field(default=2.0, gt=0.0)
    """Largest ratio."""
    lower: float = Field(default=0.0, ge=0.0)
    """Smallest ratio, read by mask."""

    @model_validator(mode="after")
    def _ordered(self) -> RolloutCorrectionConfig:
        if self.lower >= self.upper:
            raise ValueError(f"lower={self.lower} is not below upper={self.upper}; lower it")
        return self


class AlgorithmConfig(Block):
    """RL's algorithm; supervised fine-tuning reads nothing of it."""

    adv_type: str = "grpo"
    """Advantage estimator: grpo, grpo_no_std (Dr.GRPO), rloo, reinpp, reinpp_baseline, or package.module:function. gae
    is read for RLinf's SFT configs, and needs a critic, which there is not."""
    group_size: int = Field(default=8, ge=1)
    """Answers to each prompt. The group estimators compare them, and need at least 2."""
    n_minibatches: int = Field(default=1, ge=1)
    """Optimizer updates of a step. 1 is strictly on-policy: the log-probabilities of before the update are those of
    the update itself, and no pass is made for them."""
    loss_type: str = "clipped"
    """Policy loss: clipped (PPO's surrogate), gspo, cispo, or package.module:function."""
    loss_agg_func: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"] = "token-mean"
    """What a step's loss is the mean of: tokens, answers (each the mean of its tokens), or answers (each the sum of its
    tokens over max_new_tokens)."""
    clip_ratio_low: float = Field(default=0.2, ge=0.0)
    """The probability ratio is kept above 1 - this. Usual: 0.2 for the ratio of a token (clipped), 3e-4 for that of an
    answer (gspo), 1.0 for cispo, which is no bound."""
    clip_ratio_high: float = Field(default=0.28, ge=0.0)
    """The probability ratio is kept below 1 + this. Usual: 0.28, for gspo 4e-4."""
    clip_ratio_c: float | None = Field(default=None, gt=1.0)
    """Dual clip: the most that a negative advantage is multiplied by, above 1 (3 is usual); null bounds nothing. cispo
    does not read it."""
    kl_beta: float = Field(default=0.0, ge=0.0)
    """Weight of the divergence from the reference, which is the model that the run began with; 0 builds no
    reference."""
    kl_penalty_type: Literal["k1", "k2", "k3"] = "k3"
    """Estimate of the divergence. k1 has a mean gradient of 0 in the loss and restrains nothing there: use it in the
    reward."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the divergence counts."""
    entropy_bonus: float = Field(default=0.0, ge=0.0)
    """Weight of the policy's entropy (in nats) in the loss, to be kept high; 0 only logs it."""
    rollout_correction: RolloutCorrectionConfig = RolloutCorrectionConfig()
    """Correction of the difference between engine and trainer."""
    dynamic_sampling: DynamicSamplingConfig = DynamicSamplingConfig()
    """Drop groups that teach nothing."""
    overlong: OverlongConfig = OverlongConfig()
    """What becomes of answers that are too long."""
    sampling_params: SamplingConfig = SamplingConfig()
    """Of the answers that are trained on."""
    eval_sampling_params: EvalSamplingConfig = EvalSamplingConfig()
    """Of evaluation's sampled answers; its max_new_tokens holds for the greedy ones too, and for eval_settings."""
    eval_settings: tuple[EvalSettingConfig, ...] = ()
    """Further answers to each evaluation and test row, a list of {name, temperature, top_p, top_k, n, k}: MAYE takes
    pass@8 at temperature 1, pass@1 at 0.6, and pass@1 at 0.01 with top_p 0.001. [] takes none."""
    reflection_words: tuple[str, ...] = REFLECTION_WORDS
    """Words and phrases that count as reflection, matched as whole words in any case. Left out: the 15 of MAYE. []
    counts none."""

    @field_validator("eval_settings")
    @classmethod
    def _named_once(cls, value: tuple[EvalSettingConfig, ...]) -> tuple[EvalSettingConfig, ...]:
        names = [setting.name for setting in value]
        if len(set(names)) != len(names):
            raise ValueError(f"two settings have one name (names: {', '.join(names)}); rename one of them")
        return value

    @field_validator("reflection_words")
    @classmethod
    def _listed_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        words = tuple(" ".join(word.lower().split()) for word in value)
        if not all(words):
            raise ValueError("has an empty word; take it out")
        if len(set(words)) != len(words):
            raise ValueError(f"names a word twice (words: {', '.join(words)}); name it once")
        return words


class RolloutConfig(Block):
    """The engines that sample answers: vLLM, one for each placement entry. Supervised fine-tuning has none."""

    group_name: str = "RolloutGroup"
    """Name of the worker group in logs."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs (on CPUs: worker slots) of one engine; those that the rollout is placed on are divided into engines of so
    many."""
    dtype: Literal["auto"] | Precision = "auto"
    """What the engine computes in; auto: as the actor does."""
    gpu_memory_utilization: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Part of a GPU's memory that an engine takes for weights and KV cache."""
    kv_cache_gib: float = Field(default=1.0, gt=0.0)
    """KV cache of an engine on a CPU, in GiB of host memory. Not read on a GPU."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Most answers that an engine generates at the same time; the others wait."""
    enforce_eager: Switch = "auto"
    """Do not compile the engine's model nor record CUDA graphs: starts sooner, generates slower. auto: on a CPU."""
    prefix_caching: bool = True
    """Compute a prompt once for all answers to it."""
    sleep: Switch = "auto"
    """Give the engine's memory back while the actor trains on the same GPU. auto: where they share one; a CPU engine
    cannot."""
    sync_bucket_mib: int = Field(default=512, ge=1)
    """MiB of weights that are pushed at a time."""
    mm_processor_kwargs: dict[str, Any] | None = None
    """Options of the engine's image processor; null: those of the trainer (data.min_pixels, data.max_pixels). Anything
    that makes other image tokens than the trainer's is an error."""
    max_logprob_gap: float | None = Field(default=None, gt=0.0)
    """Stop when the mean difference between the trainer's and the engine's log-probabilities of a step's tokens is
    larger than this, in nats: then they are not the same model. null: 0.05 where the actor computes in fp32, 0.2 in
    bf16."""
    engine_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of vLLM's engine, by its names."""


class EnvConfig(Block):
    """What the policy speaks with, turn by turn. Supervised fine-tuning has none."""

    name: str = "single_turn"
    """single_turn (the first answer is the whole conversation), geo3k_tool (a tool that scores an answer), crop_zoom (a
    tool that shows a part of the picture, enlarged), or package.module:build_env."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the environment."""
    eval_options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments in evaluation, in place of those of the same name, such as {tool: false}: a tool that knows the
    right answer makes an evaluation worthless."""
    max_turns: int = Field(default=1, ge=1)
    """Most turns of the policy in a conversation; one that is not over then is counted as rollout/max_turns."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of one turn, its end-of-turn token included. null: no limit but that of the whole conversation, which
    is max_new_tokens of the sampling_params and counts what the policy generates in all turns."""
    max_observation_tokens: int = Field(default=512, ge=1)
    """Most tokens of an observation, with its image tokens and the chat template around it; a longer one is an error of
    the environment. Read where max_turns is above 1."""
    time_limit: float = Field(default=30.0, gt=0.0)
    """Seconds that one call of the environment may take; then its conversation ends with the outcome env_error."""

    @property
    def observation_room(self) -> int:
        """Most tokens of all observations between the turns of a conversation."""
        return (self.max_turns - 1) * self.max_observation_tokens


class RewardConfig(Block):
    """How answers are scored. Supervised fine-tuning reads nothing of it."""

    use_reward_model: Literal[False] = False
    """Reward models are not available: must be false."""
    name: str = "math"
    """math, geo3k (with a tolerance), choice, format, composite (a weighted sum), or package.module:Thing. An answer
    of reward 1 or more counts as right in eval/accuracy."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the reward, such as {tolerance: 0.05}."""
    num_workers: int = Field(default=2, ge=1)
    """Processes that score."""
    time_limit: float = Field(default=10.0, gt=0.0)
    """Seconds that one answer may take; then it is counted under reward/failed_timeout and not trained on."""
