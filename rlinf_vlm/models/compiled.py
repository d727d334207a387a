"""Blocks of a model compiled one kind at a time: one graph for all decoder layers, two for the vision blocks.

Dataflow: ``compile_blocks(blocks)`` gives each block a ``forward`` that runs the graph of its class. FSDP's and
checkpointing's hooks stand around it and are not compiled.
Invariants: the number of tokens, of patches and of segments is dynamic in every graph; the longest segment is a number
that only grows (``segments.LengthBound``); so neither asks for another graph at each micro-batch. With the opaque
variable-length kernel a block is one graph (``whole``); around attention in dense batches, whose shapes differ each
time, it is two.
Not here: the rest of the model, which is a few small operations a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

GRAPHS = 64
"""Graphs of one function at most: training, evaluation, frozen or not, each length bound. More would be a fault."""


def compile_blocks(blocks: Iterable[nn.Module], *, whole: bool, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compiles the ``forward`` of each block's class, at its first call. ``whole``: a graph break is an error."""
    import torch._dynamo

    # Beyond it dynamo would run the blocks uncompiled, or stop a run that compiles whole blocks.
    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    compiled: dict[type, Callable[..., Any]] = {}
    for block in blocks:
        kind: Any = type(block)
        if kind not in compiled:
            # Not dynamic=True: under FSDP2 that makes sizes that come from weights symbolic. What follows a graph break
            # does not see the marks; there, a size becomes dynamic once it has changed (None).
            dynamic = False if whole else None
            compiled[kind] = torch.compile(kind.forward, fullgraph=whole, dynamic=dynamic, backend=backend)
        block.forward = partial(_run, compiled[kind], torch.get_num_threads(), block)


def compile_function(
    function: Callable[..., Any], backend: str | Callable[..., Any] = "inductor"
) -> Callable[..., Any]:
    """``function`` of tensors [N, ...] and [N], one graph for all N > 1.

    What it is given by keyword is constant, or a tensor whose shape is: each value asks for a graph of its own.
    """
    compiled = torch.compile(function, fullgraph=True, dynamic=False, backend=backend)
    return partial(_run_rows, compiled, torch.get_num_threads(), function)


def _run(
    compiled: Callable[..., Any], threads: int, block: nn.Module, hidden: torch.Tensor, *args: Any, **kwargs: Any
) -> Any:
    """``hidden`` [.., T, width]; floats among the arguments are [.., T, width] too, integers [.., T] or [S + 1]."""
    _compute_with(threads)
    mark_tokens(hidden, args, kwargs)
    return compiled(block, hidden, *args, **kwargs)


def _run_rows(
    compiled: Callable[..., Any], threads: int, plain: Callable[..., Any], *tensors: torch.Tensor, **constants: Any
) -> Any:
    if tensors[0].shape[0] < 2:  # sizes 0 and 1 are never dynamic: each would be a graph of its own
        return plain(*tensors, **constants)
    _compute_with(threads)
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return compiled(*tensors, **constants)


def _compute_with(threads: int) -> None:
    """Gives the calling thread the number of computing threads that the graphs were made with.

    Backward has threads of its own, in which layers are recomputed; theirs is another number, and to compiled code
    that is another world.
    """
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def mark_tokens(*values: Any) -> None:
    """Marks the dimension of tokens (or patches, or segments) of every tensor among ``values`` as dynamic."""
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.is_floating_point():
                torch._dynamo.maybe_mark_dynamic(value, value.ndim - 2)
            elif value.ndim:
                torch._dynamo.maybe_mark_dynamic(value, value.ndim - 1)
        elif isinstance(value, (tuple, list)):
            mark_tokens(*value)
        elif isinstance(value, dict):
            mark_tokens(*value.values())
