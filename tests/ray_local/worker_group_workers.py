"""Worker classes for the tests of worker groups: small enough to read, importable in the workers' processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

from rlinf_vlm.types import RankContext, UserError


class Echo:
    """Tells where it runs and what it was given."""

    def __init__(self, context: RankContext, offset: int = 0) -> None:
        self.context = context
        self.offset = offset

    def add(self, number: int, extra: int = 0) -> int:
        return self.offset + number + extra + 10 * self.context.rank

    def where(self) -> dict[str, Any]:
        return {
            "context": self.context,
            "pid": os.getpid(),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "torch": "torch" in sys.modules,
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "extra": os.environ.get("ECHO_EXTRA"),
        }

    def all_reduce(self, value: float) -> float:
        import torch
        import torch.distributed as dist

        context = self.context
        store = f"tcp://{context.master_addr}:{context.master_port}"
        dist.init_process_group("gloo", init_method=store, rank=context.rank, world_size=context.world_size)
        total = torch.tensor([value + context.rank], dtype=torch.float64)
        dist.all_reduce(total)
        dist.destroy_process_group()
        return float(total)


class Faulty:
    """Fails in the ways in which workers fail, while its other ranks are busy."""

    def __init__(self, context: RankContext, fail_to_build: str = "") -> None:
        self.context = context
        if fail_to_build:
            raise UserError(fail_to_build)

    def child_pid(self) -> int:
        """Starts a process of its own, as an engine would."""
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid

    def sleep_unless(self, rank: int, how: str) -> None:
        if self.context.rank != rank:
            time.sleep(60)
        elif how == "raise":
            raise KeyError("the missing thing")
        elif how == "user":
            raise UserError("data.train_data_paths: no such folder")
        elif how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

    def break_collective(self) -> None:
        """Rank 1 dies in an all-reduce, which the other rank notices as an error of its own."""
        import torch
        import torch.distributed as dist

        context = self.context
        store = f"tcp://{context.master_addr}:{context.master_port}"
        dist.init_process_group("gloo", init_method=store, rank=context.rank, world_size=context.world_size)
        dist.all_reduce(torch.zeros(1))
        if context.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.zeros(1))


class Closer:
    """Leaves a file behind when it is asked to close."""

    def __init__(self, context: RankContext, folder: str) -> None:
        self.path = os.path.join(folder, f"closed_{context.rank}")

    def close(self) -> None:
        with open(self.path, "w") as file:
            file.write("closed")
