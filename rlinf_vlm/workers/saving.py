"""What a checkpoint of the actor holds, and how an actor goes on from one.

    policy + optimizer --begin--> dcp_checkpoint/ --complete--> full_weights.pt or lora_adapter/

The one file of weights is made from the sharded files once these are written, in the background: it costs the training
nothing and is what a resumed run would read. AdamW's state is kept by parameter name, so it does not depend on how the
parameters were sharded or grouped. The learning rate is a function of the step, which is all there is to a scheduler.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from rlinf_vlm.checkpoints import adapter_folder, dcp_folder, full_weights_file, state_file
from rlinf_vlm.config.schema import Config
from rlinf_vlm.distributed.checkpoint import (
    FINISHED_STEPS,
    OPTIMIZER,
    WEIGHTS,
    CheckpointWriter,
    read_shapes,
    read_tensors,
    read_whole,
    write_weights,
)
from rlinf_vlm.distributed.rng import seed_everything, set_random_state
from rlinf_vlm.models.lora import write_adapter
from rlinf_vlm.types import UserError
from rlinf_vlm.workers.model import Policy

MOMENTS = ("exp_avg", "exp_avg_sq")


class ActorSaver:
    """Saves one rank's policy and optimizer; every rank makes one."""

    def __init__(self, config: Config, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
        self._config = config
        self._policy = policy
        self._optimizer = optimizer
        self._writer = CheckpointWriter()
        # Rank 0 reads the sharded files alone; torch says so each time.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")

    def begin(self, folder: Path, partial: Path, state: Mapping[str, Any]) -> None:
        """Starts to write; ``state`` goes to state.json. Returns once the tensors are copied."""
        tensors = {WEIGHTS + name: tensor for name, tensor in self._policy.state().items()}
        for key, parameter in trained_parameters(self._policy):
            # A parameter that no pass reached (an unused layer of some model) has no state.
            for moment, tensor in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{OPTIMIZER}{key}.{moment}"] = tensor
        tensors[FINISHED_STEPS] = torch.tensor(state["step"])
        self._writer.begin(folder, partial, tensors, state, self._complete)

    def finished(self, *, wait: bool) -> float | None:
        """See ``CheckpointWriter.finished``."""
        return self._writer.finished(wait=wait)

    def _complete(self, partial: Path) -> None:
        if self._policy.adapter_config is not None:
            weights = read_whole(dcp_folder(partial), WEIGHTS)
            write_adapter(adapter_folder(partial), weights, self._policy.adapter_config)
        elif self._config.runner.save_full_weights:
            write_weights(full_weights_file(partial), read_whole(dcp_folder(partial), WEIGHTS))


def restore_optimizer(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """Gives ``optimizer`` the state that the checkpoint ``folder`` has for its parameters."""
    source = dcp_folder(folder)
    saved = read_shapes(source, OPTIMIZER)
    wanted: dict[str, torch.Tensor] = {FINISHED_STEPS: torch.zeros((), dtype=torch.int64)}
    for name, parameter in trained_parameters(policy):
        if f"{name}.step" in saved:
            wanted[f"{OPTIMIZER}{name}.step"] = torch.zeros((), device=parameter.device)
            wanted |= {f"{OPTIMIZER}{name}.{moment}": torch.zeros_like(parameter.detach()) for moment in MOMENTS}
    found = read_tensors(source, wanted)
    for name, parameter in trained_parameters(policy):
        if f"{name}.step" in saved:
            optimizer.state[parameter] = {moment: found[f"{OPTIMIZER}{name}.{moment}"] for moment in ("step", *MOMENTS)}
    step = _read_state(folder)["step"]
    if int(found[FINISHED_STEPS]) != step:
        raise UserError(
            f"{folder}: state.json says step {step}, dcp_checkpoint step {int(found[FINISHED_STEPS])}; it was put "
            "together from two checkpoints, give another one"
        )


def restore_random_state(folder: Path, rank: int, seed: int) -> None:
    """This rank's random state of then; a rank that there was not gets one of its own."""
    state = _read_state(folder)
    if rank < len(state["random_states"]):
        set_random_state(state["random_states"][rank])
    else:
        seed_everything(seed + rank + 1_000_003 * state["step"])


def trained_parameters(policy: Policy) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Name in the transformers model and parameter, of those that are trained."""
    for name, parameter in policy.module.named_parameters():
        if parameter.requires_grad:
            yield policy.module.hf_state_name(name), parameter


def _read_state(folder: Path) -> Any:
    return json.loads(state_file(folder).read_text(encoding="utf-8"))
