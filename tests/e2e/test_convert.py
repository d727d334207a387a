"""A checkpoint becomes a folder for transformers and vLLM, from each of its three forms, by the documented command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rlinf_vlm.checkpoints import dcp_folder, full_weights_file
from tests.convert_inputs import trained, write_step
from tests.small_run import COLOURS, write_model

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "toolkits" / "ckpt_convertor" / "fsdp_convertor" / "convert_pt_to_hf.sh"
WHERE = {"step": lambda step: step, "dcp": dcp_folder, "file": full_weights_file}

VLLM = """
import json, sys
from PIL import Image
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    folder, prompt, picture = sys.argv[1:]
    llm = LLM(model=folder, dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=2,
              limit_mm_per_prompt={"image": 1, "video": 0})
    asked = {"prompt": prompt, "multi_modal_data": {"image": Image.open(picture)}}
    settings = SamplingParams(temperature=0, max_tokens=8, logprobs=0, prompt_logprobs=0, ignore_eos=True)
    [found] = llm.generate([asked], settings)
    given = [entry[token].logprob for token, entry in zip(found.prompt_token_ids[1:], found.prompt_logprobs[1:])]
    made = [entry[token].logprob for token, entry in zip(found.outputs[0].token_ids, found.outputs[0].logprobs)]
    ids = list(found.prompt_token_ids) + list(found.outputs[0].token_ids)
    print("RESULT " + json.dumps({"ids": ids, "logprobs": given + made}))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with the demo's model (small), a checkpoint of it and what the command made of its three forms."""
    from transformers import AutoModelForImageTextToText

    folder = tmp_path_factory.mktemp("convert")
    write_model(folder / "model")
    model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32)
    step = write_step(folder / "global_step_7", trained({name: p.detach() for name, p in model.named_parameters()}))
    environment = {**os.environ, "RLINF_VLM_PYTHON": sys.executable}
    for name, place in WHERE.items():
        overrides = [
            f"convertor.ckpt_path={place(step)}",
            f"convertor.save_path={folder / name}",
            f"model.model_path={folder / 'model'}",
            "model.model_type=qwen2.5_vl",
            "convertor.torch_dtype=fp32",
            "convertor.max_shard_size=1MB",
        ]
        done = subprocess.run(
            ["bash", str(SCRIPT), *overrides], capture_output=True, text=True, env=environment, cwd=folder
        )
        assert done.returncode == 0, done.stderr
        assert "max |logit difference|" in done.stdout and "float32" in done.stdout
    return folder


@pytest.fixture(scope="module")
def prompt(made) -> tuple[str, Path]:
    from transformers import AutoProcessor

    picture = made / "picture.png"
    Image.new("RGB", (90, 60), COLOURS["green"]).save(picture)
    content = [{"type": "image"}, {"type": "text", "text": "What colour is the picture?"}]
    processor: Any = AutoProcessor.from_pretrained(made / "step")
    turns = [{"role": "user", "content": content}]
    return processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True), picture


def logprobs(folder: Path, prompt: tuple[str, Path], ids: list[int] | None = None) -> torch.Tensor:
    """transformers' log-probability of every token but the first, of the prompt or of ``ids`` that begin with it."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor: Any = AutoProcessor.from_pretrained(folder)
    inputs = processor(text=[prompt[0]], images=[Image.open(prompt[1])], return_tensors="pt")
    if ids is not None:
        length = inputs["input_ids"].shape[1]
        assert inputs["input_ids"][0].tolist() == ids[:length]
        more = len(ids) - length
        inputs["input_ids"] = torch.tensor([ids])
        for name in ("attention_mask", "mm_token_type_ids"):
            if name in inputs:
                inputs[name] = torch.nn.functional.pad(inputs[name], (0, more), value=int(name == "attention_mask"))
    with torch.inference_mode():
        scores = model(**inputs).logits.log_softmax(-1)
    return scores[0, :-1].gather(1, inputs["input_ids"][0, 1:, None]).squeeze(1)


def test_all_forms_give_the_same_folder(made):
    for name in ("dcp", "file"):
        files = sorted(path.name for path in (made / name).iterdir())
        assert files == sorted(path.name for path in (made / "step").iterdir())
        for file in files:
            assert (made / name / file).read_bytes() == (made / "step" / file).read_bytes(), file
    assert (made / "step" / "model.safetensors.index.json").is_file()


def test_it_is_the_trained_model(made, prompt, tmp_path):
    """Against the weights put into the model by hand; and the base's answers are others."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(made / "model", dtype=torch.float32)
    weights = torch.load(full_weights_file(made / "global_step_7"), weights_only=True)
    assert model.load_state_dict(weights, strict=False).unexpected_keys == []
    model.save_pretrained(tmp_path)
    for path in (made / "model").iterdir():
        if not (tmp_path / path.name).exists():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    found = logprobs(made / "step", prompt)
    torch.testing.assert_close(found, logprobs(tmp_path, prompt), rtol=0, atol=1e-6)
    assert (found - logprobs(made / "model", prompt)).abs().max() > 0.1


def test_vllm_computes_what_transformers_computes(made, prompt, tmp_path):
    script = tmp_path / "ask.py"
    script.write_text(VLLM)
    environment = {
        **os.environ,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, str(script), str(made / "dcp"), prompt[0], str(prompt[1])],
        capture_output=True, text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0 and len(lines) == 1, done.stderr[-3000:]
    result = json.loads(lines[0].removeprefix("RESULT "))
    wanted = logprobs(made / "dcp", prompt, result["ids"])
    assert len(result["logprobs"]) == len(wanted) > 20
    torch.testing.assert_close(torch.tensor(result["logprobs"]), wanted, rtol=0, atol=1e-4)
