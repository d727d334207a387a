"""The part of a weight push that runs in the engine's own processes.

    bucket in a file in shared memory --SharedMemoryEngine--> (name, tensor) --Watch--> the model's load_weights

vLLM brings weight-transfer engines for memory of a GPU (``ipc``) and for broadcasts (``nccl``); ``SharedMemoryEngine``
is one for CPUs. ``PushReceiver`` is mixed into vLLM's worker class by its name (``worker_extension_cls``), so that
nothing has to be registered before a push is opened, and imports change nothing.

A push goes through vLLM's layerwise reload: a layer that gets all of its weights is laid out anew and copied into
place, one that gets none keeps what it has. One that gets some of them would be filled with whatever was in memory:
``push_problems`` finds these, and weights that no bucket brought, before the push is finished.
Imported by the engine's processes only; it knows nothing of the trainer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

SHARED_MEMORY = "shm"
"""Name of ``SharedMemoryEngine`` in vLLM's factory."""


@dataclass
class SharedMemoryInit(WeightTransferInitInfo):
    """Nothing has to be agreed on."""


@dataclass
class SharedMemoryUpdate(WeightTransferUpdateInfo):
    """A bucket: the file, its bytes, and of each weight name, dtype, shape and place (bytes)."""

    path: str
    nbytes: int
    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    offsets: list[int]


class SharedMemoryEngine(WeightTransferEngine[SharedMemoryInit, SharedMemoryUpdate]):
    """Weights by way of a file that the trainer writes and this process maps."""

    model: Any
    init_info_cls = SharedMemoryInit
    update_info_cls = SharedMemoryUpdate

    def init_transfer_engine(self, init_info: SharedMemoryInit) -> None:
        """Nothing to do: each bucket names its file."""

    def start_weight_update(self) -> None:
        """From here on weights are gathered layer by layer."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Loads one bucket. (vLLM's own then waits for an accelerator, which a CPU has not.)"""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        """Maps the bucket's file and loads what is in it."""
        memory = torch.from_file(update_info.path, shared=False, size=update_info.nbytes, dtype=torch.uint8)
        self.model.load_weights(unpacked(memory, update_info))

    def finish_weight_update(self) -> None:
        """Lays out what has come in parts, and puts back what has not come."""
        finalize_layerwise_reload(self.model, self.model_config)
        for layer in _tied_layers(self.model):
            # An output head that is the embedding's keeps a repacked copy on a CPU, and nothing has come for itself.
            layer.quant_method.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        """Nothing is held between buckets."""


def unpacked(memory: torch.Tensor, update: SharedMemoryUpdate) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, view of ``memory`` [nbytes] uint8) of each weight in it."""
    for name, dtype_name, shape, offset in zip(
        update.names, update.dtype_names, update.shapes, update.offsets, strict=True
    ):
        dtype = getattr(torch, dtype_name)
        size = torch.Size(shape).numel() * dtype.itemsize
        yield name, memory[offset : offset + size].view(dtype).view(shape)


def _tied_layers(model: torch.nn.Module) -> list[Any]:
    """The layers of ``model`` that have a parameter in common with another, and are laid out by vLLM."""
    holders: dict[int, list[Any]] = {}
    for layer in model.modules():
        for tensor in layer.parameters(recurse=False):
            holders.setdefault(id(tensor), []).append(layer)
    shared = [layer for layers in holders.values() if len(layers) > 1 for layer in layers]
    return [layer for layer in shared if isinstance(getattr(layer, "quant_method", None), QuantizeMethodBase)]


class Watch:
    """Stands before a model's ``load_weights`` and notes which weights the model took.

    ``copies``: hands on copies. A layer keeps its weights until it has all of them, which may be in a later bucket,
    when the sender has written over the memory of this one.
    """

    def __init__(self, model: torch.nn.Module, *, copies: bool) -> None:
        self._load: Any = model.load_weights
        self._copies = copies
        self._known: set[str] = set()
        self.ignored: list[str] = []

    def __call__(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads ``weights``; names of the parameters that they went to."""
        pairs = list(weights)
        if all(name in self._known for name, _ in pairs):
            return self._load(self._own(pairs))
        loaded: set[str] = set()
        for name, tensor in pairs:  # one at a time, to see which of them the model passes over in silence
            try:
                taken = self._load(self._own([(name, tensor)]))
            except ValueError as error:  # lists all of the model's names
                raise ValueError(f"the engine's model does not take {name}: {str(error)[:200]}") from error
            (self._known.add if taken else self.ignored.append)(name)
            loaded |= taken
        return loaded

    def _own(self, pairs: list[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, tensor.clone() if self._copies else tensor) for name, tensor in pairs)


class PushReceiver:
    """Methods that vLLM's worker class gets beside its own, to be called in all of an engine's processes."""

    model_runner: Any
    vllm_config: Any
    device: Any

    def live_as_long_as(self, pid: int) -> None:
        """Ends this process when process ``pid`` has ended, however it did: vLLM's would stay and keep the GPU."""
        process = os.pidfd_open(pid)

        def wait() -> None:
            select.select([process], [], [])  # readable when it has ended
            os._exit(1)

        threading.Thread(target=wait, name="owner", daemon=True).start()

    def push_open(self, backend: str) -> None:
        """Makes the weight-transfer engine ``backend`` (shm, ipc or nccl), as a worker that is told it at its start."""
        # Tells of every layer that is not pushed again, at every push.
        logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
        with contextlib.suppress(ValueError):  # registered before
            WeightTransferEngineFactory.register_engine(SHARED_MEMORY, SharedMemoryEngine)
        settings = WeightTransferConfig(backend=backend)
        model = self.model_runner.get_model()
        self.vllm_config.weight_transfer_config = settings
        self.weight_transfer_engine = WeightTransferEngineFactory.create_engine(
            settings, self.vllm_config, self.device, model
        )
        if not isinstance(model.load_weights, Watch):
            model.load_weights = Watch(model, copies=backend != "nccl")  # broadcasts come into memory of their own

    def push_problems(self, complete: bool) -> list[str]:
        """What is wrong with the weights that have come since the push began, before it is finished.

        ``complete``: every weight must have come.
        """
        model = self.model_runner.get_model()
        problems = [f"{name} is not a weight of the engine's model" for name in model.load_weights.ignored]
        if complete and self.vllm_config.load_config.load_format == "dummy":
            problems += [f"{name} is a buffer, which no push brings" for name in _random_buffers(model)]
        layers = dict(model.named_modules())
        reached = {id(tensor) for layer in layers.values() for tensor in _reached(layer)}
        for path, layer in layers.items():
            problems += _layer_problems(path, layer, reached, complete)
        return problems


def _random_buffers(model: torch.nn.Module) -> list[str]:
    """The buffers that ``load_format=dummy`` has filled with random numbers; but for those of attention, which vLLM
    sets anew afterwards."""
    owners = dict(model.named_modules())
    return [
        name
        for name, tensor in model.named_buffers()
        if tensor.is_floating_point()
        and (place := name.rpartition("."))[2] not in owners[place[0]]._non_persistent_buffers_set
        and not isinstance(owners[place[0]], AttentionLayerBase)
    ]


def _reached(layer: torch.nn.Module) -> list[torch.Tensor]:
    """The parameters of ``layer`` itself, as they are outside of a push, that something has come for."""
    info = get_layerwise_info(layer)
    if not info.can_load():  # it got all of its weights and has been put together again
        return list(layer.parameters(recurse=False))
    came = {name for name, _ in info.loaded_weights}
    return [tensor for name, tensor in _outside(layer).items() if name in came]


def _outside(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that ``layer`` itself has outside of a push, by name; within one, others stand in their place."""
    tensors = get_layerwise_info(layer).kernel_tensors
    assert tensors is not None, "a push has begun"
    return tensors[0]


def _layer_problems(path: str, layer: torch.nn.Module, reached: Collection[int], complete: bool) -> list[str]:
    """What ``layer`` itself lacks, its parts aside; ``reached``: ids of the parameters that something came for."""
    info = get_layerwise_info(layer)
    if not info.can_load():
        return []
    came = {name for name, _ in info.loaded_weights}
    tied = {name for name, tensor in _outside(layer).items() if id(tensor) in reached and name not in came}
    own = {name: tensor for name, tensor in layer.named_parameters(recurse=False) if name not in tied}
    if not came:
        return [f"{path}.{name} did not come" for name in own] if complete else []
    missing = [f"{path}.{name} did not come, though other weights of its layer did" for name in own if name not in came]
    elements = sum(getattr(tensor, "weight_loader_numel", tensor.numel()) for tensor in own.values())
    is_padded = hasattr(layer, "org_vocab_size")  # embeddings have more rows than there are tokens
    if not missing and info.load_numel < elements and not is_padded:
        missing = [f"{path} got {info.load_numel} of its {elements} elements: a part of what is fused in it is missing"]
    return missing
