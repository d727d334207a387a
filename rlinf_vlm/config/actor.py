"""The ``actor`` block: batch sizes, the model, the optimizer and FSDP2."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rlinf_vlm.config.base import Block

Precision = Literal["fp32", "bf16"]
Switch = Literal["auto"] | bool
"""auto: the plan decides, and says why (runner.dry_run=true shows it)."""
PARTS = ("language_model", "vision_tower", "merger")
"""Parts of a model, as actor.model.freeze and actor.model.lora_target name them."""


class FreezeConfig(Block):
    """Parts of the model that are not trained."""

    vision_tower: bool = False
    """Freeze the vision tower (all of it but the merger)."""
    merger: bool = False
    """Freeze the projector from vision features to the language model (Qwen-VL: merger, deepstack too)."""
    language_model: bool = False
    """Freeze the language model with its embeddings and output head."""

    @model_validator(mode="after")
    def _something_is_trained(self) -> FreezeConfig:
        if self.vision_tower and self.merger and self.language_model:
            raise ValueError(
                "vision_tower=true, merger=true and language_model=true leave nothing to train; set one to false"
            )
        return self


class ModelConfig(Block):
    """Which model, and in which precision."""

    model_type: str
    """Model family: qwen2_vl, qwen2.5_vl, qwen3_vl, qwen3_vl_moe, auto (any image-text-to-text model of transformers,
    unpacked) or package.module:Thing. Must fit the model_type in the folder's config.json."""
    model_path: str
    """Folder with config.json, weights, tokenizer and processor. ~ is the home folder."""
    precision: Precision = "fp32"
    """fp32: master weights and optimizer state in float32, computing in fsdp_config.mixed_precision.param_dtype.
    bf16: weights, gradients and optimizer state all in bfloat16."""
    attn_implementation: Literal["auto", "sdpa", "varlen", "flash_attention_2"] = "auto"
    """Attention of packed samples. auto: flash_attention_2 or varlen (torch's own) on a GPU in bf16, else sdpa."""
    is_lora: bool = False
    """Train low-rank adapters (Hu et al., arXiv:2106.09685) beside the linear layers that lora_target names, and
    nothing else. Checkpoints then hold the adapters only. A learning rate some ten times that of full training is
    usual."""
    lora_rank: int = Field(default=16, ge=1)
    """Rank of an adapter. Not read without is_lora, like all lora_*."""
    lora_alpha: int | None = Field(default=None, ge=1)
    """Adapters are scaled by lora_alpha / lora_rank; null takes lora_rank, a scale of 1."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability with which an input of an adapter is dropped in training."""
    lora_target: tuple[str, ...] = Field(default=("language_model",), min_length=1)
    """Layers that get adapters: a part (language_model, vision_tower, merger: all its linear layers), a linear layer's
    name (q_proj: in the language model only) or part.name (vision_tower.qkv). Embeddings and the output head never do;
    nor do the experts of Qwen3-VL-MoE, which are fused tensors. A part that freeze names gets none."""
    freeze: FreezeConfig = FreezeConfig()
    """Parts that are not trained."""
    trust_remote_code: bool = False
    """Run Python code that the model folder brings along (only for model_type auto)."""

    @field_validator("model_path")
    @classmethod
    def _expanded(cls, value: str) -> str:
        return os.path.expanduser(value)

    @field_validator("lora_target", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("lora_target")
    @classmethod
    def _parts_exist(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for target in value:
            part, dot, name = target.partition(".")
            if not part or (dot and (part not in PARTS or not name)):
                raise ValueError(
                    f"{target!r} is no target; give a part ({', '.join(PARTS)}), a linear layer's name such as q_proj, "
                    "or part.name such as vision_tower.qkv"
                )
        return value

    @property
    def adapter_alpha(self) -> int:
        """``lora_alpha``, null read."""
        return self.lora_alpha or self.lora_rank


class OptimConfig(Block):
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101) and its learning rate over time."""

    lr: float = Field(default=1e-5, ge=0)
    """Peak learning rate."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the second moment."""
    adam_eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    decay_norm_and_bias: bool = False
    """Decay norm weights and biases (all one-dimensional parameters) too."""
    clip_grad: float | None = Field(default=1.0, gt=0)
    """Largest global L2 norm of the gradient; null does not clip."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the learning rate after warm-up: constant, or from lr to min_lr along a line or half a cosine."""
    min_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the horizon and after it (linear, cosine). At most lr."""
    lr_warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps of linear warm-up from lr / lr_warmup_steps to lr."""
    lr_warmup_steps_ratio: float | None = Field(default=None, ge=0, lt=1)
    """Warm-up as a part of the horizon; null uses lr_warmup_steps."""
    total_training_steps: int | None = Field(default=None, ge=-1)
    """Horizon of the schedule in optimizer steps; null or -1 takes the steps of the run. After it, min_lr."""

    @model_validator(mode="after")
    def _consistent(self) -> OptimConfig:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr} is larger than lr={self.lr}; set min_lr to at most lr")
        if self.lr_warmup_steps and self.lr_warmup_steps_ratio:
            raise ValueError(
                f"lr_warmup_steps={self.lr_warmup_steps} and lr_warmup_steps_ratio={self.lr_warmup_steps_ratio} "
                "both say how long to warm up; set one of them to 0"
            )
        if self.total_training_steps == 0:
            raise ValueError("total_training_steps=0 leaves no step; set it to null or to at least 1")
        return self


class MixedPrecisionConfig(Block):
    """FSDP2's dtypes when actor.model.precision is fp32."""

    param_dtype: Precision = "bf16"
    """Dtype of the parameters and activations in forward and backward."""
    reduce_dtype: Precision = "fp32"
    """Dtype in which gradients are accumulated and reduced between ranks."""
    buffer_dtype: Precision = "fp32"
    """Read for RLinf's configs. FSDP2 leaves buffers alone: rotary tables stay in fp32 whatever is said here."""


class FSDPConfig(Block):
    """Sharding over the ranks of the actor group (torch's fully_shard, FSDP2)."""

    strategy: Literal["fsdp", "fsdp2"] = "fsdp2"
    """Both names stand for FSDP2; fsdp is accepted for RLinf's configs."""
    sharding_strategy: Literal["auto", "full_shard", "shard_grad_op", "no_shard", "hybrid_shard"] = "auto"
    """full_shard: parameters, gradients and optimizer state sharded, gathered layer by layer (ZeRO-3). shard_grad_op:
    parameters stay gathered through all micro-batches of a step (ZeRO-2). no_shard: every rank holds all (DDP).
    hybrid_shard: sharded inside a group of hybrid_shard_size ranks, replicated between groups. auto: shard_grad_op
    where the estimated memory allows it, else full_shard."""
    hybrid_shard_size: int | None = Field(default=None, ge=1)
    """Ranks that share one copy under hybrid_shard; null takes the ranks of one node."""
    use_orig_params: bool = False
    """Read for RLinf's configs: FSDP2 always keeps the original parameters."""
    gradient_checkpointing: Switch | Annotated[float, Field(ge=0, le=1)] = "auto"
    """Recompute activations in backward: less memory, about a third more computing for the layers that do. true: all
    layers; a number: that part of the layers of each tower; auto: as few as the estimated memory needs, mostly none."""
    accumulate_unsharded: Switch = "auto"
    """Keep the gradients of all parameters on each rank until a step's last micro-batch and reduce them once. false:
    reduce after each micro-batch and keep a shard only: less memory, more communication. auto: where it fits."""
    mixed_precision: MixedPrecisionConfig = MixedPrecisionConfig()
    """Dtypes of computing and reduction."""


class PassesConfig(Block):
    """How forward and backward are computed. None of it changes what is computed: each is exact up to rounding."""

    linear_patch_embed: Switch = "auto"
    """Patch embedding as a matrix product instead of transformers' Conv3d, whose stride is its kernel."""
    compile: Switch = "auto"
    """Compile decoder layers and vision blocks (torch.compile), one graph for all of a kind, whatever the number of
    tokens. auto: on a GPU in training; needs a Qwen-VL family."""
    pad_vision_mlp: Switch = "auto"
    """Compute the vision tower's MLP with its inner width padded by zeros to a multiple of 64 where it is no multiple
    of 8, as tensor cores want (Qwen2.5-VL: 3,420 as 3,456). Weights, gradients and checkpoints keep their width."""
    chunked_loss: Switch = "auto"
    """Logits of supervised positions only, some thousand at a time. false: of all positions at once, in float32."""
    share_images: Switch = "auto"
    """Run an image that several rows of a micro-batch show through the vision tower once."""
    frozen_vision_no_grad: Switch = "auto"
    """Run a vision tower that is frozen altogether without recording anything for backward."""
    grouped_experts: Switch = "auto"
    """Experts of a mixture as grouped matrix products instead of a loop over experts (Qwen3-VL-MoE)."""
    fused_optimizer: Switch = "auto"
    """AdamW as one kernel over all parameters instead of some operations a parameter group."""


class ActorConfig(Block):
    """The group of processes that trains and evaluates the model."""

    group_name: str = "ActorGroup"
    """Name of the worker group in logs."""
    training_backend: Literal["fsdp", "fsdp2"] = "fsdp"
    """Both names stand for FSDP2, the only backend."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Samples of one rank in one forward and backward pass, when not packing; null takes 4."""
    eval_batch_size: int = Field(default=4, ge=1)
    """Rows of one rank in one forward pass of evaluation."""
    global_batch_size: int = Field(default=256, ge=1)
    """Samples of one optimizer step over all ranks. Must be a multiple of ranks (and of ranks * micro_batch_size when
    not packing)."""
    packing: Switch = "auto"
    """Fill micro-batches up to max_tokens_per_micro_batch instead of counting samples. Neither way pads. auto: for the
    Qwen-VL families, unless micro_batch_size is given."""
    max_tokens_per_micro_batch: int = Field(default=8192, ge=16)
    """Token budget of one forward and backward pass, image tokens included, when packing."""
    balance_tokens: Switch = "auto"
    """Divide a step's rows among the ranks by what they cost, not by count: tokens, and what the vision tower costs of
    image tokens. Each rank then measures all rows of the step, by text and image headers. Needs packing. auto: when
    packing on several ranks."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    """Seeds Python, NumPy, torch and the order of the data."""
    deterministic: bool = False
    """Only kernels that give the same bits each time: a resumed or repeated run on a GPU then equals the first to the
    last digit, and an operation that cannot is an error. Slower; on a CPU there is no difference."""
    model: ModelConfig
    """The model."""
    optim: OptimConfig = OptimConfig()
    """The optimizer."""
    fsdp_config: FSDPConfig = FSDPConfig()
    """Sharding and precision."""
    passes: PassesConfig = PassesConfig()
    """How forward and backward are computed."""

    @field_validator("group_name")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value:
            raise ValueError("is empty; give the group a name such as ActorGroup")
        return value

    @property
    def compute_dtype(self) -> Precision:
        """Dtype of forward and backward."""
        return "bf16" if self.model.precision == "bf16" else self.fsdp_config.mixed_precision.param_dtype
