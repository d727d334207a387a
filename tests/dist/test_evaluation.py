"""The one-pass evaluation against real greedy decoding."""

from __future__ import annotations

from typing import Any

import torch

from rlinf_vlm.config.load import load_config
from rlinf_vlm.config.resolve import resolve_schedule
from tests.small_run import evaluate, run_ranks, tree, whole_weights


def train_evaluate_generate(actor: Any, config: Any) -> tuple[list[Any], list[str], list[str]]:
    """Records of the evaluation, what transformers' ``generate`` says on the same rows, and what was asked of it."""
    from transformers import AutoModelForImageTextToText

    schedule = resolve_schedule(config, actor.load().train_rows)
    actor.start_training(schedule)
    for step in range(schedule.total_steps):
        actor.train_step(step)
    records = actor.evaluate()
    model = AutoModelForImageTextToText.from_pretrained(config.actor.model.model_path, dtype=torch.float32)
    model.load_state_dict(whole_weights(actor), strict=False)
    renderer, kind, table = actor.feed._eval_renderer, actor.feed._kind, actor.feed._eval
    said, asked = [], []
    for index in range(len(table)):
        sample = renderer.render(kind.convert(table[index]), row=index)
        prompt = sample.input_ids[None, : sample.prompt_length]
        images = {
            name: torch.cat([image.tensors[name] for image in sample.images])
            for image in sample.images[:1]
            for name in image.tensors
        }
        types = (prompt == renderer.images.token_id).int()
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            mm_token_type_ids=types,
            max_new_tokens=12,
            do_sample=False,
            **images,
        )
        said.append(renderer.tokenizer.decode(output[0, sample.prompt_length :], skip_special_tokens=True).strip())
        asked.append(sample.conversation.answer)
    return records, said, asked


def test_one_pass_says_what_generate_says(small_run):
    config = load_config(tree(small_run, runner__max_steps=60, actor__optim__lr=3e-3, actor__global_batch_size=32))
    ((records, said, asked),) = run_ranks(config, 1, train_evaluate_generate)
    assert [record.answer for record in records] == asked
    assert [record.correct for record in records] == [left == right for left, right in zip(said, asked, strict=True)]
    correct = sum(record.correct for record in records)
    assert 0 < correct < len(records), f"{correct} of {len(records)} correct: the test compares both outcomes"
    for record, text in zip(records, said, strict=True):
        # a prediction that goes on ("...") is the beginning of what is generated, else all of it
        start = record.prediction.removesuffix("…")
        assert text.startswith(start) if record.prediction.endswith("…") else text == start
    chosen = [record.choice_prediction == record.answer for record in records]
    assert chosen == [record.choice_correct for record in records]
    assert sum(chosen) >= correct - 3, "the greedy answer is nearly always the likeliest choice"


def test_the_training_budget_does_not_choose_the_evaluation_rows(small_run):
    changes = {"actor__packing": True, "actor__max_tokens_per_micro_batch": 64, "data__on_bad_row": "drop"}
    (records,) = run_ranks(load_config(tree(small_run, **changes)), 1, evaluate)
    assert len(records) == 101 and all(record.error is None for record in records)
