"""Time and counts of an optimizer step, summed over the ranks."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rlinf_vlm.data.loader import RankStep
from rlinf_vlm.distributed.collectives import all_max, all_sum

GIB = 1024**3


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product on ``device``, measured now (best of five): what MFU is relative to."""
    side = 8192 if device.type == "cuda" else 768
    left = torch.randn(side, side, device=device, dtype=dtype)
    right = torch.randn(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        _synchronize(device)
        start = time.perf_counter()
        torch.mm(left, right)
        _synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


class StepMeter:
    """Watches one optimizer step. ``flops`` counts what the step needs on this rank."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = time.perf_counter()
        self._waited = 0.0

    def next(self, steps: Iterator[RankStep]) -> RankStep:
        """The next step's data; the time until it is there is the data wait."""
        start = time.perf_counter()
        rows = next(steps)
        self._waited = time.perf_counter() - start
        return rows

    def metrics(self, rows: RankStep, *, flops: float, peak: float) -> dict[str, float]:
        """Metrics of the whole group; every rank calls it.

        perf/data_wait is the part of the step in which the slowest-fed rank waited for rows; perf/mfu the FLOPs that
        the step needs over those of an uninterrupted matrix product on all ranks in the same time.
        """
        _synchronize(self._device)
        elapsed = time.perf_counter() - self._start
        tokens = sum(len(batch.input_ids) for batch in rows.micro_batches)
        images = sum(batch.num_images for batch in rows.micro_batches)
        all_tokens, samples, dropped, all_images, all_flops, all_peak = all_sum(
            tokens, rows.num_samples, len(rows.bad_rows), images, flops, peak
        )
        slowest, waited, memory = all_max(elapsed, self._waited, _peak_memory(self._device))
        return {
            "train/tokens": all_tokens,
            "train/samples": samples,
            "train/images": all_images,
            "data/dropped_rows": dropped,
            "perf/tokens_per_second": all_tokens / slowest,
            "perf/samples_per_second": samples / slowest,
            "perf/data_wait": waited / slowest,
            "perf/mfu": all_flops / slowest / all_peak,
            "perf/peak_memory_gib": memory / GIB,
            "time/step": slowest,
            "time/data_wait": waited,
        }


class Phases:
    """Seconds of the parts of a step on this rank, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Adds what happens inside to the part ``name``."""
        start = time.perf_counter()
        yield
        _synchronize(self._device)
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """time/<part> of the slowest rank; every rank calls it and has had the same parts."""
        slowest = all_max(*self._seconds.values())
        return {f"time/{name}": seconds for name, seconds in zip(self._seconds, slowest, strict=True)}


def _peak_memory(device: torch.device) -> float:
    """Most bytes in use so far: of the GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
