"""Pictures inside the page: read, shrunk, encoded as data URLs, each once.

Invariants: a picture is at most SIDE pixels wide and high in the page; all together stay below the budget, and what did
not fit or could not be read is a short text in its place. Does not fetch anything.
"""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

from PIL import Image

from rlinf_vlm.data.images import load_image
from rlinf_vlm.types import RowError

SIDE = 448
"""Pixels of the longer side of a picture in the page; larger ones are shrunk."""
BUDGET = 8 << 20
"""Bytes of all data URLs."""


class Pictures:
    """The page's pictures: ``add`` gives the key under which ``urls`` has one."""

    def __init__(self, budget: int = BUDGET) -> None:
        """``budget``: most bytes of all data URLs."""
        self.urls: dict[str, str] = {}
        """Key -> data URL."""
        self.left_out = 0
        """Pictures for which there was no room."""
        self._room = budget

    def add(self, reference: Any, base: Path | None = None) -> dict[str, str]:
        """``{"image": key}`` of a picture as ``load_image`` reads it, or ``{"lost": why it is not there}``."""
        try:
            image = load_image(reference, base)
        except (RowError, OSError) as error:
            return {"lost": " ".join(str(error).split())[:200]}
        url = data_url(image)
        key = hashlib.sha1(url.encode()).hexdigest()[:12]
        if key not in self.urls:
            if len(url) > self._room:
                self.left_out += 1
                return {"lost": "left out: the page has no room for more pictures"}
            self._room -= len(url)
            self.urls[key] = url
        return {"image": key}


def data_url(image: Image.Image) -> str:
    """``image`` as PNG or JPEG, whichever is shorter, at most SIDE pixels wide and high."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    encoded = []
    for kind, options in (("PNG", {"optimize": True}), ("JPEG", {"quality": 85})):
        file = io.BytesIO()
        small.save(file, format=kind, **options)
        encoded.append((kind.lower(), file.getvalue()))
    kind, content = min(encoded, key=lambda one: len(one[1]))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
