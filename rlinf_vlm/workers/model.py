"""The policy of one rank: family, attention, precision and sharding put together from the config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from rlinf_vlm.checkpoints import adapter_folder
from rlinf_vlm.config.actor import PARTS, ActorConfig, ModelConfig
from rlinf_vlm.config.passes import Passes
from rlinf_vlm.data.loader import RankStep
from rlinf_vlm.data.packing import empty_micro_batch
from rlinf_vlm.data.rendering import PositionFn
from rlinf_vlm.distributed.checkpoint import WEIGHTS, open_weights, read_shapes, read_tensors
from rlinf_vlm.distributed.fsdp import ShardedModel, Sharding
from rlinf_vlm.models.attention import choose_attention
from rlinf_vlm.models.families import resolve_family
from rlinf_vlm.models.filling import StoredModel, fill, open_stored
from rlinf_vlm.models.flops import ModelShape, Trained, Work, feature_weight, model_shape, step_flops
from rlinf_vlm.models.loading import blocks_in_order, build_model, freeze
from rlinf_vlm.models.lora import LoraSettings, adapted_modules, adapter_config, check_scale, first_values, is_adapter
from rlinf_vlm.models.mrope import MropePositions, SequentialPositions, positions_for
from rlinf_vlm.models.parts import LinearLayer, adapter_size, frozen_parts
from rlinf_vlm.models.policy import VisionLanguageModel
from rlinf_vlm.models.transfer import copy_to
from rlinf_vlm.types import LogitView, MicroBatch, ProcessedImage, TokenScores, UserError

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


def lora_settings(actor: ActorConfig) -> LoraSettings | None:
    """What ``actor`` says of adapters; None without LoRA."""
    model = actor.model
    if not model.is_lora:
        return None
    return LoraSettings(
        rank=model.lora_rank,
        alpha=model.adapter_alpha,
        dropout=model.lora_dropout,
        targets=model.lora_target,
        frozen=frozen_parts(model),
        seed=actor.seed,
    )


def describe_adapter(model: ModelConfig, adapted: Sequence[LinearLayer]) -> dict[str, Any]:
    """The adapter_config.json of ``model``'s adapters, which stand beside ``adapted``."""
    return adapter_config(
        model_path=model.model_path,
        rank=model.lora_rank,
        alpha=model.adapter_alpha,
        dropout=model.lora_dropout,
        targets=[layer.path for layer in adapted],
    )


def trained_parts(model: ModelConfig, adapted: Sequence[LinearLayer]) -> Trained:
    """What of ``model`` is trained, for counting operations."""
    if not model.is_lora:
        return Trained(**{part: part not in frozen_parts(model) for part in PARTS})
    sizes = {part: adapter_size([layer for layer in adapted if layer.part == part], model.lora_rank) for part in PARTS}
    return Trained(
        **dict.fromkeys(PARTS, False),
        vision_tower_adapters=sizes["vision_tower"],
        merger_adapters=sizes["merger"],
        language_model_adapters=sizes["language_model"],
    )


class Policy:
    """The sharded model and what is known of it."""

    def __init__(
        self,
        actor: ActorConfig,
        shard_size: int,
        passes: Passes,
        device: torch.device,
        rank: int,
        checkpoint: Path | None = None,
    ) -> None:
        """Builds the model without weights; then this rank reads its shards.

        ``checkpoint``: a dcp_checkpoint, of which each rank reads its own shards, or a full_weights.pt; None takes the
        model folder's weights. The base of adapters always comes from the model folder.
        """
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
                passes=passes.model,
                lora=lora_settings(actor),
            )

        self._is_lora = model.is_lora
        reads_base = checkpoint is None or self._is_lora
        self.module = build(on_meta=True)
        stored = open_stored(Path(model.model_path), self.module.hf) if reads_base else None
        self.num_trained = freeze(self.module, spec, **model.freeze.model_dump())
        self.num_parameters = sum(parameter.numel() for parameter in self.module.parameters())
        self._tied = self.module.tied_names()
        self._shape: ModelShape = model_shape(self.module.hf.config)
        adapted = adapted_modules(self.module.hf, spec)
        self._trained = trained_parts(model, adapted)
        self.adapter_config = describe_adapter(model, adapted) if self._is_lora else None
        sharding = Sharding(
            shard_size=shard_size,
            reshard=passes.reshard,
            accumulate=passes.accumulate,
            compute_dtype=compute,
            reduce_dtype=DTYPES[model.precision if model.precision == "bf16" else fsdp.mixed_precision.reduce_dtype],
        )
        self.sharded = ShardedModel(self.module, blocks_in_order(self.module), sharding, str(device))
        self.sharded.materialise()
        if stored is not None:
            self._fill(stored, first_values(adapted, rank=model.lora_rank, seed=actor.seed))
        elif reads_base:  # weights without safetensors cannot be read in parts
            self.sharded.load(build(on_meta=False).state_dict() if rank == 0 else {})
        if checkpoint is not None:
            self._restore(checkpoint, rank)
        if not spec.supports_packing:
            self._check_text_only(device)

    def _fill(self, stored: StoredModel, fresh: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Reads what this rank holds of the model folder's weights; ``fresh``: the adapters' whole first values."""
        fill({self.module.hf_state_name(name): part for name, part in self.sharded.parts().items()}, stored, fresh)

    def __call__(self, micro_batch: MicroBatch, view: LogitView | None = None) -> TokenScores:
        """Scores of the micro-batch's supervised tokens, of the plain distribution or of ``view``."""
        return self.module(micro_batch, view)

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

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds of the model: name in the transformers model -> this rank's shard, each weight once.

        With LoRA only the adapters.
        """
        state = {self.module.hf_state_name(name): tensor for name, tensor in self.module.state_dict().items()}
        return {
            name: tensor
            for name, tensor in state.items()
            if name not in self._tied and (is_adapter(name) or not self._is_lora)
        }

    def _restore(self, checkpoint: Path, rank: int) -> None:
        """Takes the weights from ``checkpoint``; UserError unless they are exactly those that ``state`` names."""
        if self.adapter_config is not None:
            check_scale(adapter_folder(checkpoint.absolute().parent.parent), self.adapter_config)
        state = self.state()
        whole: Mapping[str, torch.Tensor] = {}
        if checkpoint.is_dir():
            found = read_shapes(checkpoint, WEIGHTS)
        else:
            whole = open_weights(checkpoint)
            found = {name: tensor.shape for name, tensor in whole.items()}
        _check_fit(checkpoint, found, {name: tensor.shape for name, tensor in state.items()}, is_lora=self._is_lora)
        if checkpoint.is_dir():
            read_tensors(checkpoint, {WEIGHTS + name: tensor for name, tensor in state.items()})
            return
        tied = {name: whole[other] for name, other in self._tied.items()}
        weights = {self.module.state_name(name): tensor for name, tensor in {**whole, **tied}.items()}
        self.sharded.load(weights if rank == 0 else {})

    @property
    def feature_weight(self) -> float:
        """What the vision tower costs of an image token, in units of what the language model costs of a token."""
        return feature_weight(self._shape, self._trained)

    def step_flops(self, rows: RankStep, *, scored: int = 0) -> float:
        """Floating-point operations, forward and backward, that this rank's rows need; and once more forward for each
        time that they are ``scored`` besides."""
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
            flops = step_flops(self._shape, work, self._trained)
            total += flops.total + scored * flops.forward
        return total


def _check_fit(
    checkpoint: Path, found: Mapping[str, torch.Size], wanted: Mapping[str, torch.Size], *, is_lora: bool
) -> None:
    """The same names with the same shapes on both sides."""
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or unknown:
        has_adapters = any(is_adapter(name) for name in found)
        hint = "it has adapters of other layers (lora_target)" if is_lora else "it belongs to another model"
        if has_adapters != is_lora:
            held = "LoRA adapters" if has_adapters else "a whole model"
            hint = f"it holds {held}, and actor.model.is_lora={str(is_lora).lower()}"
        raise UserError(
            f"{checkpoint}: {len(missing)} weights are missing ({', '.join(missing[:2]) or '-'}), {len(unknown)} are "
            f"unknown ({', '.join(unknown[:2]) or '-'}): {hint}; set actor.model as it was in the run that saved it"
        )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise UserError(
                f"{checkpoint}: {name} has the shape {list(found[name])}, the model of actor.model.model_path has "
                f"{list(shape)}; set actor.model as it was in the run that saved it"
            )


def to_device(micro_batch: MicroBatch, device: torch.device) -> MicroBatch:
    """The micro-batch with its tensors on ``device``."""
    tensors = {
        field.name: copy_to(value, device)
        for field in fields(micro_batch)
        if isinstance(value := getattr(micro_batch, field.name), torch.Tensor)
    }
    images = {name: copy_to(tensor, device) for name, tensor in micro_batch.image_inputs.items()}
    return replace(micro_batch, image_inputs=images, **tensors)  # type: ignore[arg-type]
