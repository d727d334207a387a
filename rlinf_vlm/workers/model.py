"""The policy of one rank: family, attention, precision and sharding put together from the config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from transformers import AutoConfig

from rlinf_vlm.config.actor import ActorConfig, ModelConfig
from rlinf_vlm.data.loader import RankStep
from rlinf_vlm.data.packing import empty_micro_batch
from rlinf_vlm.data.rendering import PositionFn
from rlinf_vlm.distributed.fsdp import ShardedModel, Sharding
from rlinf_vlm.models.attention import choose_attention
from rlinf_vlm.models.families import resolve_family
from rlinf_vlm.models.flops import ModelShape, Trained, Work, model_shape, step_flops
from rlinf_vlm.models.loading import block_classes, build_model, freeze
from rlinf_vlm.models.mrope import MropePositions, SequentialPositions, positions_for
from rlinf_vlm.models.policy import VisionLanguageModel
from rlinf_vlm.types import MicroBatch, ProcessedImage, TokenScores, UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class GridPositions:
    """Positions of a sample from the patch grids of its images. Picklable."""

    build: MropePositions | SequentialPositions

    def __call__(self, input_ids: torch.Tensor, images: Sequence[ProcessedImage]) -> torch.Tensor:
        """[3, L] for ``input_ids`` [L]."""
        grids = [image.tensors["image_grid_thw"] for image in images if "image_grid_thw" in image.tensors]
        return self.build(input_ids, [(t, h, w) for grid in grids for t, h, w in grid.tolist()])


def position_builder(model: ModelConfig) -> PositionFn:
    """What renders positions for this model's family."""
    config = AutoConfig.from_pretrained(model.model_path, trust_remote_code=model.trust_remote_code)
    return GridPositions(build=positions_for(mrope=resolve_family(model.model_type).mrope, hf_config=config))


class Policy:
    """The sharded model and what is known of it."""

    def __init__(self, actor: ActorConfig, shard_size: int, device: torch.device, rank: int) -> None:
        """Rank 0 reads the weights; the others build the same model without any and receive their shards."""
        model, fsdp = actor.model, actor.fsdp_config
        spec = resolve_family(model.model_type)
        compute = DTYPES[actor.compute_dtype]
        name, reason = choose_attention(model.attn_implementation, device=device, dtype=compute)
        self.attention = f"{name} ({reason})"

        def build(*, on_meta: bool) -> VisionLanguageModel:
            return build_model(
                model.model_path,
                spec,
                dtype=DTYPES[model.precision],
                attention=name,
                on_meta=on_meta,
                trust_remote_code=model.trust_remote_code,
                gradient_checkpointing=fsdp.gradient_checkpointing,
            )

        weights = build(on_meta=False).state_dict() if rank == 0 else {}
        self.module = build(on_meta=True)
        frozen = model.freeze.model_dump()
        self.num_trained = freeze(self.module, spec, **frozen)
        self.num_parameters = sum(parameter.numel() for parameter in self.module.parameters())
        self._tied = self.module.tied_names()
        self._shape: ModelShape = model_shape(self.module.hf.config)
        self._trained = Trained(**{part: not is_frozen for part, is_frozen in frozen.items()})
        sharding = Sharding(
            shard_size=shard_size,
            reshard=fsdp.sharding_strategy in ("full_shard", "hybrid_shard"),
            compute_dtype=compute,
            reduce_dtype=DTYPES[model.precision if model.precision == "bf16" else fsdp.mixed_precision.reduce_dtype],
        )
        self.sharded = ShardedModel(self.module, block_classes(self.module), sharding, str(device))
        self.sharded.load(weights)
        if not spec.supports_packing:
            self._check_text_only(device)

    def __call__(self, micro_batch: MicroBatch) -> TokenScores:
        """Scores of the micro-batch's supervised tokens."""
        return self.module(micro_batch)

    @torch.no_grad()
    def _check_text_only(self, device: torch.device) -> None:
        """Ranks without rows run a micro-batch without images; a model that cannot is refused now, not at the end."""
        try:
            self(to_device(empty_micro_batch(), device))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"actor.model.model_type={self.module.spec.name!r}: {type(self.module.hf).__name__} cannot run samples "
                f"without images ({error}); use a model of the Qwen-VL families, LLaVA or InternVL"
            ) from error

    def hf_state(self) -> dict[str, Any]:
        """All weights under Hugging Face names on rank 0, each once; empty elsewhere. Every rank calls it."""
        state = {self.module.hf_state_name(name): tensor for name, tensor in self.sharded.full_state().items()}
        return {name: tensor for name, tensor in state.items() if name not in self._tied}

    def step_flops(self, rows: RankStep) -> float:
        """Floating-point operations, forward and backward, that this rank's rows need."""
        total = 0.0
        for batch in rows.micro_batches:
            lengths = batch.cu_seqlens.diff().long()
            grids = batch.image_inputs.get("image_grid_thw")
            patches = grids.prod(dim=1) if grids is not None else torch.zeros(0, dtype=torch.int64)
            work = Work(
                tokens=len(batch.input_ids),
                supervised=batch.num_supervised,
                squared_lengths=int((lengths**2).sum()),
                patches=int(patches.sum()),
                squared_patches=int((patches**2).sum()),
                squared_windows=int(patches.sum()) * 64,
            )
            total += step_flops(self._shape, work, self._trained).total
        return total


def to_device(micro_batch: MicroBatch, device: torch.device) -> MicroBatch:
    """The micro-batch with its tensors on ``device``."""
    tensors = {
        field.name: value.to(device, non_blocking=True)
        for field in fields(micro_batch)
        if isinstance(value := getattr(micro_batch, field.name), torch.Tensor)
    }
    images = {name: tensor.to(device, non_blocking=True) for name, tensor in micro_batch.image_inputs.items()}
    return replace(micro_batch, image_inputs=images, **tensors)  # type: ignore[arg-type]
