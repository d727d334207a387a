"""What cannot be converted is told in one line, and nothing that looks like a model is left behind."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rlinf_vlm.checkpoints import MARK, dcp_folder, full_weights_file, state_file
from rlinf_vlm.types import UserError
from tests.convert_inputs import mark, trained, write_base, write_step
from toolkits.ckpt_convertor.fsdp_convertor.convert_pt_to_hf import main
from toolkits.ckpt_convertor.fsdp_convertor.output import check_space

ROOT = Path(__file__).parents[3]
NORM = "model.language_model.norm.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a base model, trained weights (w.pt) and a finished checkpoint (global_step_3)."""
    folder = tmp_path_factory.mktemp("made")
    weights = trained(write_base(folder / "base", "qwen2.5_vl", tied=True))
    torch.save(weights, folder / "w.pt")
    write_step(folder / "global_step_3", weights)
    return folder


def run(made: Path, out: Path, *overrides: str, ckpt: Path | None = None) -> int:
    paths = [
        f"convertor.ckpt_path={ckpt or made / 'w.pt'}",
        f"convertor.save_path={out}",
        f"model.model_path={made / 'base'}",
    ]
    return main([*paths, *overrides])


def told(capsys, made: Path, out: Path, *overrides: str, ckpt: Path | None = None, status: int = 2) -> str:
    """The one line on standard error of a conversion that has to be refused."""
    found = run(made, out, *overrides, ckpt=ckpt)
    captured = capsys.readouterr()
    assert found == status, captured
    lines = [line for line in captured.err.splitlines() if not line.startswith("written ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
    assert captured.out == ""
    assert not out.exists() and not out.with_name(out.name + ".partial").exists(), "nothing is left"
    return lines[0]


SETTINGS = {
    "unknown key": (["convertor.torch_dtyp=fp32"], ["convertor.torch_dtyp", "did you mean convertor.torch_dtype"]),
    "type": (["convertor.torch_dtype=fp8"], ["convertor.torch_dtype='fp8'", "'bfloat16'"]),
    "no source": (["convertor.ckpt_path=null"], ["convertor.ckpt_path=null"]),
    "empty source": (["convertor.ckpt_path=''"], ["convertor.ckpt_path=''", "is empty"]),
    "size": (["convertor.max_shard_size=5XB"], ["convertor.max_shard_size='5XB'", "is no size"]),
    "size zero": (["convertor.max_shard_size=0"], ["convertor.max_shard_size=0"]),
    "both spellings": (
        ["convertor.merge_lora_weighs=false", "convertor.merge_lora_weights=true"],
        ["merge_lora_weighs", "two names of one setting"],
    ),
    "family": (["model.model_type=qwen3_vl"], ["model.model_type='qwen3_vl'", "set model_type: qwen2.5_vl"]),
    "unknown family": (["model.model_type=qwen9"], ["model.model_type='qwen9'", "known: auto"]),
    "no base": (["model.model_path=/nowhere/model"], ["model.model_path='/nowhere/model'", "no such folder"]),
    "no checkpoint": (["convertor.ckpt_path=/nowhere/w.pt"], ["convertor.ckpt_path='/nowhere/w.pt'", "no such file"]),
    "a place that cannot be": (["convertor.save_path=/proc/nowhere/out"], ["convertor.save_path='/proc/nowhere/out'"]),
}


@pytest.mark.parametrize(("overrides", "expected"), SETTINGS.values(), ids=SETTINGS)
def test_a_mistake_in_the_settings(overrides, expected, made, tmp_path, capsys):
    line = told(capsys, made, tmp_path / "out", *overrides)
    for part in expected:
        assert part in line


def test_rlinfs_spelling_is_read(made, tmp_path, capsys):
    assert run(made, tmp_path / "out", "convertor.merge_lora_weighs=false", "convertor.verify=false") == 0
    assert "no (convertor.verify=false)" in capsys.readouterr().out


CHANGED = {
    "missing": (lambda w: w.pop(NORM), ["1 of the model's tensors are missing (" + NORM]),
    "extra": (lambda w: w.update(more=torch.ones(2)), ["1 tensors have no place in the model (more)"]),
    "shape": (lambda w: w.update({NORM: torch.ones(31)}), [f"1 have another shape ({NORM} is [31], not [32])"]),
    "all three": (
        lambda w: (w.pop(NORM), w.update({"a": torch.ones(1), "model.visual.merger.ln_q.weight": torch.ones(1, 2)})),
        ["1 of the model's", "1 tensors have no place in the model (a)", "1 have another shape"],
    ),
    "names of something else": (
        lambda w: [w.pop(name) for name in list(w)] and w.update({"encoder.x": torch.ones(1)}),
        ["none of the 1 names", "encoder.x"],
    ),
    "two that are tied and differ": (
        lambda w: w.update({"lm_head.weight": w["model.language_model.embed_tokens.weight"] + 1}),
        ["lm_head.weight and model.language_model.embed_tokens.weight differ", "tie_word_embeddings"],
    ),
    "one tensor twice": (
        lambda w: w.update({"model.norm.weight": w[NORM]}),
        ["1 tensors have no place in the model (model.norm.weight)"],
    ),
    "too large for the type": (
        lambda w: w[NORM].fill_(70000.0),
        ["convertor.torch_dtype='float16'", "model.norm.weight", "7e+04"],
    ),
}


@pytest.mark.parametrize(("change", "expected"), CHANGED.values(), ids=CHANGED)
def test_a_checkpoint_that_does_not_fit(change, expected, made, tmp_path, capsys):
    weights = torch.load(made / "w.pt", weights_only=True)
    change(weights)
    torch.save(weights, tmp_path / "w.pt")
    line = told(capsys, made, tmp_path / "out", "convertor.torch_dtype=fp16", ckpt=tmp_path / "w.pt")
    for part in expected:
        assert part in line


def test_another_base_model(made, tmp_path, capsys):
    write_base(tmp_path / "base", "qwen3_vl")
    line = told(capsys, made, tmp_path / "out", f"model.model_path={tmp_path}/base")
    assert "does not fit the model in model.model_path" in line and "set model.model_path" in line
    assert len(line) < 6000


def test_weights_that_are_not_finite(made, tmp_path, capsys):
    """Found by the verification: status 1, and the folder is gone."""
    weights = torch.load(made / "w.pt", weights_only=True)
    weights[NORM][3] = float("nan")
    torch.save(weights, tmp_path / "w.pt")
    line = told(capsys, made, tmp_path / "out", ckpt=tmp_path / "w.pt", status=1)
    assert "verification" in line and "not finite" in line


@pytest.mark.parametrize("keep", [0, 100, -1000])
def test_a_cut_file(keep, made, tmp_path, capsys):
    content = (made / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(content[:keep])
    assert "w.pt cannot be read as weights" in told(capsys, made, tmp_path / "out", ckpt=tmp_path / "w.pt")


def test_a_file_of_something_else(made, tmp_path, capsys):
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    assert "does not hold weights by name" in told(capsys, made, tmp_path / "out", ckpt=tmp_path / "list.pt")
    torch.save({0: torch.ones(2)}, tmp_path / "numbered.pt")
    assert "has the key 0, no name" in told(capsys, made, tmp_path / "out", ckpt=tmp_path / "numbered.pt")
    (tmp_path / "text.pt").write_text("hello")
    assert "cannot be read as weights" in told(capsys, made, tmp_path / "out", ckpt=tmp_path / "text.pt")


@pytest.fixture
def sharded(made, tmp_path):
    """The sharded files alone, to be broken."""
    return Path(shutil.copytree(dcp_folder(made / "global_step_3"), tmp_path / "dcp_checkpoint"))


@pytest.mark.parametrize("damage", ["cut", "gone", "overwritten"])
def test_broken_sharded_files(damage, sharded, made, tmp_path, capsys):
    [file] = sharded.glob("*.distcp")
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 3] if damage == "cut" else b"x" * len(content))
    assert "cut or incomplete" in told(capsys, made, tmp_path / "out", ckpt=sharded)


def test_sharded_files_without_their_table(sharded, made, tmp_path, capsys):
    content = (sharded / ".metadata").read_bytes()
    (sharded / ".metadata").write_bytes(content[: len(content) // 2])
    assert ".metadata cannot be read" in told(capsys, made, tmp_path / "out", ckpt=sharded)
    (sharded / ".metadata").unlink()
    assert "has no .metadata" in told(capsys, made, tmp_path / "out", ckpt=sharded)


def test_sharded_files_of_something_else(made, tmp_path, capsys):
    import torch.distributed.checkpoint as dcp

    dcp.save({"policy.x": torch.ones(2)}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    line = told(capsys, made, tmp_path / "out", ckpt=tmp_path / "dcp")
    assert "holds no tensor named model." in line and "policy" in line


def test_sharded_files_as_rlinf_names_them(made, tmp_path):
    import torch.distributed.checkpoint as dcp

    weights = torch.load(made / "w.pt", weights_only=True)
    state = {f"fsdp_checkpoint.model.{name}": tensor for name, tensor in weights.items()}
    dcp.save({**state, "fsdp_checkpoint.rng": torch.ones(1)}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert run(made, tmp_path / "out", ckpt=tmp_path / "dcp") == 0


@pytest.fixture
def step(made, tmp_path):
    """A finished checkpoint, to be broken."""
    return Path(shutil.copytree(made / "global_step_3", tmp_path / "global_step_3"))


@pytest.mark.parametrize("inner", ["", "actor", "actor/dcp_checkpoint", "actor/model_state_dict/full_weights.pt"])
def test_a_checkpoint_that_was_not_finished(inner, step, made, tmp_path, capsys):
    (step / MARK).unlink()
    assert "was not finished being written" in told(capsys, made, tmp_path / "out", ckpt=step / inner)
    partial = step.rename(step.with_name("global_step_3.partial-x1"))
    assert "was not finished" in told(capsys, made, tmp_path / "out", ckpt=partial / inner)


def test_a_copy_of_a_checkpoint_that_is_cut(step, made, tmp_path, capsys):
    with full_weights_file(step).open("ab") as file:
        file.truncate(1000)
    line = told(capsys, made, tmp_path / "out", ckpt=step)
    assert "full_weights.pt has 1000 of" in line and "convertor.ckpt_path" in line


def test_weights_that_another_program_saved_there(step, made, tmp_path, capsys):
    """Without mark and state: not ours. Named themselves they are read; the folder is not guessed at."""
    (step / MARK).unlink()
    state_file(step).unlink()
    assert "if another program wrote it" in told(capsys, made, tmp_path / "out", ckpt=step)
    for number, path in enumerate((full_weights_file(step), dcp_folder(step))):
        assert run(made, tmp_path / f"out{number}", "convertor.verify=false", ckpt=path) == 0


def test_without_the_file_of_all_weights_the_sharded_ones_are_read(step, made, tmp_path, capsys):
    full_weights_file(step).unlink()
    mark(step)
    assert run(made, tmp_path / "out", "convertor.verify=false", ckpt=step) == 0
    assert str(dcp_folder(step)) in capsys.readouterr().out


def test_a_folder_of_checkpoints(step, made, tmp_path, capsys):
    line = told(capsys, made, tmp_path / "out", ckpt=step.parent)
    assert "is no checkpoint" in line and "global_step_3" in line


def test_a_place_that_is_taken(made, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert run(made, tmp_path / "out", "convertor.verify=false") == 0, "an empty folder is none"
    before = sorted(tmp_path.rglob("*"))
    assert run(made, tmp_path / "out") == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_to_an_empty_folder_and_a_relative_place(made, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert run(made, tmp_path / "out", "convertor.verify=false") == 0
    assert (tmp_path / "disk" / "model.safetensors").is_file() and (tmp_path / "out").is_symlink()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert run(made, Path("new/deep"), "convertor.verify=false") == 0
    assert [path.name for path in (tmp_path / "empty" / "new").iterdir()] == ["deep"]


def test_a_place_inside_what_is_converted(step, made, tmp_path, capsys):
    """There, the result would be removed with the checkpoint, or copied with the base by the next conversion."""
    line = told(capsys, made, step / "actor" / "hf", ckpt=step)
    assert f"is inside a checkpoint, which runner.keep_last may remove ({step})" in line
    assert "is inside model.model_path" in told(capsys, made, made / "base" / "out")


@pytest.mark.parametrize("inner", ["", "actor", "actor/dcp_checkpoint"])
def test_the_folder_that_one_stands_in_and_a_link(inner, step, made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(step / inner)
    assert run(made, tmp_path / "out", "convertor.verify=false", ckpt=Path(".")) == 0
    (tmp_path / "latest").symlink_to(step)
    assert run(made, tmp_path / "out2", "convertor.verify=false", ckpt=tmp_path / "latest" / inner) == 0
    (step / MARK).unlink()
    capsys.readouterr()
    line = told(capsys, made, tmp_path / "out3", ckpt=tmp_path / "latest" / inner)
    assert "was not finished being written" in line


def test_the_script_itself_runs_from_anywhere(made, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = ROOT / "toolkits" / "ckpt_convertor" / "fsdp_convertor" / "convert_pt_to_hf.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2 and "error: convertor.ckpt_path=null" in done.stderr, done.stderr


def test_a_folder_beside_that_is_not_ours(made, tmp_path, capsys):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("mine")
    assert run(made, tmp_path / "out") == 2
    assert "was not made here; remove it" in capsys.readouterr().err
    assert (tmp_path / "out.partial" / "thesis.txt").read_text() == "mine"


def test_what_a_killed_conversion_left_is_removed_and_what_a_running_one_writes_is_not(made, tmp_path, capsys):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "model.safetensors").write_text("half")
    with (tmp_path / "out.partial" / ".converting").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(made, tmp_path / "out") == 2
        assert "another process is converting to it" in capsys.readouterr().err
        assert (tmp_path / "out.partial" / "model.safetensors").exists()
    assert run(made, tmp_path / "out", "convertor.verify=false") == 0
    assert not (tmp_path / "out.partial").exists() and not (tmp_path / "out" / ".converting").exists()


def test_no_room(tmp_path):
    with pytest.raises(UserError, match=r"convertor.save_path: .* MiB are needed, and .* are free at .*; make room"):
        check_space(tmp_path, 2**60)
    check_space(tmp_path, 0)


def test_a_disk_that_fills_up(made, tmp_path):
    """The limit on a file's size stands for it: told in one line, status 1, nothing left."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000));"
        "from toolkits.ckpt_convertor.fsdp_convertor.convert_pt_to_hf import main; sys.exit(main(sys.argv[1:]))"
    )
    paths = [f"convertor.ckpt_path={made}/w.pt", f"convertor.save_path={tmp_path}/out", f"model.model_path={made}/base"]
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "File too large" in done.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_conversion_that_is_stopped_leaves_nothing(number, status, made, tmp_path):
    module = "toolkits.ckpt_convertor.fsdp_convertor.convert_pt_to_hf"
    paths = [f"convertor.ckpt_path={made}/w.pt", f"convertor.save_path={tmp_path}/out", f"model.model_path={made}/base"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", module, *paths], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        end = time.monotonic() + 120
        while not (tmp_path / "out.partial" / "model.safetensors").exists():  # then it verifies, which takes longer
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(number)
        _, told_there = process.communicate(timeout=120)
    assert process.returncode == status, told_there
    assert list(tmp_path.iterdir()) == []


BASES = {
    "quantized": (lambda b: _config(b, quantization_config={"bits": 4}), ["is quantized"]),
    "no such model": (lambda b: _config(b, model_type="qwen99"), ["no image-text-to-text model"]),
    "another size": (lambda b: _config(b, text_config=_layers(3)), ["the folder lacks 12 tensors"]),
    "smaller": (lambda b: _config(b, text_config=_layers(1)), ["has no place for the tensor"]),
    "wider": (lambda b: _config(b, text_config={"intermediate_size": 50}), ["has the shape [32, 48]", "says [32, 50]"]),
    "only torch's files": (
        lambda b: (b / "model.safetensors").rename(b / "pytorch_model.bin"),
        ["not in model.safetensors", "save_pretrained"],
    ),
    "cut": (lambda b: os.truncate(b / "model.safetensors", 3000), ["is cut"]),
    "no processor": (lambda b: (b / "processor_config.json").unlink(), ["no processor"]),
    "a tokenizer of something else": (lambda b: _rename_token(b), ["does not know", "<|image_pad|>"]),
}


def _layers(number: int) -> dict:
    return {"num_hidden_layers": number, "layer_types": ["full_attention"] * number}


def _config(base: Path, **changes) -> None:
    config = json.loads((base / "config.json").read_text())
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) and key in config else value
    (base / "config.json").write_text(json.dumps(config))


def _rename_token(base: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (base / name).read_text().replace("<|image_pad|>", "<|other_pad|>")
        (base / name).write_text(text)


@pytest.mark.parametrize(("change", "expected"), BASES.values(), ids=BASES)
def test_a_base_folder_that_cannot_be_used(change, expected, made, tmp_path, capsys):
    shutil.copytree(made / "base", tmp_path / "base")
    change(tmp_path / "base")
    line = told(capsys, made, tmp_path / "out", f"model.model_path={tmp_path}/base")
    assert "model.model_path" in line or "model.model_type" in line
    for part in expected:
        assert part in line
