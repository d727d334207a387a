"""What the folder looks like: files, index, types, what is copied; and what writing it takes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from rlinf_vlm.checkpoints import dcp_folder, full_weights_file
from tests.convert_inputs import convert, trained, write_base, write_step, written
from toolkits.ckpt_convertor.fsdp_convertor.convert_pt_to_hf import main

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a base model as the hub has it (bfloat16, tied) and trained weights in float32 (w.pt)."""
    folder = tmp_path_factory.mktemp("made")
    torch.save(trained(write_base(folder / "base", "qwen2.5_vl", tied=True, dtype=torch.bfloat16)), folder / "w.pt")
    return folder


def types_of(config: object) -> set[str]:
    """All values named dtype or torch_dtype."""
    if not isinstance(config, dict):
        return set()
    own = {value for key, value in config.items() if key in ("dtype", "torch_dtype")}
    return own.union(*(types_of(value) for value in config.values()))


@pytest.mark.parametrize(
    ("asked", "got"), [("fp32", "float32"), ("bfloat16", "bfloat16"), ("fp16", "float16"), (None, "float32")]
)
def test_types(asked, got, made, tmp_path):
    report = convert(made / "w.pt", made / "base", tmp_path / "out", torch_dtype=asked)
    dtype = getattr(torch, got)
    weights = torch.load(made / "w.pt", weights_only=True)
    found = written(tmp_path / "out")
    assert torch.equal(found["model.norm.weight"], weights["model.language_model.norm.weight"].to(dtype))
    assert {tensor.dtype for tensor in found.values()} == {dtype} and report.dtype == got
    assert types_of(json.loads((tmp_path / "out" / "config.json").read_text())) == {got}
    [check] = report.checks
    assert check.compute is torch.float32 and check.difference <= check.tolerance < 1e-3


def test_both_spellings_of_the_type_are_written(made, tmp_path):
    """Folders on the hub say torch_dtype, also of their parts; some say nothing."""
    base = Path(shutil.copytree(made / "base", tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    del config["dtype"]
    config["text_config"].pop("dtype", None)
    plain = json.dumps(config)
    config["torch_dtype"] = config["vision_config"]["torch_dtype"] = "bfloat16"
    (base / "config.json").write_text(json.dumps(config))
    convert(made / "w.pt", base, tmp_path / "named", verify=False)
    said = json.loads((tmp_path / "named" / "config.json").read_text())
    assert said["torch_dtype"] == said["vision_config"]["torch_dtype"] == "float32" and "dtype" not in said
    (base / "config.json").write_text(plain)
    convert(made / "w.pt", base, tmp_path / "unnamed", verify=False)
    assert json.loads((tmp_path / "unnamed" / "config.json").read_text())["dtype"] == "float32"


def test_one_file_has_no_index(made, tmp_path):
    convert(made / "w.pt", made / "base", tmp_path / "out", verify=False)
    assert [path.name for path in tmp_path.glob("out/model*")] == ["model.safetensors"]


def test_several_files_have_one(made, tmp_path):
    report = convert(made / "w.pt", made / "base", tmp_path / "out", verify=False, max_shard_size="50KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("out/*.safetensors"))
    assert files == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    assert report.shards == len(files) > 3 and set(index["weight_map"].values()) == set(files)
    total = 0
    for name in files:
        with safe_open(tmp_path / "out" / name, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            sizes = [file.get_tensor(key).nbytes for key in file.keys()]  # noqa: SIM118 (no mapping)
            assert {key for key, place in index["weight_map"].items() if place == name} == set(file.keys())
        assert sum(sizes) <= 50_000 or len(sizes) == 1
        total += sum(sizes)
    assert total == index["metadata"]["total_size"] == report.nbytes


def test_every_other_file_is_copied(made, tmp_path):
    """Also out of a cache of links; no weights of other formats, no index of theirs, nothing hidden."""
    store = Path(shutil.copytree(made / "base", tmp_path / "store"))
    kept = ["merges.txt", "LICENSE", "README.md", "modeling_mine.py", "additional_chat_templates/tool_use.jinja"]
    left = [
        "pytorch_model.bin", "pytorch_model.bin.index.json", "model.safetensors.index.json", "old/consolidated.pth",
        ".git/HEAD", ".gitattributes",
    ]  # fmt: skip
    for name in kept + left:
        (store / name).parent.mkdir(exist_ok=True)
        (store / name).write_text(f"content of {name}")
    (store / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    base = tmp_path / "base"
    base.mkdir()
    for path in store.iterdir():
        (base / path.name).symlink_to(path)
    convert(made / "w.pt", base, tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")) for path in tmp_path.glob("out/**/*") if path.is_file()}
    own = {path.name for path in (made / "base").iterdir()}
    assert found == own | set(kept) and {"chat_template.jinja", "processor_config.json", "tokenizer.json"} <= own
    assert not any(path.is_symlink() for path in tmp_path.glob("out/**/*"))
    for name in (found - {"config.json", "model.safetensors"}) & own:
        assert (tmp_path / "out" / name).read_bytes() == (made / "base" / name).read_bytes()


def test_config_keeps_all_else(made, tmp_path):
    convert(made / "w.pt", made / "base", tmp_path / "out", torch_dtype="bf16", verify=False)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (made / "base", tmp_path / "out"))
    assert before == after, "the base is bfloat16 already"


def test_tensors_without_a_parameter_are_copied(made, tmp_path):
    """A buffer that an old version of the base's maker saved, which the model passes over."""
    from safetensors.torch import load_file, save_file

    from tests.tiny_models import GENERIC

    weights = trained(write_base(tmp_path / "base", GENERIC))
    file = tmp_path / "base" / "model.safetensors"
    name = "vision_tower.vision_model.embeddings.position_ids"
    save_file({**load_file(file), name: torch.arange(5)}, file, {"format": "pt"})
    torch.save(weights, tmp_path / "w.pt")
    report = convert(tmp_path / "w.pt", tmp_path / "base", tmp_path / "out", torch_dtype="bf16")
    assert report.copied == 1 and torch.equal(written(tmp_path / "out")[name], torch.arange(5))


def test_the_table(made, tmp_path, capsys):
    paths = [f"convertor.ckpt_path={made}/w.pt", f"convertor.save_path={tmp_path}/out", f"model.model_path={made}/base"]
    assert main([*paths, "convertor.max_shard_size=20KB"]) == 0
    captured = capsys.readouterr()
    rows = dict(line.split(None, 1) for line in captured.out.splitlines() if not line.startswith(" "))
    assert rows["tensors"] == str(len(written(tmp_path / "out"))) and rows["dtype"] == "bfloat16"
    assert int(rows["bytes"].replace(",", "")) == sum(t.nbytes for t in written(tmp_path / "out").values())
    assert "max |logit difference|" in rows["verified"] and "tolerance" in captured.out
    assert all(line.startswith("written model-") for line in captured.err.splitlines())


MEASURE = """
import sys
from pathlib import Path
from tests.convert_inputs import convert

def status(name):  # of this process alone: what getrusage says begins with the parent's
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

small, big = Path(sys.argv[1]), Path(sys.argv[2])
convert(small / "w.pt", small / "base", big / "warm", verify=False)
for number, source in enumerate(sys.argv[3:]):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    convert(Path(source), big / "base", big / f"out{number}", verify=False, torch_dtype="bf16", max_shard_size="250MB")
    print(status("VmHWM") - before)
"""


def test_memory_is_bounded_whatever_the_size_of_model_and_files(made, tmp_path):
    """0.6 GB of weights, files of 250 MB: the process grows by less than a quarter of the model."""
    from transformers import AutoConfig

    from rlinf_vlm.models.loading import empty_model
    from tests.convert_inputs import stored, write_weights

    shutil.copytree(made / "base", tmp_path / "base")
    config = AutoConfig.from_pretrained(tmp_path / "base")
    config.text_config.hidden_size = config.vision_config.out_hidden_size = 768
    config.text_config.intermediate_size, config.text_config.num_hidden_layers = 3072, 16
    config.text_config.layer_types = ["full_attention"] * 16
    config.save_pretrained(tmp_path / "base")
    shapes = empty_model(config, dtype=torch.float32, trust_remote_code=False).named_parameters()
    weights = {name: torch.ones(parameter.shape) for name, parameter in shapes}
    size = sum(tensor.nbytes for tensor in weights.values())
    assert 500e6 < size < 700e6
    write_weights(tmp_path / "base", {n: t.bfloat16() for n, t in stored("qwen2.5_vl", weights).items()})
    step = write_step(tmp_path / "global_step_1", weights)
    del weights
    sources = [str(full_weights_file(step)), str(dcp_folder(step))]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(made), str(tmp_path), *sources], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    grown = [int(line) * 1024 for line in done.stdout.split()]
    assert len(grown) == 2 and max(grown) < size / 4, f"{grown} bytes more for a model of {size}"
    assert len(list((tmp_path / "out1").glob("*.safetensors"))) == 2
