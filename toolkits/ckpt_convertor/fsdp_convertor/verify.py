"""Loads what was written and compares its logits on an image prompt with those of the checkpoint itself.

    whole model   the base's architecture, its parameters set from the checkpoint's tensors  ==  the folder, loaded
    LoRA merged   base + adapter by peft  ==  the merged tensors, float32;  those in the written type  ==  the folder
    LoRA alone    the base with the adapter added by us  ==  base + the written adapter by peft

Dataflow: folder -> processor -> a small generated picture and a question -> logits of one model at a time -> largest
absolute difference of all positions and tokens.
Invariants: one model is in memory at a time; both sides compute in one type on the CPU; what is left is rounding.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from PIL import Image
from torch import nn

from rlinf_vlm.data.processor import load_processor
from rlinf_vlm.models.loading import empty_model, load_weights
from rlinf_vlm.models.naming import Naming
from rlinf_vlm.types import UserError
from toolkits.ckpt_convertor.fsdp_convertor.adapter import Adapter, write_adapter
from toolkits.ckpt_convertor.fsdp_convertor.matching import Plan

QUESTION = "What is in the picture?"
SIDES = (112, 84)
"""Width and height of the picture in pixels."""
SAME = {torch.float32: 5e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}
"""The same weights, computed in a type: largest difference, as a part of the largest logit (at least of 1). Where
tensors lie in memory changes the order of sums, so it is not zero everywhere."""
MERGED = 1e-4
"""The same for W x + s B (A x) against (W + s B A) x in float32."""


class VerificationFailed(Exception):
    """What was written is not what the checkpoint holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison that held. difference, tolerance: absolute, of logits; tokens: length of the prompt."""

    what: str
    difference: float
    tolerance: float
    tokens: int
    compute: torch.dtype


def compute_type(parameters: int, *, written: torch.dtype | None, lora: bool) -> torch.dtype:
    """The type to compute in: float32 where a model of so many parameters fits into the free memory, else the written.

    Raises UserError when neither fits, before anything is written.
    """
    available = psutil.virtual_memory().available
    choices = [torch.float32] + ([written] if written is not None and not lora else [])
    for dtype in choices:
        if parameters * dtype.itemsize * 1.2 < available:
            return dtype
    raise UserError(
        f"convertor.verify=true: the model needs {parameters * choices[-1].itemsize * 1.2 / 2**30:.1f} GiB of memory, "
        f"{available / 2**30:.1f} GiB are free; convert on a larger machine or set convertor.verify=false"
    )


class Verifier:
    """Compares models by their logits on one prompt.

    config: the base's, as transformers reads it; folder: what was written, whose processor makes the prompt.
    """

    def __init__(
        self, *, base: Path, folder: Path, config: Any, naming: Naming, compute: torch.dtype, trust_remote_code: bool
    ) -> None:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self._base = base
        self._folder = folder
        self._config = config
        self._naming = naming
        self._compute = compute
        self._trust = trust_remote_code
        self._inputs = image_prompt(folder, trust_remote_code=trust_remote_code)
        wanted = image_prompt(base, trust_remote_code=trust_remote_code)
        if not all(torch.equal(self._inputs.get(name, value[:0]), value) for name, value in wanted.items()):
            raise VerificationFailed("verification: the folder's processor makes another prompt than the base's")

    def whole_model(self, plan: Plan) -> list[Check]:
        """The folder against the checkpoint's tensors. Raises VerificationFailed."""
        reference = self._logits(lambda: self._filled(plan.memory_tensors()))
        return [self._same("the folder, the checkpoint's tensors", self._logits(self._written), reference)]

    def merged_adapter(self, plan: Plan, adapter: Adapter) -> list[Check]:
        """The folder against base and adapter apart. Raises VerificationFailed."""
        with tempfile.TemporaryDirectory() as aside:
            write_adapter(adapter, Path(aside), str(self._base))
            apart = self._logits(lambda: self._with_peft(Path(aside)))
        exact = self._logits(lambda: self._filled(plan.memory_tensors(cast=False)))
        checks = [self._compare("merged in float32, base and adapter apart", exact, apart, MERGED)]
        rounded = self._logits(lambda: self._filled(plan.memory_tensors()))
        return [*checks, self._same("the folder, the merged tensors", self._logits(self._written), rounded)]

    def adapter_alone(self, merged: Plan) -> list[Check]:
        """The written adapter on the base against ``merged``, the plan that adds it. Raises VerificationFailed."""
        reference = self._logits(lambda: self._filled(merged.memory_tensors(cast=False)))
        found = self._logits(lambda: self._with_peft(self._folder))
        return [self._compare("the adapter folder on the base, merged in float32", found, reference, MERGED)]

    def _written(self) -> Any:
        config = transformers.AutoConfig.from_pretrained(self._folder, trust_remote_code=self._trust)
        return load_weights(self._folder, config, dtype=self._compute, trust_remote_code=self._trust)

    def _with_peft(self, folder: Path) -> Any:
        from peft import PeftModel

        base = load_weights(self._base, self._config, dtype=self._compute, trust_remote_code=self._trust)
        return PeftModel.from_pretrained(base, folder)

    def _filled(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Any:
        """The base's architecture with parameters and saved buffers set to ``tensors``."""
        model = empty_model(self._config, dtype=self._compute, trust_remote_code=self._trust)
        left = set(self._naming.parameters)
        for name, tensor in tensors:
            if name in left:
                left.discard(name)
                value = nn.Parameter(tensor.to(self._compute, copy=True), requires_grad=False)
                for alias in self._naming.aliases(name):
                    path, _, attribute = alias.rpartition(".")
                    setattr(model.get_submodule(path), attribute, value)
            elif name not in self._naming.parameters:
                model.get_buffer(name).copy_(tensor)
        assert not left, f"parameters without a tensor: {sorted(left)[:3]}"
        return model

    def _logits(self, make: Callable[[], Any]) -> torch.Tensor:
        """Logits [1, L, V] float32 of the model that ``make`` gives; the model is gone when this returns."""
        model = make().eval()
        with torch.inference_mode():
            inputs = {
                name: value.to(self._compute) if value.is_floating_point() else value
                for name, value in self._inputs.items()
            }
            logits = model(**inputs).logits.float()
        del model
        gc.collect()
        return logits

    def _same(self, what: str, found: torch.Tensor, wanted: torch.Tensor) -> Check:
        return self._compare(what, found, wanted, SAME[self._compute])

    def _compare(self, what: str, found: torch.Tensor, wanted: torch.Tensor, part: float) -> Check:
        if not bool(torch.isfinite(wanted).all()):
            raise VerificationFailed(f"verification: {what}: the logits are not finite, so the weights are unusable")
        tolerance = part * max(1.0, float(wanted.abs().max()))
        difference = float((found - wanted).abs().max()) if found.shape == wanted.shape else float("inf")
        tokens = wanted.shape[1]
        if not difference <= tolerance:
            raise VerificationFailed(
                f"verification: {what}: logits of an image prompt of {tokens} tokens differ by {difference:.3g}, more "
                f"than the tolerance {tolerance:.3g} ({part:.1g} of the largest, in {self._compute}); nothing was kept"
            )
        return Check(what=what, difference=difference, tolerance=tolerance, tokens=tokens, compute=self._compute)


def image_prompt(folder: Path, *, trust_remote_code: bool) -> Mapping[str, torch.Tensor]:
    """A question about a small picture with colours and edges, as the processor of ``folder`` makes inputs of it.

    Raises UserError when there is no processor, or when it does not take one picture and one text.
    """
    try:
        processor = load_processor(str(folder), trust_remote_code=trust_remote_code)
    except UserError as error:
        raise UserError(str(error).replace("actor.model.", "model.")) from error
    width, height = SIDES
    across = torch.arange(width).expand(height, width)
    down = torch.arange(height)[:, None].expand(height, width)
    channels = (across * 255 // width, down * 255 // height, ((across // 14 + down // 14) % 2) * 255)
    picture = Image.fromarray(torch.stack(channels, dim=-1).to(torch.uint8).numpy())
    try:
        return dict(processor(text=[_prompt(processor)], images=[picture], return_tensors="pt"))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError) as error:
        raise UserError(
            f"convertor.verify=true: {type(processor).__name__} of {folder} makes no prompt of a text and a picture "
            f"({' '.join(str(error).split())[:160]}); set convertor.verify=false"
        ) from error


def _prompt(processor: Any) -> str:
    token = processor.image_token
    if getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None):
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
        text = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        if token in text:
            return str(text)
    return f"{token}\n{QUESTION}"
