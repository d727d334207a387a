"""Images by every kind of reference, every pixel mode, and everything that can be wrong with them."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rlinf_vlm.data.images import image_list, image_size, load_image
from rlinf_vlm.types import RowError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def pixels(image: Image.Image) -> list[Any]:
    return np.asarray(image).reshape(-1, 3).tolist()


def test_every_kind_of_reference_gives_the_same_pixels(tmp_path: Path) -> None:
    array = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    data = encoded(Image.fromarray(array))
    (tmp_path / "a.png").write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    references = [
        {"bytes": data, "path": None},
        {"bytes": data, "path": "gone.png"},
        {"bytes": None, "path": str(tmp_path / "a.png")},
        {"path": "a.png"},
        "a.png",
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        f"file://{tmp_path}/a.png",
        data,
        bytearray(data),
        url,
        array,
        Image.fromarray(array),
    ]
    for ref in references:
        image = load_image(ref, tmp_path)
        assert (image.mode, image.size) == ("RGB", (3, 2)), ref
        assert np.array_equal(np.asarray(image), array), ref


def test_a_relative_path_is_sought_in_the_base_then_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, here = tmp_path / "base", tmp_path / "here"
    for folder, names in ((base, ("both.png",)), (here, ("both.png", "only.png"))):
        folder.mkdir()
        for name in names:
            Image.new("RGB", (1, 1), RED if folder == base else WHITE).save(folder / name)
    monkeypatch.chdir(here)
    assert pixels(load_image("both.png", base)) == [list(RED)]
    assert pixels(load_image("only.png", base)) == [list(WHITE)]
    assert pixels(load_image("both.png", None)) == [list(WHITE)]


def test_exif_orientation_is_applied() -> None:
    # Orientation 6: the stored image has to be turned by 90 degrees clockwise.
    stored = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0]]], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image = load_image(encoded(stored, exif=exif))
    assert image.size == (1, 2)
    assert pixels(image) == [[255, 0, 0], [0, 255, 0]]


def test_transparency_is_laid_on_white() -> None:
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    assert pixels(load_image(rgba)) == [list(RED), list(WHITE)]
    assert pixels(load_image(encoded(rgba))) == [list(RED), list(WHITE)]
    grey = Image.new("LA", (1, 1), (0, 51))  # a fifth of black over white: 255 * 0.8 = 204
    assert pixels(load_image(encoded(grey))) == [[204, 204, 204]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert pixels(load_image(encoded(palette))) == [list(RED), [0, 0, 255]]
    assert pixels(load_image(encoded(palette, transparency=1))) == [list(RED), list(WHITE)]


def test_grey_and_one_bit_and_cmyk_become_rgb() -> None:
    assert pixels(load_image(encoded(Image.new("L", (1, 1), 7)))) == [[7, 7, 7]]
    assert pixels(load_image(encoded(Image.new("1", (1, 1), 1)))) == [list(WHITE)]
    assert pixels(load_image(Image.new("CMYK", (1, 1), (0, 0, 0, 0)))) == [list(WHITE)]


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    deep = Image.fromarray(np.array([[0, 257, 25700, 65535]], dtype=np.uint16))
    assert pixels(load_image(encoded(deep))) == [[0] * 3, [1] * 3, [100] * 3, [255] * 3]
    wide = Image.fromarray(np.array([[25700, 70000]], dtype=np.int32))
    assert pixels(load_image(wide)) == [[100] * 3, [255] * 3]


def test_the_given_image_is_not_changed() -> None:
    given = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    load_image(given)
    assert given.mode == "RGBA" and given.getpixel((0, 0)) == (0, 0, 0, 0)


PNG = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)))


@pytest.mark.parametrize(
    ("ref", "text"),
    [
        (b"not an image", "does not decode: not an image, starts with b'not an i'"),
        (b"", "it is empty"),
        (PNG[: len(PNG) // 2], "does not decode"),
        (PNG[:40] + b"\xff" * 40 + PNG[80:], "does not decode"),
        ({"bytes": PNG[:300], "path": "cut.png"}, "cut.png"),
        ({"bytes": None, "path": None}, "neither bytes nor path (its keys: bytes null, path null)"),
        ({"url": "x"}, "neither bytes nor path (its keys: url set)"),
        ("gone.png", "image file gone.png does not exist"),
        ("", "path is empty"),
        ("x" * 5000, "x..."),
        ("https://example.org/a.png", "is a web address"),
        ("data:image/png;base64,****", "does not decode"),
        ("data:image/png,abc", "not of the form data:image/...;base64,..."),
        (None, "null"),
        (3, "an image is a int"),
        (np.zeros((2, 2), np.uint8), "shape (2, 2) and type uint8; expected (h, w, 3) of uint8"),
        (np.zeros((2, 2, 3), np.float32), "type float32"),
        (np.zeros((0, 2, 3), np.uint8), "shape (0, 2, 3)"),
        (Image.new("F", (1, 1)), "floating-point"),
    ],
)
def test_a_broken_image_says_what_is_wrong(ref: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(RowError) as caught:
        load_image(ref, tmp_path)
    message = str(caught.value)
    assert text in message
    assert "\n" not in message and len(message) < 600


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(encoded(Image.new("RGB", (64, 64)), "JPEG")[:200])
    with pytest.raises(RowError, match=r"cut\.jpg"):
        load_image("cut.jpg", tmp_path)


def test_image_list_of_a_cell() -> None:
    frame = np.zeros((2, 2, 3), np.uint8)
    assert image_list(None) == []
    assert image_list("a.png") == ["a.png"]
    assert image_list({"bytes": b"x"}) == [{"bytes": b"x"}]
    assert image_list(["a", "b"]) == ["a", "b"]
    assert image_list(("a", "b")) == ["a", "b"]
    assert image_list([]) == []
    assert image_list(np.array(["a", "b"], dtype=object)) == ["a", "b"]
    assert [item is frame for item in image_list(frame)] == [True]
    assert [item.shape for item in image_list(np.stack([frame, frame]))] == [(2, 2, 3)] * 2


def turned(form: str, orientation: int, size: tuple[int, int] = (30, 20)) -> bytes:
    """A picture of ``size`` whose header says how to turn it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.new("RGB", size, RED), form, exif=exif)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_upright_image(form: str, orientation: int) -> None:
    data = turned(form, orientation)
    assert image_size(data) == load_image(data).size == ((20, 30) if orientation >= 5 else (30, 20))


def test_the_size_by_every_kind_of_reference(tmp_path: Path) -> None:
    data = turned("JPEG", 6)
    (tmp_path / "a.jpg").write_bytes(data)
    kept = Image.open(BytesIO(data))
    url = "data:image/jpeg;base64," + base64.b64encode(data).decode()
    for ref in (data, {"bytes": data, "path": None}, {"path": "a.jpg"}, "a.jpg", tmp_path / "a.jpg", url, kept):
        assert image_size(ref, tmp_path) == (20, 30), ref
    assert image_size(np.zeros((7, 5, 3), np.uint8)) == (5, 7)
    assert load_image(kept).size == (20, 30), "an image that was given is left open"


def test_the_size_reads_no_more_than_the_header(tmp_path: Path) -> None:
    """So a picture that ends early has a size; that it is broken is found when it is decoded."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    for form in ("JPEG", "PNG"):
        data = encoded(noise, form)
        (tmp_path / "cut").write_bytes(data[: len(data) // 2])
        assert image_size("cut", tmp_path) == image_size(data[: len(data) // 2]) == (400, 300)
        with pytest.raises(RowError, match="does not decode"):
            load_image("cut", tmp_path)


def test_what_has_no_size_is_refused_as_when_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"hello, world")
    for ref in (None, 3, "", "gone.png", "text", b"", b"hello, world", {"path": None}, "https://a/b.png"):
        for read in (image_size, load_image):
            with pytest.raises(RowError):
                read(ref, tmp_path)
