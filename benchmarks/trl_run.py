"""One run of TRL's SFTTrainer on the workload, in a process of its own: what ``sft_vs_peers`` starts.

    python benchmarks/trl_run.py SPEC.json      writes the figures to the spec's ``out``

Rows go to TRL as prompt and completion: the prompt is what our own chat template gives up to the assistant's turn, the
completion is the answer and the token that ends the turn. TRL supervises the completion, which are then exactly our
labels. What our rows have besides, the template's line break after the turn, is never supervised.
The trainer, its collator and its loss are TRL's own.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: on the path is this file's folder instead of the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import pyarrow.parquet as pq
import torch
from datasets import Dataset, Features, Image, List, Value
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.trl_launching import TrlSpec, Variant
from benchmarks.workload_model import renderer_of, row_kind
from rlinf_vlm.config.actor import OptimConfig
from rlinf_vlm.data.rendering import Renderer

GIB = 1024**3


class StepClock(TrainerCallback):
    """Notes the end of each step and what TRL logs of it."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._tokens = 0.0
        self._last = 0.0
        self._seconds = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The first step begins."""
        self._last = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The optimizer has run."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._seconds, self._last = now - self._last, now

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """TRL's figures of the step; ``num_tokens`` counts what is not padding, from the start of the run."""
        if logs is None or "loss" not in logs:
            return
        tokens, self._tokens = logs["num_tokens"] - self._tokens, logs["num_tokens"]
        self.steps.append(
            {
                "step": state.global_step,
                "loss": logs["loss"],
                "tokens": tokens,
                "seconds": self._seconds,
                "ended": time.time(),
                "peak_gib": _peak_bytes() / GIB,
            }
        )


def _peak_bytes() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_dataset(spec: TrlSpec, renderer: Renderer) -> Dataset:
    """The rows in TRL's form, in order; ``length``: of all the row's tokens."""
    columns: dict[str, list[Any]] = {"images": [], "prompt": [], "completion": [], "length": []}
    kind = row_kind()
    for row in pq.read_table(spec.rows_file).to_pylist():
        conversation = kind.convert(row)
        columns["images"].append(list(conversation.images))
        columns["prompt"].append(renderer.prompt_text(conversation.messages[:-1]))
        columns["completion"].append(conversation.answer + renderer.tokenizer.eos_token)
        columns["length"].append(row["tokens"])
    text = Value("string")
    features = Features({"images": List(Image()), "prompt": text, "completion": text, "length": Value("int64")})
    return Dataset.from_dict(columns, features=features)


def compare_labels(spec: TrlSpec, renderer: Renderer, dataset: Dataset, collator: Any) -> int:
    """How many of the rows that are trained on TRL's collator gives other ids, labels or pixels than our renderer."""
    kind, differing = row_kind(), 0
    rows = pq.read_table(spec.rows_file).slice(0, spec.steps * spec.variant.rows * spec.accumulate).to_pylist()
    for index, row in enumerate(rows):
        sample = renderer.render(kind.convert(row), row=index)
        theirs = collator([dataset[index]])
        length = theirs["input_ids"].shape[1]
        same = (
            torch.equal(theirs["input_ids"][0], sample.input_ids[:length])
            and torch.equal(theirs["labels"][0], sample.labels[:length])
            and bool((sample.labels[length:] < 0).all())
            and torch.equal(theirs["pixel_values"], sample.images[0].tensors["pixel_values"])
        )
        differing += not same
    return differing


def train(spec: TrlSpec) -> dict[str, Any]:
    """Runs the trainer; returns what goes into ``out``."""
    from trl import SFTConfig, SFTTrainer

    optim = OptimConfig(lr=spec.learning_rate)
    renderer = renderer_of(Path(spec.model))
    dataset = make_dataset(spec, renderer)
    config = SFTConfig(
        output_dir=str(Path(spec.out).with_suffix(".trl")),
        max_steps=spec.steps,
        per_device_train_batch_size=spec.variant.rows,
        gradient_accumulation_steps=spec.accumulate,
        learning_rate=optim.lr,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta1=optim.adam_beta1,
        adam_beta2=optim.adam_beta2,
        adam_epsilon=optim.adam_eps,
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.clip_grad,
        bf16=spec.bf16,
        tf32=spec.bf16 and torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
        max_length=None,
        train_sampling_strategy=spec.variant.sampling,
        remove_unused_columns=False,  # the sampling by length reads the column "length"
        use_liger_kernel=spec.variant.liger,
        torch_compile=spec.variant.compile,
        gradient_checkpointing=spec.variant.checkpointing,
        dataloader_num_workers=spec.workers,
        dataloader_persistent_workers=spec.workers > 0,
        logging_steps=1,
        logging_first_step=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    clock = StepClock()
    trainer = SFTTrainer(model=spec.model, args=config, train_dataset=dataset, callbacks=[clock])
    differing = compare_labels(spec, renderer, dataset, trainer.data_collator) if spec.compare_labels else None
    trainer.train()
    return {"differing_rows": differing, "steps": clock.steps}


def main(arguments: Sequence[str]) -> int:
    """The command."""
    fields = json.loads(Path(arguments[0]).read_text())
    spec = TrlSpec(**{**fields, "variant": Variant(**fields["variant"])})
    Path(spec.out).write_text(json.dumps(train(spec)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
