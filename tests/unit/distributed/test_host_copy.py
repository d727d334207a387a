"""Copies for a checkpoint: exact, kept in one buffer, and not inherited by loading processes."""

from __future__ import annotations

import os

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


def test_a_forked_process_does_not_get_it():
    copy = HostCopy()
    address = copy.stage({"a": torch.ones(1 << 20)})["a"].data_ptr()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with open("/proc/self/maps") as maps:
            ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps]
        os.write(write, b"y" if any(start <= address < end for start, end in ranges) else b"n")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"n"
    copy.close()
