"""What an engine would refuse after half a minute is refused before it starts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rlinf_vlm.config.load import load_config
from rlinf_vlm.config.memory import GIB
from rlinf_vlm.config.schema import Config
from rlinf_vlm.models.folder import ModelFolder, read_model_folder
from rlinf_vlm.runners.engine_checks import check_cache, check_engine, known_arguments, longest_sequence
from rlinf_vlm.types import UserError

TEXT = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 1024,
}
KV_VALUES = 2 * 3 * 2 * 16


def model(folder: Path, **text: Any) -> ModelFolder:
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "text_config": {**TEXT, **text}}))
    save_file({"embed": torch.zeros(4)}, folder / "model.safetensors")
    for name in ("tokenizer.json", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    return read_model_folder(str(folder))


def config(prompt: int = 512, answer: int = 512, evaluation: int = 8, **rollout: Any) -> Config:
    return load_config(
        {
            "runner": {"task_type": "reasoning", "max_steps": 3},
            "data": {"train_data_paths": "a", "max_prompt_length": prompt},
            "actor": {"model": {"model_type": "qwen2.5_vl", "model_path": "m"}},
            "algorithm": {
                "sampling_params": {"max_new_tokens": answer},
                "eval_sampling_params": {"max_new_tokens": evaluation},
            },
            "rollout": rollout,
        }
    )


def told(check: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as error:
        check(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_names_are_those_that_vllm_itself_takes():
    vllm = pytest.importorskip("vllm")
    assert known_arguments() == {field.name for field in dataclasses.fields(vllm.AsyncEngineArgs)}


def test_an_argument_that_vllm_has_not(tmp_path):
    made = model(tmp_path)
    assert "did you mean 'max_num_seqs'?" in told(check_engine, config(engine_kwargs={"max_num_seq": 3}), made)
    assert "'wholly_made_up'" in told(check_engine, config(engine_kwargs={"wholly_made_up": 3}), made)
    assert "sets itself" in told(check_engine, config(engine_kwargs={"logprobs_mode": "raw_logprobs"}), made)
    check_engine(config(engine_kwargs={"block_size": 32}), made)


def test_more_tokens_than_the_model_has_positions_for(tmp_path):
    made = model(tmp_path)
    check_engine(config(512, 512), made)
    found = told(check_engine, config(512, 513), made)
    assert "algorithm.sampling_params.max_new_tokens=513" in found and "1024" in found
    found = told(check_engine, config(512, 8, 600), made)
    assert "algorithm.eval_sampling_params.max_new_tokens=600" in found


def test_scaled_rotations_have_more_positions_than_the_config_counts(tmp_path):
    check_engine(config(512, 5000), model(tmp_path, rope_parameters={"rope_type": "yarn", "factor": 8.0}))


def test_the_longer_of_the_answers_counts():
    assert longest_sequence(config(100, 20, 30)) == (130, "algorithm.eval_sampling_params.max_new_tokens")


def test_a_cache_that_cannot_hold_one_answer(tmp_path):
    made = model(tmp_path)
    assert made.kv_values == KV_VALUES
    needed = 1024 * KV_VALUES * 2 / GIB  # bf16
    check_cache(config(kv_cache_gib=needed * 1.001), made, None)
    assert "less than" in told(check_cache, config(kv_cache_gib=needed * 0.999), made, None)
    assert "less than" in told(check_cache, config(kv_cache_gib=needed * 1.5, dtype="fp32"), made, None)


def test_layers_that_keep_less_than_every_token_are_not_judged(tmp_path):
    made = model(tmp_path, layer_types=["full_attention", "linear_attention", "full_attention"])
    assert made.kv_values == 0
    check_cache(config(kv_cache_gib=1e-6), made, None)


def test_a_cache_beyond_the_machine_s_memory(tmp_path):
    made = model(tmp_path)
    check_cache(config(kv_cache_gib=8), made, 16 * GIB)
    assert "memory of 16.0 GiB" in told(check_cache, config(kv_cache_gib=16), made, 16 * GIB)
