"""What was read from an object store, kept on this machine: a folder of at most `size` bytes.

    <folder>/<blake2b of the key>      16 bytes of blake2b over the rest, and the rest

What always holds: what is cut or changed there is fetched again; what was used longest ago goes first; several
processes may share a folder, which is then over its size by what they wrote since each looked (a twentieth of it).
A folder that cannot be written caches nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gpo_data.errors import UsageError

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
LOOK = 20  # the folder is looked at again when so small a part of it was written


def bytes_of(key: str, text: str) -> int:
    """`50 GB` in bytes. Raises UsageError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]B|)\s*", text, re.IGNORECASE)
    if found is None or not (size := int(float(found[1]) * UNITS[found[2].upper()])):
        raise UsageError(f"{key}: expected a size such as 50 GB, found {text!r:.200}")
    return size


@dataclass
class Cache:
    folder: Path
    size: int
    _written: int | None = field(default=None, repr=False)  # bytes since the folder was looked at; None: never

    def get(self, key: str, fetch: Callable[[], bytes]) -> bytes:
        """The bytes of `key`, from the folder or else from `fetch`, which gives the same at any time."""
        if (found := self.find(key)) is not None:
            return found
        content = fetch()
        self.put(key, content)
        return content

    def find(self, key: str) -> bytes | None:
        path = self._path(key)
        try:
            stored = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return stored[16:] if hashlib.blake2b(stored[16:], digest_size=16).digest() == stored[:16] else None

    def put(self, key: str, content: bytes) -> None:
        path, length = self._path(key), len(content) + 16
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._written is None or self._written + length > self.size // LOOK:
                self._make_room(length)
                self._written = 0
            try:
                temporary.write_bytes(hashlib.blake2b(content, digest_size=16).digest() + content)
                temporary.replace(path)
            except OSError:  # a full disk
                temporary.unlink(missing_ok=True)
                raise
            self._written += length

    def _path(self, key: str) -> Path:
        return self.folder / hashlib.blake2b(key.encode(), digest_size=16).hexdigest()

    def _make_room(self, length: int) -> None:
        """Remove what was used longest ago, until what may be written before the next look fits."""
        files = []
        for path in self.folder.iterdir():
            with suppress(OSError):
                stat = path.stat()
                files.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in files) + max(length, self.size // LOOK)
        for _, size, path in sorted(files):
            if total <= self.size:
                return
            path.unlink(missing_ok=True)
            total -= size
