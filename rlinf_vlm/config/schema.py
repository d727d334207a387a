"""The whole config as frozen pydantic blocks: cluster, runner, data, actor, and what RL adds.

Every field's docstring says its unit, its range and what null or -1 means; it is shown with the error when a value does
not fit. Defaults are the recommended setting. Names follow RLinf's YAML, so that its VLM SFT guide runs as written.
This module checks fields by themselves; ``resolve`` checks them against each other and against the machine.
"""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rlinf_vlm.config.actor import ActorConfig
from rlinf_vlm.config.base import Block, merge_alias
from rlinf_vlm.config.rl import AlgorithmConfig, EnvConfig, RewardConfig, RolloutConfig


class NodeGroupConfig(Block):
    """A named set of nodes that placements can refer to."""

    label: str
    """Name of the group."""
    node_ranks: str | int
    """Ranks of its nodes: 2, "0-3" or "0-1,4"."""


class GroupPlacement(Block):
    """The long form of a placement."""

    node_group: str | tuple[str, ...] = "cluster"
    """Label(s) of node groups; cluster is every node, node places one process per node without accelerators."""
    placement: str | int
    """Resources and processes, such as all, 0-7 or "0-1:0-3"."""


class ClusterConfig(Block):
    """The machines and which component runs where."""

    num_nodes: int = Field(default=1, ge=1)
    """Nodes that must be in the Ray cluster before the run starts."""
    node_wait_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds to wait for num_nodes nodes and for free resources before giving up."""
    cpu_workers_per_node: int = Field(default=1, ge=1)
    """Worker slots of a node without accelerators; its cores are divided among them."""
    component_placement: dict[str, str | int | GroupPlacement] = {"actor": "all"}  # noqa: RUF012 (pydantic copies it)
    """Component(s) -> resources and processes, in RLinf's grammar: {"actor": all}, {"actor,rollout": 0-7}."""
    node_groups: tuple[NodeGroupConfig, ...] = ()
    """Named node groups for the long form of a placement."""

    @field_validator("node_groups")
    @classmethod
    def _distinct(cls, value: tuple[NodeGroupConfig, ...]) -> tuple[NodeGroupConfig, ...]:
        labels = [group.label for group in value]
        if len(set(labels)) != len(labels):
            raise ValueError(f"two groups have one label (labels: {', '.join(labels)}); rename one of them")
        return value


class LoggerConfig(Block):
    """Where the run writes."""

    log_path: str = "logs/run"
    """Run folder. The launcher sets it to logs/<time>."""
    project_name: str = "rlinf_vlm"
    """Project in wandb and swanlab."""
    experiment_name: str = "sft"
    """Run name in wandb and swanlab, and folder of the checkpoints inside log_path."""
    logger_backends: tuple[Literal["tensorboard", "wandb", "swanlab"], ...] = ("tensorboard",)
    """Backends beside metrics.jsonl, which is always written. wandb and swanlab need their extras installed."""

    @field_validator("experiment_name")
    @classmethod
    def _one_folder(cls, value: str) -> str:
        if not value or "/" in value or value in (".", ".."):
            raise ValueError(f"{value!r} does not name a folder; use letters, digits, '-', '_' and '.'")
        return value


class RunnerConfig(Block):
    """How long the run is and what it does on the way."""

    task_type: Literal["sft", "reasoning"]
    """What is run: sft is supervised fine-tuning, reasoning is reinforcement learning on graded answers. Both evaluate
    too, and only evaluate when data.train_data_paths is null."""
    logger: LoggerConfig = LoggerConfig()
    """Logging."""
    max_epochs: int = Field(default=-1, ge=-1)
    """Passes over the training rows; -1 is unset. The smaller of max_epochs and max_steps ends the run."""
    max_steps: int = Field(default=-1, ge=-1)
    """Optimizer steps; -1 is unset."""
    val_check_interval: int = Field(default=-1, ge=-1)
    """Evaluate every so many optimizer steps and at the end; -1 never evaluates."""
    eval_image_ablation: bool = False
    """Evaluate a second time with every image an even grey picture of its size (eval/accuracy_blank_image): a model
    that does not look is as good then. Evaluations take twice as long."""
    save_interval: int = Field(default=-1, ge=-1)
    """Save every so many optimizer steps, at the end and on SIGTERM; -1 never saves."""
    save_full_weights: bool = True
    """Write all weights also as one file with Hugging Face names (model_state_dict/full_weights.pt) in each checkpoint.
    The converter reads the sharded files as well."""
    keep_last: int | None = Field(default=None, ge=1)
    """Checkpoints to keep: this many of the newest, older ones are removed when a new one is finished. null keeps
    all."""
    keep_best: Literal["eval/accuracy", "eval/choice_accuracy", "eval/loss", "train/loss"] | None = None
    """Keep also the checkpoint that is best by this metric (highest accuracy, lowest loss), of those whose step has
    it: let save_interval be a multiple of val_check_interval. Needs keep_last. null keeps none besides."""
    resume_dir: str | None = None
    """Go on from a checkpoint, in its run folder: a global_step_N folder, a folder above it (then the newest in it), or
    auto (the newest of this experiment_name among this and its neighbouring run folders; none: start anew). Without
    training rows, the checkpoint is evaluated. null starts anew."""
    resume_force: bool = False
    """Resume although model, data or batch differ from what the checkpoint was trained with."""
    ckpt_path: str | None = None
    """Take the weights, and only them, from a checkpoint of this trainer: a global_step_N folder, its dcp_checkpoint or
    its full_weights.pt. null takes those of actor.model.model_path."""
    replay_rollouts: str | None = None
    """Train from the recorded answers in this folder (the rollouts/ of a run: step_1.jsonl, ..) instead of sampling: no
    engine, no reward. null samples. Reinforcement learning only."""
    report: bool = True
    """Write report/index.html and PNG files of the curves into the run folder when the run ends, also on SIGTERM."""
    dry_run: bool = False
    """Check everything, print the plan, start nothing."""

    @field_validator("resume_dir", "ckpt_path")
    @classmethod
    def _expanded(cls, value: str | None) -> str | None:
        if value == "":
            raise ValueError("is empty; give a folder, or null")
        return None if value is None else os.path.expanduser(value)

    @model_validator(mode="after")
    def _consistent(self) -> RunnerConfig:
        if self.resume_dir is not None and self.ckpt_path is not None:
            raise ValueError(
                f"resume_dir={self.resume_dir!r} and ckpt_path={self.ckpt_path!r} both say where weights come from; "
                "set one of them to null (resume_dir goes on with the run, ckpt_path begins a new one)"
            )
        if self.keep_best is not None and self.keep_last is None:
            raise ValueError(
                f"keep_best={self.keep_best!r} has no effect while keep_last=null keeps every checkpoint; set keep_last"
            )
        return self

    @field_validator("max_epochs", "max_steps", "val_check_interval", "save_interval")
    @classmethod
    def _not_zero(cls, value: int) -> int:
        if value == 0:
            raise ValueError("is 0; give at least 1, or -1 to switch it off")
        return value


KIND_COLUMNS: dict[str, dict[str, Any]] = {
    "geo3k": {"prompt_key": "problem", "image_keys": ("images",)},
    "maye": {"solution_key": "solution"},
}
"""data.dataset_name -> the columns that it has by other names than a field's default."""


class DataConfig(Block):
    """Files, columns, and how rows become samples."""

    type: Literal["vlm"] = "vlm"
    """Kind of data: images and text."""
    dataset_name: str = "robo2vlmsft"
    """How a row is read: robo2vlmsft (choice question), messages (chat or question/answer), geo3k or maye (question
    whose answer is graded), or package.module:Thing."""
    train_data_paths: str | tuple[str, ...] | None
    """Training rows: a parquet, json, jsonl or arrow file, a folder, a glob, a list of them, or a hub id "org/name" or
    "org/name:split" (split train if unnamed). null evaluates only."""
    eval_data_paths: str | tuple[str, ...] | None = None
    """Evaluation rows, likewise (a hub id's split is test if unnamed). null never evaluates. Also read as
    val_data_paths."""
    test_data_paths: str | tuple[str, ...] | None = None
    """Rows that are evaluated besides, at the same steps, as test/...: a checkpoint is chosen by the evaluation rows
    and reported on these. Given likewise; needs eval_data_paths. Reinforcement learning only. null has none."""
    prompt_key: str = "question"
    """Column of the question. Left out: question, of geo3k problem."""
    choice_key: str | None = None
    """Column of the choices; null for open questions."""
    answer_key: str = "answer"
    """Column of the answer."""
    image_keys: tuple[str, ...] = ("image",)
    """Columns that hold an image or a list of images, in order; [] for text only. Left out: image, of geo3k images."""
    messages_key: str | None = None
    """Column of the chat messages (dataset messages); null reads prompt_key and answer_key instead."""
    solution_key: str | None = None
    """Column of the worked solution that ends with the boxed answer (dataset maye; left out: solution). null:
    supervised fine-tuning learns the boxed answer alone."""
    system_prompt: str | None = None
    """System message put before conversations that have none; null leaves it to the chat template."""
    prompt_suffix: str | None = None
    """Put after the last question, on a new line unless it begins with white space; null puts nothing there."""
    apply_chat_template: bool = True
    """Render with the model's chat template; false joins prompt and answer plainly. Also read as use_chat_template."""
    max_prompt_length: int | None = Field(default=None, ge=1)
    """Most tokens before the first answer token, image tokens included; a longer row is a bad row. null: no limit."""
    max_length: int | None = Field(default=None, ge=2)
    """Most tokens of a whole sample; a longer row is a bad row. null: no limit."""
    min_pixels: int | None = Field(default=None, ge=1)
    """Smaller images are enlarged to this area in pixels; null leaves the processor's own bound."""
    max_pixels: int | None = Field(default=None, ge=1)
    """Larger images are shrunk to this area in pixels, which bounds the image tokens; null leaves the processor's."""
    rollout_batch_size: int = Field(default=64, ge=1)
    """Prompts of one step of reinforcement learning; each gets algorithm.group_size answers. SFT reads
    actor.global_batch_size instead."""
    on_bad_row: Literal["error", "drop"] = "error"
    """A row that cannot be used (broken image, answer not among the choices, too long): stop and name file and row, or
    leave it out and count it (data/dropped_rows)."""
    shuffle: bool = True
    """Shuffle the training rows anew each epoch, from actor.seed. Evaluation is never shuffled."""
    shuffle_block_size: int = Field(default=1, ge=1)
    """Neighbouring rows that stay together when shuffled. Above 1, questions about one image meet in a batch, where
    the image is computed once, and reads of large files are sequential."""
    num_workers: int = Field(default=4, ge=0)
    """Processes of each rank that decode and render ahead; 0 works in the training process."""
    lazy_loading: bool = True
    """Read for RLinf's configs: rows are always memory-mapped and images always decoded when they are needed."""

    @field_validator("image_keys")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("names a column twice, so each of its images would be used twice; name it once")
        return value

    @model_validator(mode="before")
    @classmethod
    def _aliases(cls, values: Any) -> Any:
        values = merge_alias(values, "val_data_paths", "eval_data_paths")
        values = merge_alias(values, "use_chat_template", "apply_chat_template")
        known = KIND_COLUMNS.get(str(values.get("dataset_name")), {}) if isinstance(values, dict) else {}
        return {**known, **values} if known else values

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels={self.min_pixels} is larger than max_pixels={self.max_pixels}; lower min_pixels"
            )
        if self.train_data_paths is None and self.eval_data_paths is None:
            raise ValueError("train_data_paths=null and eval_data_paths=null leave nothing to do; set one of them")
        if self.test_data_paths is not None and self.eval_data_paths is None:
            raise ValueError(
                f"test_data_paths={self.test_data_paths!r} is evaluated beside eval_data_paths, which is null; name "
                "the rows eval_data_paths, or set both"
            )
        return self


class CriticConfig(Block):
    """RL's critic; supervised fine-tuning reads nothing of it."""

    use_critic_model: Literal[False] = False
    """Critics are not available: must be false."""


class Config(Block):
    """One run."""

    cluster: ClusterConfig = ClusterConfig()
    """Machines and placement."""
    runner: RunnerConfig
    """Length, evaluation, saving, logging."""
    data: DataConfig
    """Rows."""
    actor: ActorConfig
    """Model and training."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    """RL only."""
    rollout: RolloutConfig = RolloutConfig()
    """RL only."""
    env: EnvConfig = EnvConfig()
    """RL only."""
    reward: RewardConfig = RewardConfig()
    """RL only."""
    critic: CriticConfig = CriticConfig()
    """RL only."""
