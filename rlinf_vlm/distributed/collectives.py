"""The process group of a worker group, and the few small reductions that a step needs.

Small numbers are reduced on the CPU (gloo) also where gradients travel by NCCL: no device is waited for.
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from rlinf_vlm.types import RankContext

TIMEOUT = timedelta(minutes=30)
"""Longest wait of one rank for the others, e.g. while one compiles or loads."""


def start_process_group(context: RankContext) -> None:
    """Joins the ranks of ``context``; every rank calls it once."""
    on_gpu = context.device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(context.device)
    os.environ.update(RANK=str(context.rank), WORLD_SIZE=str(context.world_size), LOCAL_RANK=str(context.local_rank))
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        init_method=f"tcp://{context.master_addr}:{context.master_port}",
        rank=context.rank,
        world_size=context.world_size,
        timeout=TIMEOUT,
    )


def stop_process_group() -> None:
    """Leaves the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def all_sum(*values: float) -> tuple[float, ...]:
    """Each value summed over all ranks, in float64 (exact for counts below 2**53)."""
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor)
    return tuple(tensor.tolist())


def all_max(*values: float) -> tuple[float, ...]:
    """The largest of each value over all ranks."""
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tuple(tensor.tolist())


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """``values`` on the CPU, of one shape on all ranks, summed over all ranks in float64."""
    total = values.to(torch.float64, copy=True)
    dist.all_reduce(total)
    return total
