"""Hand-made conversations and samples for the data tests."""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image

from rlinf_vlm.types import IGNORE_INDEX, Conversation, ImagePart, Message, ProcessedImage, Sample


def png(colour: tuple[int, int, int] = (200, 10, 10), size: tuple[int, int] = (64, 64)) -> dict[str, Any]:
    """An image column's value."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


def talk(*turns: tuple[str, str], images: tuple[Any, ...] = (), **known: Any) -> Conversation:
    """Turns of (role, text); images stand at the start of the first user turn."""
    messages = []
    left = len(images)
    for role, text in turns:
        places = (ImagePart(),) * (left if role == "user" else 0)
        left = 0 if role == "user" else left
        messages.append(Message(role=role, parts=(*places, text)))
    facts = {"question": turns[0][1], "answer": turns[-1][1], **known}
    return Conversation(messages=tuple(messages), images=images, **facts)


def sample(ids: list[int], supervised: list[int], images: tuple[ProcessedImage, ...] = (), row: int = 0) -> Sample:
    """A sample whose labels are set at the places ``supervised``."""
    labels = [token if place in supervised else IGNORE_INDEX for place, token in enumerate(ids)]
    return Sample(
        row=row,
        input_ids=torch.tensor(ids),
        labels=torch.tensor(labels),
        position_ids=torch.arange(len(ids)).expand(3, -1),
        images=images,
        prompt_length=min(supervised, default=len(ids)),
    )


def image(key: str, token: int, features: int, value: float = 0.0) -> ProcessedImage:
    """A processed image of ``features`` tokens, 4 patches each."""
    return ProcessedImage(
        key=key.encode(),
        token_ids=(token,) * features,
        num_features=features,
        tensors={
            "pixel_values": torch.full((features * 4, 3), value),
            "image_grid_thw": torch.tensor([[1, 2, features * 2]]),
        },
    )
