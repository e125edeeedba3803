"""Decode an image that somebody else made: bounded, first frame, upright, RGB; or a word why it cannot be used."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError, WebPImagePlugin

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
"""What the data sets hold. Pillow's other readers (one starts a program) stay off."""
assert WebPImagePlugin.WebPImageFile.format in FORMATS  # importing a reader is what makes Pillow know it
MAX_PIXELS = 89_478_485
"""Pillow's own limit against decompression bombs: a quarter of a gigabyte of RGB."""
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
"""A PNG's metadata may be as large as Pillow lets all of them be together, 64 MiB: its megabyte a chunk refuses whole
images that editors wrote.
"""
MAX_BYTES = 64 * 2**20
"""Largest file that is read: a JPEG of MAX_PIXELS at the best quality is smaller."""


class ImageProblem(Exception):
    """An image that cannot be used; the message is the reason under which it is counted."""


def read_image(path: Path) -> bytes:
    """Bytes of an image file. Raises ImageProblem when it is not there, no plain file, or too large."""
    if not path.exists():
        raise ImageProblem("missing file")
    if not path.is_file():  # a named pipe would block for ever
        raise ImageProblem("not a file")
    if path.stat().st_size > MAX_BYTES:
        raise ImageProblem("file too large")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageProblem("unreadable file") from error


def decode(data: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    """The first frame as RGB, turned as its EXIF tag says a viewer should, and remarks worth counting ('CMYK',
    'palette', 'rotated', ..).

    Raises ImageProblem.
    """
    if len(data) > MAX_BYTES:
        raise ImageProblem("file too large")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the sizes that Pillow would warn of are refused here
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise ImageProblem("too many pixels")
            remarks = _remarks(image)
            image.load()
            turned = _upright(image)
            return _rgb(turned or image), (remarks if turned is None else (*remarks, "rotated by its EXIF tag"))
    except (ImageProblem, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageProblem("too many pixels") from error
    except UnidentifiedImageError as error:
        raise ImageProblem("not an image" if data else "empty file") from error
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        metadata = "Decompressed data too large" in str(error) or "Too much memory used in text chunks" in str(error)
        raise ImageProblem(
            "metadata too large" if metadata else "truncated" if "truncated" in str(error) else "damaged"
        ) from error


def _remarks(image: Image.Image) -> tuple[str, ...]:
    names = {"CMYK": "CMYK", "P": "palette", "PA": "palette"}
    remarks = [names[image.mode]] if image.mode in names else []
    if getattr(image, "n_frames", 1) > 1:
        remarks.append("animated: first frame")
        image.seek(0)
    return tuple(remarks)


def _upright(image: Image.Image) -> Image.Image | None:
    """The image turned by its EXIF orientation: phones store pictures as the sensor lay. None: it says nothing, or
    nothing that can be read.
    """
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) in (2, 3, 4, 5, 6, 7, 8):
            return ImageOps.exif_transpose(image)
    except Exception:  # metadata that is damaged is no reason to lose the picture
        return None
    return None


def _rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode. Transparency is dropped, as upstream's `convert('RGB')` does; 16-bit greys keep their upper
    byte.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
