"""Copies for a checkpoint: exact, kept in one buffer, and not inherited by loading processes."""

from __future__ import annotations

import subprocess
import sys

import torch

from rlinf_vlm.distributed.host_copy import HostCopy


def some(value: float) -> dict[str, torch.Tensor]:
    return {
        "a": torch.full((1000, 3), value),
        "b": torch.full((7,), value, dtype=torch.bfloat16),
        "step": torch.tensor(value),
        "count": torch.tensor(5),
        "none": torch.zeros(0, 4),
    }


def test_exact_and_in_one_buffer_that_is_kept():
    copy = HostCopy()
    first = some(1.5)
    staged = copy.stage(first)
    first["a"].zero_()
    assert all(torch.equal(staged[name], tensor) for name, tensor in some(1.5).items())
    assert staged["b"].dtype == torch.bfloat16 and staged["none"].shape == (0, 4)
    again = copy.stage(some(2.5))
    assert again["a"].data_ptr() == staged["a"].data_ptr()
    assert all(torch.equal(again[name], tensor) for name, tensor in some(2.5).items())
    copy.close()


FORK = """
import os, torch
from rlinf_vlm.distributed.host_copy import HostCopy
copy = HostCopy()
address = copy.stage({"a": torch.ones(1 << 20)})["a"].data_ptr()
child = os.fork()
if child == 0:
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in open("/proc/self/maps")]
    os._exit(3 if any(start <= address < end for start, end in ranges) else 7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_does_not_get_it():
    """In a process of its own: a fork of this one would have to tidy up what other tests have left."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["7"]
