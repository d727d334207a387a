"""Images through the model's processor, one by one, each once.

An image reference -> the ids that stand for the image in a prompt, and the tensors that the vision tower reads. Recent
images are kept, so that rows that share one process it once. Not here: text, and which model family it is.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlinf_vlm.data.images import blank_image, image_size, load_image
from rlinf_vlm.types import ProcessedImage, RowError

NOT_IMAGE_TENSORS = frozenset({"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"})


class ImageProcessor:
    """Processes images one by one, and keeps the most recent ones. ``blank``: a blank image of its size for each."""

    def __init__(self, processor: Any, cache_bytes: int, *, blank: bool = False) -> None:
        self.processor = processor
        self._cache_bytes = cache_bytes
        self._blank = blank
        self.token: str = _attribute(processor, "image_token")
        self.token_id: int = processor.tokenizer.convert_tokens_to_ids(self.token)
        self._recent: OrderedDict[bytes, ProcessedImage] = OrderedDict()
        self._bytes = 0

    def __call__(self, ref: Any, base: Path | None) -> ProcessedImage:
        """The image that ``ref`` refers to. Raises RowError when it cannot be read."""
        if self._blank:
            # Decoded for its size, and because a broken image is broken here as well. Known by its pixels from here on:
            # its key is not the picture's, and blanks of one size are one image.
            ref = blank_image(load_image(ref, base).size)
        key = image_key(ref, base)
        if key is not None and key in self._recent:
            self._recent.move_to_end(key)
            return self._recent[key]
        image = load_image(ref, base)
        if key is None:
            key = hashlib.blake2b(image.tobytes() + repr(image.size).encode(), digest_size=16).digest()
            if key in self._recent:
                self._recent.move_to_end(key)
                return self._recent[key]
        processed = self._process(key, image)
        self._keep(processed)
        return processed

    def features(self, ref: Any, base: Path | None) -> int | None:
        """How many image tokens the image takes in a prompt, from its header; None where the processor cannot tell.

        Raises RowError when the image cannot be read or is refused.
        """
        width, height = image_size(ref, base)
        # What transformers offers to inference engines, which plan before they decode.
        count = getattr(self.processor, "_get_num_multimodal_tokens", None)
        if count is None:
            return None
        try:
            (tokens,) = count(image_sizes=[(height, width)])["num_image_tokens"]
        except ValueError as error:
            raise RowError(f"the processor refuses the image of {width}x{height} pixels: {error}") from error
        except (AttributeError, KeyError, TypeError):  # e.g. llava's, of an image processor without a crop size
            return None
        return int(tokens)

    def _process(self, key: bytes, image: Any) -> ProcessedImage:
        try:
            output = self.processor(text=[self.token], images=[image], return_tensors="pt", add_special_tokens=False)
        except ValueError as error:  # e.g. an aspect ratio that the model's processor refuses
            width, height = image.size
            raise RowError(f"the processor refuses the image of {width}x{height} pixels: {error}") from error
        token_ids = tuple(output["input_ids"][0].tolist())
        tensors = {name: value for name, value in output.items() if name not in NOT_IMAGE_TENSORS}
        return ProcessedImage(
            key=key, token_ids=token_ids, num_features=token_ids.count(self.token_id), tensors=tensors
        )

    def _keep(self, image: ProcessedImage) -> None:
        self._recent[image.key] = image
        self._bytes += _nbytes(image)
        while self._bytes > self._cache_bytes and len(self._recent) > 1:
            _, oldest = self._recent.popitem(last=False)
            self._bytes -= _nbytes(oldest)


def image_key(ref: Any, base: Path | None) -> bytes | None:
    """A key of an image by its encoded bytes or its file; None where only the pixels can tell."""
    if isinstance(ref, Mapping):
        ref = ref.get("bytes") or ref.get("path")
    if isinstance(ref, str) and ref.startswith("data:"):
        ref = ref.encode()
    if isinstance(ref, str):
        path = Path(base or ".", ref)
        try:
            stat = path.stat()
        except (OSError, ValueError):  # not there, a name too long: load_image says what is wrong
            return None
        ref = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode()
    return hashlib.blake2b(ref, digest_size=16).digest() if isinstance(ref, bytes) else None


def _attribute(processor: Any, name: str) -> str:
    value = getattr(processor, name, None)
    if not isinstance(value, str):
        raise ValueError(f"{type(processor).__name__} has no {name}: no processor of an image-text-to-text model")
    return value


def _nbytes(image: ProcessedImage) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in image.tensors.values())
