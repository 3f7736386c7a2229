"""The verb `verify`: prove a dataset. Reads only; repair.py takes away what is found.

Checks of each shard its sidecar, footer, rows, size and sha256, and opens every part of every sample as readers do
(parts.py); of each measures file that it belongs to its shard and holds the values that were written; and the folder
for orphans (a tar without a sidecar) and temporaries that a kill left. Without problems, everything can be opened.
Every byte is read once, unless something is wrong with it: a tar's sha256 is that of its groups one after the other.
Groups are opened by a thread a core; Pillow decodes pictures side by side.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from gpo_data import status
from gpo_data.errors import RunError, StoreError, few
from gpo_data.hardware import cores, pool
from gpo_data.lake.durable import TEMPORARY, is_stale
from gpo_data.lake.manifest import Manifest, keeps_unconditional, read_manifest
from gpo_data.lake.measures import problem_of_measures
from gpo_data.lake.record import PLACE, Record
from gpo_data.lake.remote import AnyPath, RemotePath, files_in, held, is_shard
from gpo_data.lake.shard import member_rows, sidecars
from gpo_data.lake.sidecar import CORE, OPTIONAL, footer_of, parquet_of, problem_of, read_rows
from gpo_data.lake.stage import END
from gpo_data.parts import UNCONDITIONAL
from gpo_data.progress import Bar

AHEAD = 16  # groups at once, at most: each holds its bytes and its pictures
Stamp = tuple[tuple[int, int] | None, ...]


NO_SHARD = "no shard's name, shard-000012: a copy of one, which nothing reads"


@dataclass
class Report:
    """What `verify` found; `problems` are (path, what is wrong)."""

    shards: int = 0
    groups: int = 0
    members: int = 0
    failed: int = 0
    problems: list[tuple[AnyPath, str]] = field(default_factory=list)
    stamps: dict[AnyPath, Stamp] = field(default_factory=dict)  # of the files with problems, as they were looked at


def verify(folder: AnyPath, console: Console | None = None) -> Report:
    """Check every byte of the dataset in `folder`. Raises UsageError where dataset.json is none."""
    report, manifest, seen = Report(), read_manifest(folder), dict[str, AnyPath]()
    committed, at_once = sidecars(folder), AHEAD if isinstance(folder, RemotePath) else min(cores(), AHEAD)
    with Bar("verifying", len(committed), "shards", console or Console(quiet=True)) as bar, pool(at_once) as threads:
        for sidecar in committed:
            report.shards += 1
            stamp = stamp_of(sidecar)
            try:
                for problem in _shard(held(sidecar), stamp, manifest, seen, report, threads):
                    _note(report, sidecar, problem, stamp)
            except StoreError:
                raise
            except RunError as error:
                _note(report, sidecar, str(error), stamp)
            bar.step(line=f"problems {len(report.problems)}" if report.problems else "")
    there = {sidecar.stem for sidecar in committed}
    tars, measures = files_in(folder, "shard-*.tar"), files_in(folder, "measures/*@*/shard-*.parquet")
    for path in [*tars, *files_in(folder, "shard-*.parquet"), *measures]:
        if not is_shard(path):
            _note(report, path, NO_SHARD)
    for tar in filter(is_shard, tars):
        if tar.stem not in there and not tar.with_suffix(".parquet").exists():
            _note(report, tar, "orphan: a tar without a sidecar (a run was killed); it is not data")
    for path in filter(is_shard, measures):
        try:
            wrong = problem_of_measures(path, folder / path.name)
        except StoreError:
            raise
        except RunError:
            continue  # of its sidecar, which is a problem already
        if wrong:
            _note(report, path, wrong)
    for temporary in files_in(folder, f"**/*{TEMPORARY}"):
        if is_stale(temporary):
            _note(report, temporary, "stale temporary of a process that is gone")
    return report


def stamp_of(path: AnyPath) -> Stamp:
    """Changes when a shard is committed anew: size and time of its sidecar and tar."""
    files = (path.with_suffix(".parquet"), path.with_suffix(".tar"))
    return tuple((s.st_size, s.st_mtime_ns) if (s := _stat(file)) else None for file in files)


def _stat(path: AnyPath) -> Any:
    try:
        return path.stat()
    except OSError:
        return None


def _note(report: Report, path: AnyPath, problem: str, stamp: Stamp | None = None) -> None:
    report.problems.append((path, problem))
    report.stamps[path] = stamp or stamp_of(path)


def _shard(
    sidecar: AnyPath,
    stamp: Stamp,
    manifest: Manifest,
    seen: dict[str, AnyPath],
    report: Report,
    threads: ThreadPoolExecutor,
) -> Iterator[str]:
    if problem := problem_of(parquet_of(sidecar), whole=True):
        yield problem
        return
    footer, rows, fingerprint = footer_of(sidecar), read_rows(sidecar), manifest.fingerprint
    groups, size = int(footer["groups"]), int(footer["group_size"])
    if footer["fingerprint"] != fingerprint:
        yield f"fingerprint {footer['fingerprint']}, expected the dataset's {fingerprint}"
    if len(rows) != groups * size or not rows:
        yield f"{len(rows)} rows, expected {groups} groups of {size}"
    if bad := _bad_row(rows, sidecar, size):
        yield bad
        return
    by_key: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_key.setdefault(row["group_key"], []).append(row)
    if len(by_key) != groups or any([r["member"] for r in of] != list(range(size)) for of in by_key.values()):
        yield f"{len(by_key)} distinct groups in {len(rows)} rows, expected {groups} of members 0 to {size - 1}"
    for key in by_key:
        if key in seen:
            yield f"group {key} is also in {seen[key].name}"
        seen[key] = sidecar
    report.groups += len(by_key)
    report.members += len(rows)
    report.failed += sum(row["status"] != status.OK for row in rows)
    tar, keeps = sidecar.with_suffix(".tar"), keeps_unconditional(manifest)
    sha256, problems, end = hashlib.sha256(), list[str](), 0
    # Of the dataset, in the first group of each shard.
    jobs = [(key, of_group, tar, keeps and key == rows[0]["group_key"]) for key, of_group in by_key.items()]
    opened = threads.map(_group, *zip(*jobs, strict=True))
    for (key, of_group), (blocks, wrong) in zip(by_key.items(), opened, strict=True):
        if any(row[name] != of_group[0][name] for row in of_group for name in PLACE) or of_group[0]["offset"] != end:
            problems.append(f"the rows of {key} place it at {of_group[0]['offset']} in {tar.name}, expected {end}")
        end = of_group[0]["offset"] + of_group[0]["size"]
        sha256.update(blocks)
        problems += wrong
    if end + len(END) != int(footer["tar_bytes"]):
        problems.append(f"the rows end at byte {end} of {tar.name}, expected {int(footer['tar_bytes']) - len(END)}")
    if not _is_as_told(tar, stamp[1], footer, sha256) and (problem := _tar(tar, footer)):
        yield problem  # of the tar as a whole, which says more than what follows from it
    else:
        yield from problems


def _is_as_told(tar: AnyPath, told: tuple[int, int] | None, footer: dict[str, str], sha256: Any) -> bool:
    """Whether a tar of which the groups were read is as long as its footer says, and has its sha256."""
    size = int(footer["tar_bytes"])
    if told is None or told[0] != size:
        return False
    try:
        sha256.update(Record(str(tar), size - len(END), len(END), zlib.crc32(END)).blocks())
    except StoreError:
        raise
    except RunError:
        return False
    return bool(sha256.hexdigest() == footer["tar_sha256"])


def _bad_row(rows: list[dict[str, Any]], sidecar: AnyPath, size: int) -> str | None:
    """The first row that cannot be one, whatever its tar says."""
    for row in rows:
        where = f"{row['group_key']} member {row['member']}"
        if empty := [n for n in CORE.names if row.get(n) is None and n not in (*OPTIONAL, "reward")]:
            return f"{where}: no {', '.join(empty)}"
        if not 0 <= row["member"] < size:
            return f"{where}: expected a member below {size}"
        if row["tar"] != sidecar.with_suffix(".tar").name:
            return f"{where}: is of {row['tar']!r}, expected {sidecar.with_suffix('.tar').name}"
        if row["status"] not in status.CODES and not row["status"].startswith(status.OLD):
            return f"{where}: status {row['status']!r}, expected one of {', '.join(status.CODES)}"
        if row["status"] == status.OK and (row["reward"] is None or not math.isfinite(row["reward"])):
            return f"{where}: status ok with reward {row['reward']}"
    return None


def _tar(tar: AnyPath, footer: dict[str, str]) -> str | None:
    if not tar.is_file():
        return f"{tar.name} is {'a folder' if tar.is_dir() else 'missing'}"
    sha256 = hashlib.sha256()
    try:
        if (length := tar.stat().st_size) != int(footer["tar_bytes"]):
            return f"{tar.name} has {length} bytes, expected {footer['tar_bytes']}"
        with tar.open("rb") as stream:
            while chunk := stream.read(2**22):
                sha256.update(chunk)
    except OSError as error:
        return f"{tar.name} cannot be read: {error.strerror}"
    if sha256.hexdigest() != footer["tar_sha256"]:
        return f"{tar.name} has sha256 {sha256.hexdigest()}, expected {footer['tar_sha256']}"
    return None


def _group(key: str, rows: list[dict[str, Any]], tar: AnyPath, keeps: bool) -> tuple[bytes, list[str]]:
    """A record's bytes, none where they cannot be had, and what is wrong with it.

    Opens every part; Parquet checksums its pages but not its footer, and what the tar says settles it.
    """
    blocks, problems = b"", list[str]()
    try:
        record = Record.of(rows[0], tar.parent)
        blocks = record.blocks()
        group = record.opened(blocks)
    except StoreError:
        raise
    except RunError as error:
        return blocks, [f"{key}: {error}"]
    if keeps and group.unconditional is None:
        problems.append(f"{key}: no {UNCONDITIONAL}, which dataset.json says that each shard's first group has")
    told = member_rows(group)
    listed = []
    for row in rows:  # a lake of 0.1 has code and reason in one
        code, reason = status.split(row["status"], row.get("status_reason"))
        listed.append(row | {"status": code, "status_reason": reason})
    differing = [
        name
        for a, b in zip(told, listed, strict=False)
        for name in a
        if a[name] != b.get(name) and not (a[name] != a[name] and b.get(name) != b.get(name))  # NaN
    ]
    if len(told) != len(listed) or differing:
        names = few(sorted(set(differing))) or "their number"
        problems.append(f"the sidecar's rows of {key} are not what its group.json in {tar.name} says: {names}")
    return blocks, problems
