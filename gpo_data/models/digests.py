"""What a model is, by the bytes of the files that its pipeline opens (files.py).

`weights_digest` covers all of them: weights that were changed in place are another model. Hashing gigabytes takes a
while, so the digest of a large file is remembered (in the user's cache folder, one a path) with its size, time and
inode.
`digest`, of names, sizes and the first and last MiB, is what datasets and runs before it have. Still older ones have
both of all that lies in the folder, which `digests_of` goes on to know them by.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpo_data.errors import RunError
from gpo_data.home import user_cache
from gpo_data.lake.durable import write_atomic
from gpo_data.models.files import INDEX, PICKLED, PLAIN, TENSORS, needed
from gpo_data.models.folder import read_json

LARGE = 1 << 24  # bytes


def digests_of(folder: Path, known: Mapping[str, Any] | None = None) -> dict[str, str]:
    """`model_digest` and `weights_digest` of a model, by which `known`, a dataset's or a run's, may know it."""

    def of(files: list[Path]) -> dict[str, str]:
        return {"model_digest": digest(folder, files), "weights_digest": weights_digest(folder, files)}

    def fits(found: dict[str, str]) -> bool:
        return known is None or all(known.get(name) in (None, value) for name, value in found.items())

    here = of(opened := _opened(folder))
    if fits(here) or (every := _all(folder)) == opened:
        return here
    older = of(every)
    return older if fits(older) else here


def digest(folder: Path, files: Sequence[Path] | None = None) -> str:
    """16 hex digits over the weights' names, sizes and their first and last MiB: another checkpoint, another digest."""
    state = hashlib.blake2b(digest_size=8)
    for file in _opened(folder) if files is None else files:
        if file.suffix not in (TENSORS, ".json"):
            continue
        size = file.stat().st_size
        state.update(f"{file.relative_to(folder)} {size}\n".encode())
        with file.open("rb") as stream:
            state.update(stream.read(1 << 20))
            stream.seek(max(0, size - (1 << 20)))
            state.update(stream.read())
    return state.hexdigest()


def weights_digest(folder: Path, files: Sequence[Path] | None = None) -> str:
    """16 hex digits over all bytes of the files that a pipeline is made from, and their names."""
    state = hashlib.blake2b(digest_size=8)
    for file in _opened(folder) if files is None else files:
        state.update(f"{file.relative_to(folder)} {_of_file(file)}\n".encode())
    return state.hexdigest()


def _opened(folder: Path) -> list[Path]:
    """Of a policy's folder, which has no index, all."""
    files = _all(folder)
    if not (folder / INDEX).is_file():
        return files
    names = set(needed((file.relative_to(folder).as_posix() for file in files), read_json(folder / INDEX)))
    return [file for file in files if file.relative_to(folder).as_posix() in names]


def _all(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in (TENSORS, PICKLED, *PLAIN) and p.is_file())


def files_digest(path: Path) -> str:
    """16 hex digits over all bytes and names of a file, or of the files of a folder."""
    state = hashlib.blake2b(digest_size=8)
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        state.update(f"{file.relative_to(path.parent)} {_of_file(file)}\n".encode())
    return state.hexdigest()


def _of_file(file: Path) -> str:
    facts = file.stat()
    if facts.st_size < LARGE:
        return _hash(file)
    path, version = str(file.resolve()), f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ino}"
    known = _known()
    if known.get(path, "").rpartition(" ")[0] != version:
        known[path] = f"{version} {_hash(file)}"
        _remember(known)
    return known[path].rpartition(" ")[2]


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def _cache() -> Path:
    return user_cache() / "digests.json"


def _known() -> dict[str, str]:
    with suppress(OSError, RuntimeError, ValueError):  # no home, no cache: hashed again
        found = json.loads(_cache().read_text())
        if isinstance(found, dict):
            return {str(key): str(value) for key, value in found.items()}
    return {}


def _remember(known: dict[str, str]) -> None:
    with suppress(OSError, RuntimeError, RunError):
        path = _cache()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(known, indent=1).encode())
