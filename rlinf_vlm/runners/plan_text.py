"""The plan as lines of text: what ``runner.dry_run=true`` prints and ``plan.txt`` keeps."""

from __future__ import annotations

from collections.abc import Sequence

from rlinf_vlm.cluster.placement import placement_table
from rlinf_vlm.config.rl import AlgorithmConfig, EnvConfig
from rlinf_vlm.config.schema import Config
from rlinf_vlm.runners.preflight import Plan
from rlinf_vlm.runners.rl_plan import RlPlan

GIB = 1024**3


def plan_text(config: Config, plan: Plan) -> str:
    """The whole plan."""
    sections = [
        ("Placement", _placement(plan)),
        ("Data", _data(config, plan)),
        *([("Rollout", _rollout(config, plan.rl))] if plan.rl is not None else []),
        ("Batch", _batch(config, plan)),
        ("Length", _length(config, plan)),
        ("Model", _model(config, plan)),
        ("Passes", _passes(config, plan)),
        ("Memory on each rank (estimate)", _memory(config, plan)),
    ]
    return "\n".join(f"{title}\n" + "\n".join(f"  {line}" for line in lines) for title, lines in sections)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells, aligned in columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _placement(plan: Plan) -> list[str]:
    rows = [["component", "rank", "node", "resources", "share"]]
    for row in placement_table(plan.placements):
        kind = "GPU" if row.is_gpu else "CPU slot"
        devices = ",".join(map(str, row.devices)) or "-"
        share = "-" if row.share is None else f"{row.share:.2f}"
        rows.append([row.component, str(row.rank), str(row.node), f"{kind} {devices}", share])
    return table(rows)


def _data(config: Config, plan: Plan) -> list[str]:
    def rows(paths: object, count: int | None) -> str:
        if paths is None:
            return "none"
        return f"{paths} ({'rows counted when loaded' if count is None else f'{count:,} rows'})"

    data = config.data
    return [
        f"kind        {data.dataset_name}, {data.num_workers} loading processes a rank, bad rows: {data.on_bad_row}",
        f"training    {rows(data.train_data_paths, plan.train_rows)}",
        f"evaluation  {rows(data.eval_data_paths, plan.eval_rows)}",
        *([f"test        {rows(data.test_data_paths, plan.test_rows)}"] if data.test_data_paths is not None else []),
    ]


def _batch(config: Config, plan: Plan) -> list[str]:
    if config.data.train_data_paths is None:
        return [f"evaluation only: actor.eval_batch_size={config.actor.eval_batch_size} rows a pass"]
    batching = plan.batching
    if plan.rl is not None:
        return _rl_batch(config, plan)
    head = f"{batching.global_batch_size} samples a step = {batching.world_size} ranks x {batching.samples_per_rank}"
    if plan.passes.balance_tokens:
        head = f"{batching.global_batch_size} samples a step, about {batching.samples_per_rank} a rank, by cost"
    if batching.max_tokens is not None:
        return [head, f"each rank packs its samples into micro-batches of at most {batching.max_tokens:,} tokens"]
    passes = batching.micro_batches_per_rank
    budget = config.data.max_length or config.data.max_prompt_length
    tokens = (
        f"; up to about {batching.micro_batch_size * budget:,} tokens each"
        if budget and batching.micro_batch_size
        else ""
    )
    return [head, f"each rank: {passes} micro-batches x {batching.micro_batch_size} samples{tokens}"]


def _rl_batch(config: Config, plan: Plan) -> list[str]:
    """How a step's answers are divided."""
    assert plan.rl is not None, "of reinforcement learning"
    algorithm, batching = config.algorithm, plan.batching
    updates = f"{algorithm.n_minibatches} updates" if algorithm.n_minibatches > 1 else "1 update (strictly on-policy)"
    filled = (
        f"micro-batches of at most {batching.max_tokens:,} tokens"
        if batching.max_tokens is not None
        else f"micro-batches of {batching.micro_batch_size} answers"
    )
    return [
        f"{plan.rl.answers} answers a step = {plan.rl.prompts} prompts x {algorithm.group_size}, in {updates}",
        f"groups go to the {batching.world_size} ranks whole, by tokens; {filled}",
    ]


def _rollout(config: Config, rl: RlPlan) -> list[str]:
    """Engines, sampling, push, reward, algorithm."""
    algorithm = config.algorithm
    if rl.transport is None:
        source = [f"recorded answers in {config.runner.replay_rollouts}; no engine, no reward"]
    else:
        params, evaluation = algorithm.sampling_params, algorithm.eval_sampling_params
        sampled = f"{evaluation.n} at temperature {evaluation.temperature:g}" if evaluation.n else "none sampled"
        sampled += "".join(f"; {one.name}: {one.n} at {one.temperature:g}" for one in algorithm.eval_settings)
        source = [
            f"engines     {rl.engines} of {config.rollout.tensor_parallel_size} device(s), at most "
            f"{config.rollout.max_num_seqs} answers at once each; sleep {_word(rl.sleeps)} ({rl.reasons['sleep']})",
            f"sampling    temperature {params.temperature:g}, at most {params.max_new_tokens:,} tokens; "
            f"evaluation: greedy, {sampled}",
            *_environment(config.env),
            f"weights     pushed through {rl.transport} ({rl.reasons['transport']})",
            f"reward      {config.reward.name} {config.reward.options or ''}".rstrip()
            + f", {config.reward.num_workers} processes, {config.reward.time_limit:g} s an answer",
        ]
    correction = algorithm.rollout_correction
    corrected = f"{correction.mode} at {correction.upper:g} by {correction.level}" if correction.enabled else "none"
    reference = f"{algorithm.kl_penalty_type} x {algorithm.kl_beta:g} in the {algorithm.kl_in}"
    if algorithm.kl_penalty_type == "k1" and algorithm.kl_in == "loss":
        reference += " (its mean gradient is 0: it restrains nothing)"
    return [
        *source,
        f"algorithm   {algorithm.adv_type}, {algorithm.loss_type} -{algorithm.clip_ratio_low:g}/"
        f"+{algorithm.clip_ratio_high:g}, {algorithm.loss_agg_func}; rollout correction {corrected}; "
        f"divergence {reference if algorithm.kl_beta else 'none (no reference is built)'}",
        *_extras(algorithm),
        *_rl_notes(config),
    ]


def _environment(env: EnvConfig) -> list[str]:
    """Whom the policy speaks with; nothing where its first answer is all."""
    if env.name == "single_turn":
        return []
    turn = "" if env.max_new_tokens is None else f" of at most {env.max_new_tokens:,} tokens"
    evaluated = f"; in evaluation {env.eval_options}" if env.eval_options else ""
    return [
        f"environment {env.name} {env.options or ''}".rstrip()
        + f", at most {env.max_turns} turns{turn}, {env.max_observation_tokens:,} tokens an observation, "
        f"{env.time_limit:g} s a call{evaluated}"
    ]


def _extras(algorithm: AlgorithmConfig) -> list[str]:
    """What of the algorithm is off unless asked for."""
    dynamic, overlong = algorithm.dynamic_sampling, algorithm.overlong
    limit = algorithm.sampling_params.max_new_tokens
    parts = []
    if dynamic.enabled:
        parts.append(f"groups of equal rewards are replaced, up to {dynamic.max_rounds} rounds a step")
    if overlong.buffer:
        parts.append(f"from {limit - overlong.buffer:,} tokens on up to {overlong.factor:g} is taken off the reward")
    if overlong.filter_truncated:
        parts.append("truncated answers are left out of the loss")
    if algorithm.entropy_bonus:
        parts.append(f"entropy bonus {algorithm.entropy_bonus:g}")
    return [f"besides     {'; '.join(parts)}"] if parts else []


def _rl_notes(config: Config) -> list[str]:
    """What runs, and is hardly what was meant."""
    algorithm, env = config.algorithm, config.env
    notes: list[str] = []
    if env.name != "single_turn" and env.max_turns == 1:
        notes.append("note: env.max_turns=1: a conversation ends before the environment has said anything")
    if env.name == "geo3k_tool" and {**env.options, **env.eval_options}.get("tool", True):
        notes.append(
            "note: geo3k_tool knows the right answers, in evaluation too; set env.eval_options={tool: false} for an "
            "honest one"
        )
    if algorithm.loss_type == "gspo" and algorithm.n_minibatches > 1 and algorithm.clip_ratio_high > 0.05:
        notes.append(
            f"note: gspo clips the mean ratio of an answer, which never gets to 1 + {algorithm.clip_ratio_high:g}; "
            "usual are clip_ratio_low=3e-4 and clip_ratio_high=4e-4"
        )
    judges = config.runner.replay_rollouts is None and config.reward.name == "composite"
    parts = config.reward.options["parts"] if judges else None
    most = sum(max(0.0, float(part.get("weight", 1.0))) for part in parts.values()) if parts else 1.0
    if most < 1.0 - 1e-9:
        notes.append(
            f"note: eval/accuracy counts the answers of reward 1, and the reward's weights add up to {most:g}; look at "
            "eval/reward_mean and its parts"
        )
    return notes


def _length(config: Config, plan: Plan) -> list[str]:
    runner, optim, schedule = config.runner, config.actor.optim, plan.schedule
    if config.data.train_data_paths is None:
        return ["one evaluation"]
    if schedule is None:
        return [
            f"max_epochs={runner.max_epochs}, max_steps={runner.max_steps}; steps and LR horizon follow from the rows, "
            "which are counted when loaded"
        ]
    epochs = schedule.total_samples / schedule.train_rows
    last = optim.lr if optim.lr_scheduler == "constant" else optim.min_lr
    begin = schedule.start
    resumed = [f"goes on after step {begin.step:,} ({begin.samples:,} samples)"] if begin.step else []
    lines = [
        *resumed,
        f"{schedule.total_steps:,} steps = {epochs:.2f} epochs of {schedule.steps_per_epoch:.2f} steps "
        f"({schedule.train_rows:,} rows)",
        f"learning rate {optim.lr_scheduler}: {schedule.warmup_steps} warm-up steps to {optim.lr:g}, "
        f"horizon {schedule.lr_horizon:,} steps, then {last:g}",
        f"evaluation {_every(runner.val_check_interval)}; checkpoint {_every(runner.save_interval)}",
    ]
    return [*lines, *(f"note: {note}" for note in schedule.notes)]


def _every(interval: int) -> str:
    return "never" if interval == -1 else f"every {interval:,} steps and at the end"


def _model(config: Config, plan: Plan) -> list[str]:
    model, origin = config.actor.model, plan.origin
    weights = [] if origin is None else [f"weights of {origin.weights} ({origin.step:,} steps trained)"]
    parameters = plan.parameters
    count = "unknown (no safetensors)" if parameters is None else f"{parameters:,}"
    trained = "trained: counted when loaded" if plan.trained is None else f"{plan.trained:,} trained"
    if config.data.train_data_paths is None:
        trained = "none trained"
    return [
        f"{model.model_type} from {model.model_path}: {count} parameters, {trained}",
        *_adapters(config, plan),
        f"{model.precision} weights, {config.actor.compute_dtype} computing, "
        f"sharded over {plan.shard} of {plan.batching.world_size} ranks",
        *weights,
    ]


def _adapters(config: Config, plan: Plan) -> list[str]:
    """What LoRA does to this model, and what it leaves out."""
    model = config.actor.model
    if not model.is_lora:
        return []
    if plan.adapted is None:
        where = f"the linear layers that lora_target={list(model.lora_target)} names"
    else:
        parts = sorted({str(layer.part) for layer in plan.adapted})
        names = sorted({layer.name for layer in plan.adapted})
        where = f"{len(plan.adapted)} linear layers of {', '.join(parts)} ({', '.join(names)})"
    fused = [name for name in plan.model.shapes if ".experts." in name]
    note = ["note: the experts are fused tensors and no linear layers, so they get no adapters"] if fused else []
    return [
        f"LoRA of rank {model.lora_rank}, alpha {model.adapter_alpha}, dropout {model.lora_dropout:g} on {where}",
        *note,
    ]


def _passes(config: Config, plan: Plan) -> list[str]:
    """Each way of computing: the key, what it is, why."""
    passes, trains = plan.passes, config.data.train_data_paths is not None
    packing = plan.batching.max_tokens is not None
    chosen: list[tuple[str, object, str]] = [
        ("packing", packing, plan.packing_reason if trains else "an evaluation counts rows"),
        ("balance_tokens", passes.balance_tokens, passes.reasons["balance_tokens"]),
        ("model.attn_implementation", config.actor.model.attn_implementation, _attention(config, plan)),
    ]
    for name in type(config.actor.passes).model_fields:
        chosen.append((f"passes.{name}", passes.switch(name), passes.reasons[f"passes.{name}"]))
    strategy = config.actor.fsdp_config.sharding_strategy
    if strategy == "auto":
        strategy = "full_shard" if passes.reshard else "shard_grad_op"
    for name, value in (
        ("sharding_strategy", strategy),
        ("accumulate_unsharded", passes.accumulate),
        ("gradient_checkpointing", _layers(passes.model.checkpointed)),
    ):
        chosen.append((f"fsdp_config.{name}", value, passes.reasons[f"fsdp_config.{name}"]))
    return table([[f"actor.{name}", _word(value), why] for name, value, why in chosen])


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _layers(part: float) -> str:
    return {0.0: "false", 1.0: "true"}.get(part, f"{part:.0%} of the layers")


def _attention(config: Config, plan: Plan) -> str:
    """Which attention will be taken; the kernels that are installed are known to the ranks only."""
    actor = config.actor
    if actor.model.attn_implementation != "auto":
        return "requested"
    if not plan.placements[0].processes[0].is_gpu or actor.compute_dtype != "bf16":
        return "sdpa: the variable-length kernels need a GPU and bf16"
    return "varlen, torch's variable-length kernel (flash_attention_2 where this torch has none)"


def _memory(config: Config, plan: Plan) -> list[str]:
    actor = config.actor
    parts = plan.passes.memory
    if parts is None:
        return ["unknown: the number of parameters is not known before loading"]
    if config.data.train_data_paths is None:
        held = {"weights": parts.weights, "gathered": parts.gathered, "total": parts.total}
        return table([[name, f"{size / GIB:.2f} GiB"] for name, size in held.items()])
    activations = parts.activations
    rows = [
        ["weights", f"{parts.weights / GIB:.2f} GiB"],
        ["gradients", f"{parts.gradients / GIB:.2f} GiB"],
        ["optimizer", f"{parts.optimizer / GIB:.2f} GiB"],
        ["gathered", f"{parts.gathered / GIB:.2f} GiB"],
        ["activations", "depends on the lengths" if activations is None else f"{activations / GIB:.2f} GiB"],
        ["total", f"{parts.total / GIB:.2f} GiB"],
    ]
    note = ["note: an upper bound; what is not trained is counted as if it were"] if plan.trained is None else []
    if config.runner.save_interval > 0:
        # Weights and two moments; with LoRA the adapters' alone, whose optimizer state is twice their size.
        copied = parts.optimizer + (parts.optimizer // 2 if actor.model.is_lora else parts.weights)
        note.append(f"and on the host, for copies while checkpoints are written: {copied / GIB:.2f} GiB")
    return [*table(rows), *note]
