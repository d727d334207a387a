"""What a row says of an image becomes a PIL image in RGB.

    struct {"bytes", "path"} | bytes | path | data URL | array | PIL image -> load_image -> upright 8-bit RGB
                                                                           -> image_size -> its size, undecoded

Invariants: the result is mode RGB, turned as its EXIF orientation says, with transparency laid on white and 16-bit grey
scaled to 8 bits; the same reference gives the same pixels. An image that cannot be read raises RowError, whatever the
decoder raised. Does not resize, normalise, cache, or fetch anything over a network; of an animation, the first frame.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from rlinf_vlm.types import RowError

ORIENTATION_TAG = 0x0112
SIDEWAYS = frozenset({5, 6, 7, 8})
"""Orientations that swap width and height."""
GREY = (128, 128, 128)
SHOWN = 120
"""Characters of a reference that an error shows; a reference can be a data URL of megabytes."""

DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,  # Pillow's PNG reader raises it for a broken chunk
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def image_list(value: Any) -> list[Any]:
    """The references in one cell of an image column: none, one, or several.

    None gives []; a list, a tuple, an array of objects or a stack [n, h, w, 3] its elements; all else is one image.
    """
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, np.ndarray) and (value.dtype == object or value.ndim == 4):
        return list(value)
    return [value]


def load_image(ref: Any, base: Path | None = None) -> Image.Image:
    """The image that ``ref`` stands for, as RGB. A relative path is sought in ``base``, then in the current directory.

    Raises RowError that says what is wrong: a missing file, bytes that do not decode, a reference of an unknown kind.
    """
    image = _open(ref, base)
    try:
        image.load()
        if image.getexif().get(ORIENTATION_TAG, 1) != 1:
            image = ImageOps.exif_transpose(image)
        return _rgb(image)
    except DECODE_ERRORS as error:
        raise RowError(f"image {_shown(ref)} does not decode: {_text(error)}") from error


def image_size(ref: Any, base: Path | None = None) -> tuple[int, int]:
    """(width, height) of what ``load_image`` gives, from the image's header alone. Raises RowError as it does.

    A PNG whose orientation stands behind its pixels counts as upright: to find it, it would have to be decoded.
    """
    image = _open(ref, base, whole=False)
    try:
        # Not the reader's own getexif: a PNG's decodes the picture. A TIFF's size is that of the upright image already.
        turned = image.format != "TIFF" and Image.Image.getexif(image).get(ORIENTATION_TAG, 1) in SIDEWAYS
        width, height = image.size
    except DECODE_ERRORS as error:
        raise RowError(f"image {_shown(ref)} does not decode: {_text(error)}") from error
    finally:
        if image is not ref:
            image.close()
    return (height, width) if turned else (width, height)


def blank_image(size: tuple[int, int]) -> Image.Image:
    """An even grey picture of ``size`` (width, height): takes as many tokens as any of that size, and shows nothing."""
    return Image.new("RGB", size, GREY)


def _open(ref: Any, base: Path | None, *, whole: bool = True) -> Image.Image:
    """The image of ``ref``, not yet decoded; ``whole=False`` reads no more of a file than its header."""
    if isinstance(ref, Image.Image):
        return ref
    if isinstance(ref, Mapping):
        return _open_struct(ref, base, whole)
    if isinstance(ref, bytes | bytearray | memoryview):
        return _from_bytes(bytes(ref), f"{len(ref)} bytes")
    if isinstance(ref, np.ndarray):
        return _from_array(ref)
    if isinstance(ref, str) and ref.startswith("data:"):
        return _from_bytes(_data_url(ref), _shown(ref))
    if isinstance(ref, str | Path):
        return _from_path(str(ref), base, whole)
    if ref is None:
        raise RowError("an image is null where a list of images was given; leave it out of the list")
    raise RowError(f"an image is a {type(ref).__name__}; expected bytes, a path, a data URL, an array or a PIL image")


def _open_struct(ref: Mapping[str, Any], base: Path | None, whole: bool) -> Image.Image:
    if ref.get("bytes") is not None:
        data = bytes(ref["bytes"])
        return _from_bytes(data, f"{ref.get('path') or ''} ({len(data)} bytes)".strip())
    if ref.get("path"):
        return _from_path(str(ref["path"]), base, whole)
    keys = ", ".join(f"{key} {'null' if value is None else 'set'}" for key, value in ref.items())
    raise RowError(f"an image struct has neither bytes nor path (its keys: {keys or 'none'})")


def _from_bytes(data: bytes, name: str) -> Image.Image:
    if not data:
        raise RowError(f"image {name} does not decode: it is empty")
    return _opened(BytesIO(data), name, data[:8])


def _opened(source: BytesIO | Path, name: str, start: bytes = b"") -> Image.Image:
    """The image in ``source``; ``start``: its first bytes where they are known."""
    try:
        return Image.open(source)
    except Image.DecompressionBombError as error:
        raise RowError(f"image {name} is too large: {_text(error)}") from error
    except DECODE_ERRORS as error:
        # Pillow's own text shows the address of a buffer, which tells a reader nothing.
        shown = f", starts with {start!r}" if start else ""
        raise RowError(f"image {name} does not decode: not an image{shown}") from error


def _from_path(text: str, base: Path | None, whole: bool) -> Image.Image:
    if not text:
        raise RowError("an image path is empty; a row without an image has null")
    if text.startswith(("http://", "https://")):
        raise RowError(f"image {_shown(text)} is a web address; download the images and give paths")
    path = Path(text.removeprefix("file://")).expanduser()
    places = [path] if path.is_absolute() or base is None else [base / path, path]
    for place in places:
        try:
            if place.is_file():
                return _from_bytes(place.read_bytes(), str(place)) if whole else _opened(place, str(place))
        except OSError as error:  # unreadable, or a name longer than the file system takes
            raise RowError(f"image {_shown(text)} cannot be read: {error.strerror}") from error
    raise RowError(f"image file {_shown(text)} does not exist (looked for {' and '.join(_shown(p) for p in places)})")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise RowError(f"an image array has shape {array.shape} and type {array.dtype}; expected (h, w, 3) of uint8")
    return Image.fromarray(np.ascontiguousarray(array))


def _data_url(ref: str) -> bytes:
    head, comma, body = ref.partition(",")
    if not comma or not head.endswith(";base64"):
        raise RowError(f"image {_shown(ref)} is not of the form data:image/...;base64,...")
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as error:
        raise RowError(f"image {_shown(ref)} does not decode: {_text(error)}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey at 255 when it converts, which turns such images white; 65535 / 255 = 257.
        grey = np.clip(np.asarray(image).astype(np.int64) // 257, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known; save it with 8 bits")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _shown(ref: Any) -> str:
    """The reference as an error shows it."""
    if isinstance(ref, Mapping):
        ref = ref.get("path") or f"of {len(ref['bytes'])} bytes"
    if isinstance(ref, bytes | bytearray | memoryview):
        return f"of {len(ref)} bytes"
    text = str(ref) if isinstance(ref, str | Path) else type(ref).__name__
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _text(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
