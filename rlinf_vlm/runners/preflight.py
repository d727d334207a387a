"""Everything that can be known before a process starts: files, columns, model, placement, arithmetic.

    Config -> facts (machine, model folder, rows) -> Plan, or UserError

Every check names the key, what was given, what is there, and the remedy. Nothing is started and no torch is imported.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlinf_vlm.cluster.placement import ComponentPlacement, Topology, parse_component_placement
from rlinf_vlm.config.memory import GIB, Circumstances
from rlinf_vlm.config.passes import Passes, choose_packing, choose_passes
from rlinf_vlm.config.resolve import (
    MICRO_BATCH_SIZE,
    Batching,
    Schedule,
    Start,
    check_intervals,
    check_run_length,
    check_task,
    resolve_batching,
    resolve_schedule,
    shard_size,
)
from rlinf_vlm.config.schema import Config, GroupPlacement
from rlinf_vlm.data.kinds import make_kind
from rlinf_vlm.data.sources import inspect_paths
from rlinf_vlm.models.families import FamilySpec, check_family, resolve_family
from rlinf_vlm.models.folder import ModelFolder, read_model_folder
from rlinf_vlm.models.parts import LinearLayer, adapted_layers, adapter_size, count_trained
from rlinf_vlm.runners.engine_checks import check_cache, check_engine, longest_sequence
from rlinf_vlm.runners.resume import Origin
from rlinf_vlm.runners.rl_checks import check_rl
from rlinf_vlm.runners.rl_plan import ACTOR, RlPlan, place_components, plan_rl
from rlinf_vlm.tracking import check_backends
from rlinf_vlm.types import UserError

GATED_MLP = ("gate_proj", "up_proj", "down_proj")
"""Linear layers of a gated MLP."""
_BLOCK = re.compile(r"(^|\.)(blocks|layers?)\.\d+\.")
"""In names of weights that belong to a decoder layer or a vision block; each of these is gathered for itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a config comes to. ``schedule`` is None without training, or while the number of rows is unknown."""

    topology: Topology
    placements: tuple[ComponentPlacement, ...]
    batching: Batching
    schedule: Schedule | None
    shard: int
    passes: Passes
    packing_reason: str
    model: ModelFolder
    parameters: int | None
    """Of the model, adapters included; None: not known before loading."""
    trained: int | None
    """Parameters that are trained; None: not known before loading."""
    adapted: tuple[LinearLayer, ...] | None
    """The layers that get adapters, empty without LoRA; None: not known before loading."""
    train_rows: int | None
    eval_rows: int | None
    test_rows: int | None
    origin: Origin | None
    """Where the weights come from; None: from the model folder."""
    rl: RlPlan | None = None
    """Of reinforcement learning alone."""


def check_config(config: Config) -> tuple[ModelFolder, int | None, int | None, int | None]:
    """All checks that need no machine. The model folder; training, evaluation and test rows (None: unknown)."""
    check_intervals(config)
    check_task(config)
    if config.data.train_data_paths is not None:
        check_run_length(config.runner)
    check_backends(config.runner.logger.logger_backends)
    model = read_model_folder(config.actor.model.model_path)
    family = _check_family(config.actor.model.model_type, model)
    if config.actor.packing is True and not family.supports_packing:
        wanted = f"actor.packing=true, but model_type={config.actor.model.model_type!r}"
        raise UserError(f"{wanted} cannot run packed samples; set actor.packing to auto or false")
    adapted_layers(config.actor.model, model.shapes, family)
    if is_rl(config):
        check_rl(config)
        if config.runner.replay_rollouts is None:
            check_engine(config, model)
    kind = make_kind(config.data)
    train_rows = inspect_paths(config.data.train_data_paths, "data.train_data_paths", kind)
    eval_rows = inspect_paths(config.data.eval_data_paths, "data.eval_data_paths", kind)
    test_rows = inspect_paths(config.data.test_data_paths, "data.test_data_paths", kind)
    return model, train_rows, eval_rows, test_rows


def _check_family(model_type: str, model: ModelFolder) -> FamilySpec:
    """The family that ``actor.model.model_type`` names, if it reads this checkpoint."""
    try:
        family = resolve_family(model_type)
        check_family(family, model.model_type)
    except ValueError as error:
        raise UserError(f"actor.model.model_type={model_type!r} with {model.path}: {error}") from error
    return family


def make_plan(
    config: Config,
    topology: Topology,
    model: ModelFolder,
    train_rows: int | None,
    eval_rows: int | None,
    test_rows: int | None = None,
    origin: Origin | None = None,
) -> Plan:
    """Placement and arithmetic on ``topology``."""
    placements = parse_component_placement(_placement_rules(config), topology)
    if is_rl(config):
        placements = place_components(config, placements)
    _check_placed(config, placements)
    processes = placements[0].processes
    _check_attention(config, on_gpu=processes[0].is_gpu)
    world_size = len(processes)
    on_first_node = sum(process.node == processes[0].node for process in processes)
    trains = config.data.train_data_paths is not None
    family = _check_family(config.actor.model.model_type, model)
    batching, packing_reason = plan_batching(config, family, world_size)
    start = Start() if origin is None else origin.start
    schedule = resolve_schedule(config, train_rows, start) if trains and train_rows is not None else None
    adapted, rank = adapted_layers(config.actor.model, model.shapes, family), config.actor.model.lora_rank
    shard = shard_size(config.actor, world_size, on_first_node)
    parameters = None if model.parameters is None else model.parameters + adapter_size(adapted or (), rank)
    memory = rank_memory(on_gpu=processes[0].is_gpu, ranks_on_node=on_first_node)
    if len(placements) > 1 and not placements[1].processes[0].is_gpu:
        check_cache(config, model, rank_memory(on_gpu=False, ranks_on_node=1))
    return Plan(
        topology=topology,
        placements=placements,
        batching=batching,
        schedule=schedule,
        shard=shard,
        passes=plan_passes(
            config, family, model, batching, shard, parameters, on_gpu=processes[0].is_gpu, memory=memory
        ),
        packing_reason=packing_reason,
        model=model,
        parameters=parameters,
        trained=count_trained(config.actor.model, model.shapes, family),
        adapted=None if adapted is None else tuple(adapted),
        train_rows=train_rows,
        eval_rows=eval_rows,
        test_rows=test_rows,
        origin=origin,
        rl=plan_rl(config, placements, schedule) if is_rl(config) else None,
    )


def is_rl(config: Config) -> bool:
    """Whether the run samples answers, or trains on recorded ones."""
    return config.runner.task_type != "sft"


def _check_placed(config: Config, placements: Sequence[ComponentPlacement]) -> None:
    names = [placement.name for placement in placements]
    if not is_rl(config) and names != [ACTOR]:
        raise UserError(
            f"cluster.component_placement places {names}, but runner.task_type={config.runner.task_type!r} runs "
            f"['{ACTOR}']; place the actor and nothing else"
        )


def plan_batching(config: Config, family: FamilySpec, world_size: int) -> tuple[Batching, str]:
    """How a step is divided, and why it is packed or not. Without training the batch sizes need not fit the ranks."""
    actor = config.actor
    packing, reason = choose_packing(actor, packs=family.supports_packing)
    if config.data.train_data_paths is not None and is_rl(config):
        answers = config.data.rollout_batch_size * config.algorithm.group_size
        return Batching(
            world_size=world_size,
            # Answers go to ranks by cost, groups whole: their number need not divide.
            global_batch_size=-(-answers // config.algorithm.n_minibatches),
            micro_batch_size=None if packing else actor.micro_batch_size or MICRO_BATCH_SIZE,
            max_tokens=actor.max_tokens_per_micro_batch if packing else None,
        ), reason
    if config.data.train_data_paths is not None:
        return resolve_batching(actor, world_size, packing=packing), reason
    return Batching(
        world_size=world_size,
        global_batch_size=actor.global_batch_size,
        micro_batch_size=actor.micro_batch_size,
        max_tokens=None,
    ), reason


def plan_passes(
    config: Config,
    family: FamilySpec,
    model: ModelFolder,
    batching: Batching,
    shard: int,
    parameters: int | None,
    *,
    on_gpu: bool,
    memory: int | None,
) -> Passes:
    """How the ranks compute. ``memory``: bytes of one rank's device, None where not known."""
    data = config.data
    longest = longest_sequence(config)[0] if is_rl(config) else data.max_length or data.max_prompt_length
    tokens = batching.max_tokens
    if tokens is None and longest is not None and batching.micro_batch_size is not None:
        tokens = batching.micro_batch_size * longest
    widths = [
        shape[0] for name, shape in model.shapes.items() if "visual." in name and name.endswith("mlp.gate_proj.weight")
    ]
    adapted = adapted_layers(config.actor.model, model.shapes, family) or ()
    facts = Circumstances(
        on_gpu=on_gpu,
        trains=data.train_data_paths is not None,
        packs=family.supports_packing,
        packing=batching.max_tokens is not None,
        world_size=batching.world_size,
        has_experts=any(".experts." in name for name in model.shapes),
        vision_mlp=widths[0] if widths else None,
        adapted_mlp=any(layer.part == "vision_tower" and layer.name in GATED_MLP for layer in adapted),
        parameters=parameters,
        trained=count_trained(config.actor.model, model.shapes, family),
        largest_block=model.largest_block,
        outside=sum(math.prod(shape) for name, shape in model.shapes.items() if not _BLOCK.search(name)),
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        tokens=tokens,
        shard=shard,
        memory=memory,
    )
    return choose_passes(config.actor, facts)


def rank_memory(*, on_gpu: bool, ranks_on_node: int) -> int | None:
    """Bytes that one rank can use on a machine like this one: its GPU's, or its part of the host's; None: not known."""
    if not on_gpu:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks_on_node
    listed = _nvidia_smi("--query-gpu=memory.total", "--format=csv,noheader,nounits")
    sizes = [int(line) for line in listed if line.strip().isdigit()]
    return min(sizes) * GIB // 1024 if sizes else None


def _check_attention(config: Config, *, on_gpu: bool) -> None:
    """The variable-length kernels run on a GPU in bf16 only."""
    wanted, dtype = config.actor.model.attn_implementation, config.actor.compute_dtype
    if wanted in ("varlen", "flash_attention_2") and not (on_gpu and dtype == "bf16"):
        place = "a GPU" if on_gpu else "the CPU"
        raise UserError(
            f"actor.model.attn_implementation={wanted!r} needs a GPU and bf16, but the actor computes in {dtype} on "
            f"{place}; set it to auto or sdpa"
        )


def local_topology(config: Config) -> Topology:
    """The cluster as far as it is known without joining it: ``num_nodes`` machines like this one."""
    cluster = config.cluster
    if cluster.num_nodes > 1 and not os.environ.get("RAY_ADDRESS"):
        raise UserError(
            f"cluster.num_nodes={cluster.num_nodes}, but RAY_ADDRESS is not set, which means this 1 machine; start Ray "
            "on all nodes ('ray start') and set RAY_ADDRESS, or set cluster.num_nodes=1"
        )
    return Topology(
        accelerators=(count_local_gpus(os.environ),) * cluster.num_nodes,
        cpu_workers_per_node=cluster.cpu_workers_per_node,
        node_groups=node_groups(config),
    )


def node_groups(config: Config) -> dict[str, tuple[int, ...]]:
    """Label -> node ranks."""
    return {group.label: _node_ranks(group.label, str(group.node_ranks)) for group in config.cluster.node_groups}


def _node_ranks(label: str, text: str) -> tuple[int, ...]:
    """ "0-2,5" -> (0, 1, 2, 5)."""
    ranks: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", piece)
        if not match:
            raise UserError(
                f"cluster.node_groups: node_ranks={text!r} of {label!r}: {piece!r} is not a node rank or a range; "
                'write it like "0-2,5"'
            )
        first, last = int(match[1]), int(match[2] or match[1])
        ranks += range(first, last + 1)
    return tuple(ranks)


def count_local_gpus(environment: Mapping[str, str]) -> int:
    """GPUs that this process may use: CUDA_VISIBLE_DEVICES where it is set, else what the driver lists."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    return len(_nvidia_smi("--list-gpus"))


def _nvidia_smi(*arguments: str) -> list[str]:
    """The lines that the driver's tool prints; none where there is no driver."""
    try:
        listed = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return []
    return listed.stdout.splitlines() if listed.returncode == 0 else []


def _placement_rules(config: Config) -> dict[str, object]:
    return {
        key: {"node_group": rule.node_group, "placement": rule.placement} if isinstance(rule, GroupPlacement) else rule
        for key, rule in config.cluster.component_placement.items()
    }
