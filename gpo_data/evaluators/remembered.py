"""Answers of a scorer that is dear to ask, by the picture's hash: lake/.judges/<evaluator>@<version>.sqlite.

    answers(key TEXT PRIMARY KEY, row TEXT)   key: blake2b of the pixels and the target; row: the columns, JSON

So a picture is paid for once: a run that was killed, the same seeds drawn again, `gpo-data measure` after `shards`.
The version is in the name, and another version asks again. A cache that cannot be read or written is none; remove the
file to ask again.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from gpo_data.evaluators.version import as_version
from gpo_data.lake.remote import place

FOLDER = ".judges"


def key_of(image: np.ndarray, target: dict[str, Any]) -> str:
    state = hashlib.blake2b(f"{image.shape}{json.dumps(target, sort_keys=True, default=str)}".encode(), digest_size=16)
    state.update(np.ascontiguousarray(image).data)
    return state.hexdigest()


class Remembered:
    """In memory, and in a file if there is a folder for it."""

    def __init__(self, lake: str | None, name: str, version: str) -> None:
        """`lake`: None, or a URL: for this process alone."""
        self._rows: dict[str, Any] = {}
        self._lock = threading.Lock()
        here = None if lake is None else place(lake)
        stem = as_version(f"{name}@{version}")[:200]
        self._path = here / FOLDER / f"{stem}.sqlite" if isinstance(here, Path) else None
        self._file: sqlite3.Connection | None = None

    def get(self, keys: list[str]) -> dict[str, Any]:
        """The rows that are known, by key."""
        with self._lock:
            unknown = [key for key in dict.fromkeys(keys) if key not in self._rows]
            if unknown and self._path is not None and self._path.is_file():
                with suppress(sqlite3.Error, ValueError):
                    for key in unknown:
                        for (row,) in self._open().execute("SELECT row FROM answers WHERE key = ?", [key]):
                            self._rows[key] = json.loads(row)
            return {key: self._rows[key] for key in keys if key in self._rows}

    def put(self, rows: dict[str, Any]) -> None:
        with self._lock:
            self._rows |= rows
            if self._path is not None and rows:
                with suppress(sqlite3.Error, OSError):
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                    with self._open() as file:
                        file.executemany(
                            "INSERT OR REPLACE INTO answers VALUES (?, ?)",
                            [(key, json.dumps(row)) for key, row in rows.items()],
                        )

    def _open(self) -> sqlite3.Connection:
        if self._file is None:
            self._file = sqlite3.connect(str(self._path), timeout=10, check_same_thread=False)
            self._file.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, row TEXT)")
        return self._file
