"""The data that crosses borders, as slotted keyword-only dataclasses; importing this module loads no torch.

The way of a row::

    file row --dataset kind--> Conversation --Renderer--> Sample --collate--> MicroBatch --model--> TokenScores

Shape letters: T tokens of a micro-batch (all its samples one after the other), L tokens of one sample, S samples of a
micro-batch, U distinct images of a micro-batch, I image tokens of a micro-batch, N supervised tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

IGNORE_INDEX = -100
"""Label of a token that is not supervised (the value that torch's and transformers' losses skip)."""


class RowError(Exception):
    """A row that cannot be used. Carries what is wrong; the loader adds file and row (``data.on_bad_row``)."""


class UserError(Exception):
    """A mistake of the user's: shown as one line without a traceback, exit status 2."""


class RunStopped(Exception):
    """A run that was asked to end and did so in good order (SIGTERM): exit status 143."""


class WorkerFailure(Exception):
    """A rank of a worker group failed: ``component``, ``rank``, ``method`` and ``details`` (its traceback, or how it
    died)."""

    def __init__(self, *, component: str, rank: int, method: str, what: str, details: str) -> None:
        super().__init__(f"{component} rank {rank} {what} in {method!r}\n{details}")
        self.component = component
        self.rank = rank
        self.method = method
        self.details = details
        last = details.strip().rpartition("\n")[2]
        self.headline = f"{component} rank {rank} {what} in {method!r}" + (f": {last}" if what == "raised" else "")
        """One line: who failed at what, and of an exception what it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePart:
    """The place of the next image of the conversation inside a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn. ``parts`` are pieces of text and places of images, in reading order."""

    role: str
    parts: tuple[str | ImagePart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a dataset kind makes of one row; text and undecoded images, no tokens.

    Example: ``Conversation(messages=(Message(role="user", parts=(ImagePart(), "What is it?")),
    Message(role="assistant", parts=("A. a cup",))), images=({"bytes": b"..", "path": None},),
    question="What is it?", answer="A. a cup", choices=("A. a cup", "B. a pan"), choice_index=0)``
    """

    messages: tuple[Message, ...]
    images: tuple[Any, ...]
    """One entry an ImagePart, in order: ``{"bytes", "path"}``, a path, or a PIL image; decoded when rendered."""
    question: str
    """What is asked, for the per-sample file."""
    answer: str
    """What is right: the target text, or what a grader compares with (geo3k: 5 where the target is
    ``Answer: \\boxed{5}``)."""
    choices: tuple[str, ...] = ()
    """Every choice as target text of the last assistant message; empty for an open question."""
    choice_index: int | None = None
    """Which of ``choices`` is right; None for an open question."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the target: what a model is asked to continue. All of them where no target ends them."""
        answered = bool(self.messages) and self.messages[-1].role == "assistant"
        return self.messages[:-1] if answered else self.messages


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessedImage:
    """One image after the processor.

    key: digest of the encoded image, its file or its pixels; an image that rows share has one key, so that a batch
        computes it once.
    token_ids: the ids that stand in the prompt for this image (placeholders expanded, for some families with row and
        column marks in between).
    num_features: how many of ``token_ids`` are the image token, i.e. are replaced by a feature of the vision tower.
    tensors: the processor's other outputs, opaque here (Qwen-VL: pixel_values [patches, dim], image_grid_thw [1, 3]).
    """

    key: bytes
    token_ids: tuple[int, ...]
    num_features: int
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One rendered conversation.

    input_ids [L] int64; labels [L] int64, the token's own id where it is supervised, else IGNORE_INDEX;
    position_ids [3, L] int64 (time, height, width; three equal rows for a model without M-RoPE);
    prompt_length: tokens before the first supervised one; row: index in the dataset;
    """

    row: int
    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    images: tuple[ProcessedImage, ...]
    prompt_length: int
    conversation: Conversation | None = None
    choice: int | None = None
    """Which of the conversation's choices the labels spell; None for an open question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Samples that go through the model in one pass, concatenated without padding.

    Example: samples of 3 and 2 tokens give T = 5, cu_seqlens = [0, 3, 5], position_ids[:, 3] = 0 again.

    input_ids [T] int64; labels [T] int64 (unshifted: labels[t] is predicted from t - 1; never set at a sample's start);
    position_ids [3, T] int64; cu_seqlens [S + 1] int32;
    image_positions [I] int64: where the image tokens stand in T;
    image_feature_index [I] int64: which row of the concatenated features of the U distinct images goes there;
    image_inputs: the vision tower's inputs, concatenated over the U distinct images (empty when there is none).

    What the host must know of it, as plain numbers, so that nothing is read back from a device:
    lengths: tokens of each of the S samples; num_supervised: N; num_images: U;
    num_features: features that the U images give; image_grids: (frames, rows, columns) in patches of each of the U
    images, empty for towers that are told no grids (image_grid_thw).
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    image_positions: torch.Tensor
    image_feature_index: torch.Tensor
    image_inputs: Mapping[str, torch.Tensor]
    lengths: tuple[int, ...]
    num_supervised: int
    num_images: int
    num_features: int
    image_grids: tuple[tuple[int, int, int], ...] = ()

    def pin_memory(self) -> MicroBatch:
        """The same in page-locked memory, from which a copy to a GPU does not wait."""
        return replace(
            self,
            input_ids=self.input_ids.pin_memory(),
            labels=self.labels.pin_memory(),
            position_ids=self.position_ids.pin_memory(),
            cu_seqlens=self.cu_seqlens.pin_memory(),
            image_positions=self.image_positions.pin_memory(),
            image_feature_index=self.image_feature_index.pin_memory(),
            image_inputs={name: tensor.pin_memory() for name, tensor in self.image_inputs.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """What the model says of a micro-batch's supervised tokens, in the order of their positions.

    logprobs [N] float32: log p(label | everything before); argmax [N] int64: the greedy token at that place;
    entropy [N] float32: of the distribution there, in nats, where a ``LogitView`` asks for it.
    """

    logprobs: torch.Tensor
    argmax: torch.Tensor
    entropy: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LogitView:
    """The distribution that answers are drawn from, instead of the model's plain one.

    temperature > 0: divides the logits; banned [B] int64, on the model's device: ids that are never drawn; entropy:
    ``off``, ``value`` (without gradient) or ``gradient``.
    """

    temperature: float
    banned: torch.Tensor
    entropy: Literal["off", "value", "gradient"] = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankContext:
    """Where one process of a worker group stands; what torch.distributed's rendezvous needs."""

    rank: int
    world_size: int
    local_rank: int
    """Rank among the group's processes on this node."""
    local_world_size: int
    master_addr: str
    master_port: int
    device: str
    """``cuda:0`` (the group shows each process only its own GPUs) or ``cpu``."""
    num_threads: int = 0
    """CPU threads for this process; 0 leaves torch's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSpec:
    """One tensor as it is sent to an engine: the name that the model's safetensors files have for it, the torch dtype
    by name (``bfloat16``), the whole shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBucket:
    """What is pushed to the engines at a time: tensors one after the other, each beginning at a multiple of 256 bytes
    (``offsets``), ``nbytes`` in all."""

    weights: tuple[WeightSpec, ...]
    offsets: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PushSettings:
    """How weights get from the actor's ranks to the engines.

    transport: ``shm`` (a file in shared memory, on one machine), ``ipc`` (a GPU's memory, handed to the engine on the
    same GPU) or ``nccl`` (broadcast by the actor's rank 0). For nccl: address and port of the rendezvous; world_size:
    the actor's rank 0 and all GPUs of all engines; first_rank: of this engine's GPUs among them (the actor's is 0).
    """

    transport: Literal["shm", "ipc", "nccl"]
    address: str = ""
    port: int = 0
    world_size: int = 0
    first_rank: int = 0
