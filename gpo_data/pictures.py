"""Open a picture that may be anything, as what it says it is and of a bounded size; in any number of threads."""

from __future__ import annotations

import io

import numpy as np
from PIL import ExifTags, Image
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
# EXIF's orientation, and what makes it upright. ImageOps.exif_transpose would write all of the EXIF again for nothing,
# and fails where a tag of it is damaged.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class TooLarge(ValueError):
    """Says how many pixels were expected and how many found."""


def kind_of(data: bytes) -> str | None:
    """Of KINDS, by the first bytes."""
    return next((kind for kind, (magic, _) in KINDS.items() if data.startswith(magic)), None)


def decoded(data: bytes, kind: str) -> Image.Image:
    """A picture of exactly this one of KINDS, in RGB: its values as they are stored. Raises as `_opened`."""
    return _opened(data, kind).convert("RGB")


def shown(data: bytes, kind: str) -> Image.Image:
    """The same, as a viewer shows it: upright by its EXIF, on white where it is transparent, 16 bits of grey as 8."""
    image: Image.Image = _opened(data, kind)
    turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I"):
        return _of_sixteen_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def _opened(data: bytes, kind: str) -> Image.Image:
    """Raises TooLarge, ValueError where it is another kind, and on damaged bytes whatever Pillow raises."""
    magic, reader = KINDS[kind]
    if not data.startswith(magic):
        raise ValueError(f"found {kind_of(data) or 'no picture'}")
    image = reader(io.BytesIO(data))
    if image.width * image.height > PIXELS:
        raise TooLarge(f"expected at most {PIXELS} pixels, found {image.width} x {image.height}")
    return image


def _of_sixteen_bits(image: Image.Image) -> Image.Image:
    """Grey of 0 to 65535 as 0 to 255, where Pillow cuts all above 255; of its values one may be transparent: white."""
    values = np.asarray(image).astype(np.uint32)
    grey = np.minimum((values + 128) // 257, 255).astype(np.uint8)
    if (clear := image.info.get("transparency")) is not None:
        grey[values == clear] = 255
    return Image.fromarray(grey)
