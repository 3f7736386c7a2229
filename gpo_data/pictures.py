"""Open a picture that may be anything, as what it says it is and of a bounded size; in any number of threads."""

from __future__ import annotations

import io

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

PIXELS = 8192 * 8192  # 200 MB decoded; models draw up to 4096 x 4096
# First bytes, and Pillow's class. Image.open warns of a large picture before it can be asked how large it is, and what
# silences a warning does so for all threads.
KINDS = {
    "PNG": (b"\x89PNG\r\n\x1a\n", PngImageFile),
    "JPEG": (b"\xff\xd8\xff", JpegImageFile),
    "WEBP": (b"RIFF", WebPImageFile),
}


class TooLarge(ValueError):
    """Says how many pixels were expected and how many found."""


def kind_of(data: bytes) -> str | None:
    """Of KINDS, by the first bytes."""
    return next((kind for kind, (magic, _) in KINDS.items() if data.startswith(magic)), None)


def decoded(data: bytes, kind: str) -> Image.Image:
    """A picture of exactly this one of KINDS, in RGB. Raises TooLarge, and on damaged bytes whatever Pillow raises."""
    magic, reader = KINDS[kind]
    if not data.startswith(magic):
        raise ValueError(f"found {kind_of(data) or 'no picture'}")
    image = reader(io.BytesIO(data))
    if image.width * image.height > PIXELS:
        raise TooLarge(f"expected at most {PIXELS} pixels, found {image.width} x {image.height}")
    return image.convert("RGB")
