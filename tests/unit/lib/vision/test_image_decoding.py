"""Images of others: whatever is wrong with one, it is decoded or refused with a reason, soon, and nothing else
happens.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin

from stages.lib.vision.image_decoding import MAX_BYTES, ImageProblem, decode, read_image
from tests.support.examples import max_examples


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format=format, **options)  # type: ignore[arg-type]
    return out.getvalue()


def gradient(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert(mode)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, with a few bytes of data: a decompression bomb in 100 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" * 50))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "CMYK", "P", "RGBA", "LA", "I;16", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    if mode == "I;16":
        image = Image.frombytes("I;16", (4, 1), struct.pack("<4H", 0, 256 * 100, 65535, 255))
    else:
        image = gradient(mode)
    format = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    found, remarks = decode(encoded(image, format))
    assert found.mode == "RGB"
    assert found.size == image.size
    assert remarks == {"CMYK": ("CMYK",), "P": ("palette",)}.get(mode, ())
    if mode == "I;16":
        assert [found.getpixel((x, 0)) for x in range(4)] == [(0, 0, 0), (100, 100, 100), (255, 255, 255), (0, 0, 0)]


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    red = Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK")
    pixel = decode(encoded(red, "JPEG", quality=95))[0].getpixel((8, 8))
    assert pixel[0] > 230
    assert max(pixel[1:]) < 40


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (12, 12), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50, **options)
    found, remarks = decode(data)
    assert found.getpixel((6, 6)) == (255, 0, 0)
    assert "animated: first frame" in remarks


def test_a_palette_with_transparency_is_read_without_a_warning() -> None:
    image = gradient("P")
    image.info["transparency"] = b"\x00" * 10
    assert decode(encoded(image, "PNG", transparency=b"\x00\x80"))[0].mode == "RGB"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"not an image at all", "not an image"),
        (encoded(gradient(size=(400, 300)), "JPEG")[:-900], "truncated"),
        (encoded(gradient(size=(400, 300)), "PNG")[:-900], "truncated"),
        (encoded(gradient(), "JPEG")[:20], "not an image|damaged|truncated"),
        (png_header(20_000, 20_000), "too many pixels"),
        (png_header(9_500, 9_500), "too many pixels"),
        (png_header(2**31 - 1, 2**31 - 1), "too many pixels|damaged|not an image"),
        (png_header(0, 10), "damaged|not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (b"BM" + b"\xff" * 60, "not an image|damaged|too many pixels"),
        (b"GIF89a" + b"\xff" * 40, "not an image|damaged|truncated|too many pixels"),
        (b"RIFF\x24\x00\x00\x00WEBPVP8 " + b"\0" * 20, "not an image|damaged"),
    ],
)
def test_what_cannot_be_used_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageProblem, match=f"^({reason})$"):
        decode(data)


def test_a_real_image_of_400_million_pixels_is_refused_before_it_is_unpacked() -> None:
    row = zlib.compressobj(9)
    packed = b"".join(row.compress(b"\0" * 20_001) for _ in range(64)) + row.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0))
    with pytest.raises(ImageProblem, match="too many pixels"):
        decode(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", packed) + chunk(b"IEND", b""))


def test_files_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ImageProblem, match="missing file"):
        read_image(tmp_path / "nothing.jpg")
    with pytest.raises(ImageProblem, match="not a file"):
        read_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageProblem, match="not a file"):  # to open it would wait for ever
        read_image(tmp_path / "pipe.jpg")
    with open(tmp_path / "large.jpg", "wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(ImageProblem, match="file too large"):
        read_image(tmp_path / "large.jpg")


@given(st.data())
@max_examples(120)
def test_a_damaged_image_decodes_or_has_a_reason(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "WEBP"]))
    raw = bytearray(encoded(gradient(), format))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    with contextlib.suppress(ImageProblem):
        assert decode(bytes(raw[:cut]))[0].mode == "RGB"


# --- images as people have them
# -----------------------------------------------------------------------------------------


def corners(image: Image.Image) -> tuple[object, ...]:
    last = (image.width - 2, image.height - 2)
    return tuple(image.getpixel(place) for place in ((1, 1), (last[0], 1), (1, last[1]), last))


def marked() -> Image.Image:
    """40 x 30, red at its upper left."""
    image = Image.new("RGB", (40, 30), (255, 255, 255))
    image.paste((255, 0, 0), (0, 0, 10, 10))
    return image


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_tag_says(format: str, orientation: int) -> None:
    """The mark is stored where the tag brings it back to the upper left; 6 is what a phone that is held upright
    writes.
    """
    back = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }
    image = marked()
    stored = image.transpose(Image.Transpose[back[orientation]]) if orientation > 1 else image
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}}[format]
    found, remarks = decode(encoded(stored, format, exif=exif, **options))
    assert found.size == (40, 30)
    red, *others = corners(found)
    assert red[1] < 30  # type: ignore[index]
    assert all(color[1] > 220 for color in others)  # type: ignore[index]
    assert remarks == (("rotated by its EXIF tag",) if orientation > 1 else ())


def test_an_exif_block_that_is_damaged_costs_nothing() -> None:
    data = encoded(marked(), "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    assert decode(data)[0].size == (40, 30)


@pytest.mark.parametrize("chunk", ["text", "icc"])
def test_large_metadata_of_a_png_is_no_damage(chunk: str) -> None:
    """Pillow stops at a megabyte a chunk, and the image counted as damaged."""
    info = PngImagePlugin.PngInfo()
    options: dict[str, object] = {"icc_profile": os.urandom(3 * 2**20)} if chunk == "icc" else {"pnginfo": info}
    info.add_text("parameters", "x" * (3 * 2**20), zip=True)
    assert decode(encoded(marked(), "PNG", **options))[0].size == (40, 30)


def test_a_metadata_bomb_is_refused_by_name() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("bomb", "x" * (80 * 2**20), zip=True)
    with pytest.raises(ImageProblem, match=r"^metadata too large$"):
        decode(encoded(marked(), "PNG", pnginfo=info))


def test_a_phones_picture_with_a_preview_is_a_jpeg() -> None:
    """MPO: a JPEG followed by another."""
    data = encoded(marked(), "MPO", save_all=True, append_images=[gradient()])
    assert decode(data)[0].size == (40, 30)
