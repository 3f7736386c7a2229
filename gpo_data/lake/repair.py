"""`verify --repair`: take away what `verify` found, so that the next `gpo-data shards` or `measure` makes it again.

Damaged shards and measures go to `.quarantine/`, where nothing reads them; temporaries are removed. What always holds:
a shard is taken away under its claim, and only as it was looked at: one that another process is drawing, or has
committed anew since, stays.
"""

from __future__ import annotations

import os

from gpo_data.errors import RunError
from gpo_data.lake.durable import TEMPORARY, fsync_folder, is_there, move
from gpo_data.lake.locks import claim
from gpo_data.lake.remote import AnyPath, below, is_shard
from gpo_data.lake.shard import number_of
from gpo_data.lake.verify import Report, stamp_of


def repair(folder: AnyPath, report: Report) -> int:
    """The number of files moved or removed. Raises RunError: another process has a shard, a file cannot be moved."""
    moved, busy = 0, []
    for path in dict.fromkeys(p for p, _ in report.problems):
        try:
            if path.name.endswith(TEMPORARY):
                path.unlink(missing_ok=True)
                moved += 1
                continue
            if not is_shard(path):
                moved += _quarantine(folder, path)
                continue
            with claim(folder, number_of(path)) as mine:
                if not mine:
                    busy.append(path.stem)
                elif stamp_of(path) == report.stamps[path]:
                    moved += _quarantine(folder, path)
        except OSError as error:
            raise RunError(f"{path}: cannot take away: {error.strerror}; do it by hand") from None
    if busy:
        raise RunError(
            f"{folder}: {', '.join(busy)} are being drawn, measured or repaired by another process and stay; "
            f"{moved} files were taken away; verify again when it has ended"
        )
    return moved


def _quarantine(folder: AnyPath, path: AnyPath) -> int:
    moved = 0
    for file in (path.with_suffix(".parquet"), path.with_suffix(".tar")):  # the sidecar first: it is the commit
        if is_there(file):
            target = folder / ".quarantine" / below(file, folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                target = target.with_name(f"{target.name}-{os.getpid()}")
            move(file, target)
            fsync_folder(file.parent)
            moved += 1
    return moved
