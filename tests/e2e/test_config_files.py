"""Every YAML under examples/config composes, validates and is planned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.train_vlm import compose_config, main
from rlinf_vlm.config.load import field_paths, load_config

FOLDER = Path(__file__).parents[2] / "examples" / "config"
EXPERIMENTS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
MODELS = sorted(path.stem for path in (FOLDER / "model").glob("*.yaml"))


def dry(name: str, small_run: Path, *overrides: str) -> int:
    paths = [
        f"actor.model.model_path={small_run}/model",
        f"data.train_data_paths={small_run}/train",
        f"data.eval_data_paths={small_run}/test",
        "data.test_data_paths=null",
        f"runner.logger.log_path={small_run}/log",
    ]
    return main(["--config-path", str(FOLDER), "--config-name", name, "runner.dry_run=true", *paths, *overrides])


def test_there_are_experiments_and_models():
    assert {"custom_sft_vlm", "robo2vlm_sft", "easy_vqa_choices", "geo3k_sft"} <= set(EXPERIMENTS)
    assert {"geo3k_grpo", "geometry_grpo", "geometry_warmup"} <= set(EXPERIMENTS)
    assert {"geo3k_reinforce_pp", "geometry_reinforce_pp"} <= set(EXPERIMENTS)
    assert {"geo3k_grpo_multi_turn", "geometry_tool_warmup"} <= set(EXPERIMENTS)
    assert len(MODELS) == 5


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_planned(name, small_run, capsys):
    columns = ["data.dataset_name=robo2vlmsft", "data.choice_key=choices", "data.answer_key=correct_answer"]
    columns += ["data.messages_key=null", "data.image_keys=[image]", "data.prompt_key=question"]
    slots = ["cluster.cpu_workers_per_node=8"] if name == "geo3k_reinforce_pp" else []  # actor: 0-6, rollout: 7
    assert dry(name, small_run, *columns, *slots) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    task = compose_config(str(FOLDER), name, [])["runner"]["task_type"]
    step = "answers a step" if task == "reasoning" else "samples a step"
    for part in ("Placement", "CPU slot 0", step, "learning rate", "Memory", "64 rows", "101 rows"):
        assert part in shown
    assert not (small_run / "log").exists(), "a dry run writes nothing"


def test_the_recipe_of_maye_is_planned_on_its_rows_and_layout(small_run, tmp_path, capsys):
    row = {"question": "<image>What is $BC$?", "answer": "20", "solution": "\\boxed{20}", "image": "a.png"}
    paths = []
    for key, count in (("train", 2101), ("eval", 300), ("test", 601)):
        file = tmp_path / f"{key}.jsonl"
        file.write_text("".join(f"{json.dumps(row | {'id': str(n)})}\n" for n in range(count)), encoding="utf-8")
        paths.append(f"data.{key}_data_paths={file}")
    paths += [f"actor.model.model_path={small_run}/model", "cluster.cpu_workers_per_node=8"]
    assert main(["--config-name", "geo3k_reinforce_pp", "runner.dry_run=true", *paths]) == 0, capsys.readouterr().err
    shown = " ".join(capsys.readouterr().out.split())
    for rank in range(7):
        assert f"actor {rank} 0 CPU slot {rank} " in shown
    for part in (
        "rollout 0 0 CPU slot 7",
        "896 answers a step = 896 prompts x 1, in 32 updates",
        "reinpp, clipped -0.2/+0.2, token-mean",
        "divergence k1 x 0.001 in the reward",
        "high: 8 at 1; medium: 1 at 0.6; low: 1 at 0.01",
        "fp32 weights, bf16 computing",
    ):
        assert part in shown


@pytest.mark.parametrize(("setup", "turns", "rows"), [("tool_demo", 2, 16), ("qwen3_vl_2b", 3, 64)])
def test_each_setup_of_several_turns_is_planned(setup, turns, rows, small_run, capsys):
    columns = ["data.prompt_key=question", "data.answer_key=correct_answer", "data.image_keys=[image]"]
    columns += ["data.dataset_name=robo2vlmsft", "data.choice_key=choices", "actor.model.model_type=qwen2.5_vl"]
    columns += [f"algorithm.{kind}sampling_params.max_new_tokens=80" for kind in ("", "eval_")]
    assert dry("geo3k_grpo_multi_turn", small_run, f"setup={setup}", *columns) == 0, capsys.readouterr().err
    assert f"{rows * 8} answers a step" in capsys.readouterr().out
    config = load_config(compose_config(str(FOLDER), "geo3k_grpo_multi_turn", [f"setup={setup}"]))
    assert (config.env.name, config.env.max_turns, config.data.rollout_batch_size) == ("geo3k_tool", turns, rows)
    assert config.env.eval_options == {"tool": False}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_file_fits_the_experiment(name):
    tree = compose_config(str(FOLDER), "robo2vlm_sft", [f"model@actor.model={name}"])
    assert load_config(tree).actor.model.model_type


def test_overrides_reach_every_field():
    """Also the fields that the YAML leaves to their defaults, without a plus sign."""
    tree = compose_config(
        str(FOLDER),
        "custom_sft_vlm",
        [
            "actor.optim.min_lr=1e-6",
            "actor.model.freeze.vision_tower=true",
            "data.max_pixels=100352",
            "cluster.component_placement.actor=0-1,3",
            "cluster.node_groups=[{label: a, node_ranks: 0-1}]",
            "data.train_data_paths=null",
            "actor.fsdp_config.hybrid_shard_size=2",
        ],
    )
    config = load_config(tree)
    assert (config.actor.optim.min_lr, config.actor.model.freeze.vision_tower) == (1e-6, True)
    assert config.cluster.component_placement["actor"] == "0-1,3"
    assert config.cluster.node_groups[0].node_ranks == "0-1"
    assert config.data.train_data_paths is None and config.data.max_pixels == 100352


@pytest.mark.parametrize("text", ["{actor: 0, rollout: 1}", "{actor:0,rollout:1}", "{rollout: 1, actor: 0}"])
def test_a_whole_placement_takes_the_place_of_the_yamls(text):
    tree = compose_config(str(FOLDER), "geometry_grpo", [f"cluster.component_placement={text}", "actor.seed=3"])
    assert load_config(tree).cluster.component_placement == {"actor": 0, "rollout": 1}
    assert tree["actor"]["seed"] == 3


def test_no_field_needs_a_plus_sign():
    for path in field_paths():
        if path.count(".") >= 1 and path != "runner.logger":
            composed = compose_config(str(FOLDER), "custom_sft_vlm", [f"{path}=null"])
            node = composed
            for part in path.split("."):
                node = node[part]
            assert node is None


GUIDE = Path(__file__).parent / "rlinf_guide.yaml"


def test_the_guides_yaml_runs_as_written(small_run, capsys):
    """The YAML of RLinf's guide, only its three paths edited."""
    text = GUIDE.read_text(encoding="utf-8")
    for placeholder, path in {
        "/path/to/Robo2VLM-1/train_data": small_run / "train",
        "/path/to/Robo2VLM-1/test_data": small_run / "test",
        "/path/to/Qwen2.5-VL-3B-Instruct": small_run / "model",
    }.items():
        assert text.count(placeholder) == 1
        text = text.replace(placeholder, str(path))
    edited = small_run / "guide.yaml"
    edited.write_text(text, encoding="utf-8")
    assert main(["--config-name", str(edited), "runner.dry_run=true"]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "1,500 steps = 6000.00 epochs" in shown and "horizon 6,000 steps" in shown
