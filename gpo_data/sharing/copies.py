"""A dataset in an object store on its way to a hub, or from one: a copy of it on this machine, under $GPO_SCRATCH.

What always holds: a copy that was cut goes on where it stopped, and what is put goes tars first and sidecars last, so
that what is cut there is a dataset that lacks shards.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from gpo_data.errors import UsageError
from gpo_data.lake.durable import TEMPORARY
from gpo_data.lake.remote import RemotePath, below, files_in, open_store, scratch, stage_folder
from gpo_data.lake.store_errors import explaining
from gpo_data.progress import Bar

NEVER_CHANGE = ("shard-*.tar", "shard-*.parquet")


def place_of_copy(folder: RemotePath) -> Path:
    return scratch() / "copies" / stage_folder(folder).name / folder.name


@contextmanager
def copied(folder: RemotePath, console: Console | None) -> Iterator[Path]:
    """The store's dataset on this machine; the copy goes when all that was done with it succeeded."""
    copy = place_of_copy(folder)
    store, _ = open_store(folder.url)
    paths = [path for path in files_in(folder, "**/*") if not _hidden(below(path, folder))]
    for old in {one for one in copy.rglob("*") if one.is_file()} - {copy / below(path, folder) for path in paths}:
        old.unlink()  # of a copy that was cut, and gone from the store since
    with Bar("fetching", len(paths), "files", console or Console(quiet=True)) as bar:
        for path in paths:
            target = copy / below(path, folder)
            if target.suffix != ".tar" or not target.is_file() or target.stat().st_size != path.stat().st_size:
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_name(f".{target.name}{TEMPORARY}")
                with explaining(folder.url):
                    store.get_file(str(path), str(temporary))
                temporary.replace(target)
            bar.step(line=target.name)
    yield copy
    shutil.rmtree(copy.parent)


def put(copy: Path, folder: RemotePath, console: Console | None) -> None:
    """Have the store hold what the copy holds, and take the copy away. Raises UsageError: it has other pictures."""
    paths = [path for path in sorted(copy.rglob("*")) if path.is_file() and not _hidden(below(path, copy))]
    paths.sort(key=lambda path: (path.match("shard-*.parquet"), path.suffix != ".tar"))
    with Bar("putting", len(paths), "files", console or Console(quiet=True)) as bar:
        for path in paths:
            target = folder
            for part in path.relative_to(copy).parts:
                target = target / part
            if not any(path.match(pattern) for pattern in NEVER_CHANGE):
                target.write_bytes(path.read_bytes())
            elif not target.create(path.read_bytes()):
                raise UsageError(f"{target}: is there with another content; pull into another --lake")
            bar.step(line=path.name)
    shutil.rmtree(copy.parent)


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))
