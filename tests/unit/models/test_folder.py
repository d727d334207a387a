from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from rlinf_vlm.models.folder import read_model_folder
from rlinf_vlm.types import UserError


@pytest.fixture
def folder(tmp_path):
    config = {"model_type": "qwen2_5_vl", "text_config": {"hidden_size": 8, "num_hidden_layers": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = {
        "model.layers.0.a": torch.zeros(4, 5),
        "model.layers.0.b": torch.zeros(10),
        "model.layers.1.a": torch.zeros(4),
        "model.embed": torch.zeros(100),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    for name in ("tokenizer.json", "preprocessor_config.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def test_read_from_the_headers(folder):
    found = read_model_folder(str(folder))
    assert (found.model_type, found.parameters, found.largest_block) == ("qwen2_5_vl", 134, 30)
    assert (found.hidden_size, found.num_layers) == (8, 2)


def test_with_other_weights_the_number_is_unknown(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert read_model_folder(str(folder)).parameters is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "no tokenizer"),
        ("preprocessor_config.json", "no processor"),
    ],
)
def test_a_file_that_is_missing(folder, name, message):
    (folder / name).unlink()
    with pytest.raises(UserError, match=message):
        read_model_folder(str(folder))


@pytest.mark.parametrize("text", ["[]", '{"text_config": [1]}', "3"])
def test_a_config_of_something_else(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match="does not describe a model"):
        read_model_folder(str(folder))


@pytest.mark.parametrize(("keep", "message"), [(-8, "it is cut"), (40, "cut or no safetensors"), (4, "cut")])
def test_cut_weights(folder, keep, message):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=message):
        read_model_folder(str(folder))


def test_a_missing_shard(folder):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"1 of 2 weight files are missing \(model-00002.safetensors\)"):
        read_model_folder(str(folder))


def test_not_a_model_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_model_folder(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"no config.json"):
        read_model_folder(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_model_folder(str(tmp_path))
