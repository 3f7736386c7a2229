"""Pictures of anybody: exactly what they say they are, of a bounded size, and decoded in threads without a word."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from gpo_data import pictures

IMAGE = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)


def _data(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def _bomb(width: int, height: int) -> bytes:
    """A PNG whose header alone is honest."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", pictures.KINDS)
def test_each_kind_is_known_and_opened(kind: str) -> None:
    assert pictures.kind_of(_data(kind)) == kind
    found = np.asarray(pictures.decoded(_data(kind), kind))
    assert found.shape == IMAGE.shape and (kind == "JPEG" or np.array_equal(found, IMAGE))


@pytest.mark.parametrize("said,found", [("PNG", "WEBP"), ("WEBP", "JPEG"), ("JPEG", "PNG")])
def test_one_that_is_of_another_kind_is_refused(said: str, found: str) -> None:
    with pytest.raises(ValueError, match=f"found {found}"):
        pictures.decoded(_data(found), said)
    with pytest.raises(ValueError, match="found no picture"):
        pictures.decoded(b"P6 1 1 255 abc", said)


@pytest.mark.parametrize("width,height", [(8192, 8193), (10_000, 10_000), (60_000, 60_000)])
def test_a_large_one_is_told_by_its_pixels_and_no_warning(width: int, height: int) -> None:
    """Pillow's own limit warns of the second and refuses the third in words of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(pictures.TooLarge, match=f"at most 67108864 pixels, found {width} x {height}"):
            pictures.decoded(_bomb(width, height), "PNG")


def test_threads_leave_what_is_said_about_warnings_alone() -> None:
    before, data = list(warnings.filters), [_data("PNG"), _data("WEBP")] * 200
    with ThreadPoolExecutor(8) as threads:
        sizes = threads.map(lambda one: pictures.decoded(one, pictures.kind_of(one) or "").size, data)
        assert set(sizes) == {(9, 8)}
    assert list(warnings.filters) == before
