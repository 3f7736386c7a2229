"""A dataset in an object store on its way to a hub, or from one: a copy of it on this machine, under $GPO_SCRATCH.

What always holds: a copy that was cut goes on where it stopped, and what is put goes tars first and sidecars last, so
that what is cut there is a dataset that lacks shards.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rich.console import Console

from gpo_data.errors import UsageError
from gpo_data.lake.durable import write_stream
from gpo_data.lake.files import SHARDS
from gpo_data.lake.remote import RemotePath, below, scratch, stage_folder
from gpo_data.progress import Bar

BLOCK = 2**26  # bytes of a request


def place_of_copy(folder: RemotePath) -> Path:
    return scratch() / "copies" / stage_folder(folder).name / folder.name


@contextmanager
def copied(folder: RemotePath, console: Console | None) -> Iterator[Path]:
    """The store's dataset on this machine; the copy goes when all that was done with it succeeded."""
    copy = place_of_copy(folder)
    paths = [path for path in folder.glob("**/*") if not _hidden(below(path, folder))]
    for old in {one for one in copy.rglob("*") if one.is_file()} - {copy / below(path, folder) for path in paths}:
        old.unlink()  # of a copy that was cut, and gone from the store since
    with Bar("fetching", len(paths), "files", console or Console(quiet=True)) as bar:
        for path in paths:
            target, size = copy / below(path, folder), path.stat().st_size
            if target.suffix != ".tar" or not target.is_file() or target.stat().st_size != size:
                _fetch(path, target, size)
            bar.step(line=target.name)
    yield copy
    shutil.rmtree(copy.parent)


def _fetch(path: RemotePath, target: Path, size: int) -> None:
    def fill(stream: BinaryIO) -> None:
        for start in range(0, size, BLOCK):
            stream.write(path.read_range(start, min(size, start + BLOCK)))

    target.parent.mkdir(parents=True, exist_ok=True)
    write_stream(target, fill)


def put(copy: Path, folder: RemotePath, console: Console | None) -> None:
    """Have the store hold what the copy holds, and take the copy away. Raises UsageError: it has other pictures."""
    paths = [path for path in sorted(copy.rglob("*")) if path.is_file() and not _hidden(below(path, copy))]
    paths.sort(key=lambda path: (path.match(SHARDS), path.suffix != ".tar"))
    with Bar("putting", len(paths), "files", console or Console(quiet=True)) as bar:
        for path in paths:
            target, never_changes = folder / below(path, copy), path.suffix == ".tar" or path.match(SHARDS)
            if not never_changes:
                target.write_bytes(path.read_bytes())
            elif not target.create(path.read_bytes()):
                raise UsageError(f"{target}: is there with another content; pull into another --lake")
            bar.step(line=path.name)
    shutil.rmtree(copy.parent)


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))
