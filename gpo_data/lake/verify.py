"""The verb `verify`: prove a dataset, and repair it.

Checks each shard's sidecar, footer, size, sha256, every sample's crc32, row counts, duplicate groups, finite rewards;
and the folder's orphans (a tar without a sidecar) and temporaries that a kill left. `repair` moves damaged shards to
`.quarantine/`, where nothing reads them, so that the next `gpo-data shards` plans and draws them again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from gpo_data import status
from gpo_data.errors import RunError
from gpo_data.lake.manifest import read_manifest
from gpo_data.lake.record import Record
from gpo_data.lake.shard import TEMPORARY, fsync_folder, member_rows, sidecars
from gpo_data.lake.sidecar import OPTIONAL, footer_of, sidecar_schema
from gpo_data.status import OK

FOOTER = {"tar_sha256", "tar_bytes", "groups", "group_size", "schema_version", "fingerprint"}


@dataclass
class Report:
    """What `verify` found; `problems` are (path, what is wrong)."""

    shards: int = 0
    groups: int = 0
    members: int = 0
    failed: int = 0
    problems: list[tuple[Path, str]] = field(default_factory=list)


def verify(folder: Path) -> Report:
    """Check every byte of the dataset in `folder`. Reads only."""
    report, fingerprint, seen = Report(), read_manifest(folder)["fingerprint"], dict[str, Path]()
    for sidecar in sidecars(folder):
        report.shards += 1
        report.problems += [(sidecar, problem) for problem in _verify_shard(sidecar, fingerprint, seen, report)]
    for tar in sorted(folder.glob("shard-*.tar")):
        if not tar.with_suffix(".parquet").is_file():
            report.problems.append((tar, "orphan: a tar without a sidecar (a run was killed); it is not data"))
    for temporary in sorted(folder.rglob(f"*{TEMPORARY}")):
        if not _alive(temporary):
            report.problems.append((temporary, "stale temporary of a process that is gone"))
    return report


def repair(folder: Path, report: Report) -> int:
    """Quarantine what `report` found; the number of files moved or removed."""
    quarantine, moved = folder / ".quarantine", 0
    for path in {p for p, _ in report.problems}:
        if path.name.endswith(TEMPORARY):
            path.unlink(missing_ok=True)
            moved += 1
            continue
        quarantine.mkdir(exist_ok=True)
        for file in (path.with_suffix(".parquet"), path.with_suffix(".tar")):  # the sidecar first: it is the commit
            if file.is_file():
                file.replace(quarantine / file.name)
                moved += 1
    fsync_folder(folder)
    return moved


def _verify_shard(sidecar: Path, fingerprint: str, seen: dict[str, Path], report: Report) -> list[str]:
    try:
        footer = footer_of(sidecar)
        if missing := FOOTER - footer.keys():
            return [f"the sidecar's footer lacks {', '.join(sorted(missing))}"]
        table = pq.read_table(sidecar, page_checksum_verification=True)
        if missing := set(sidecar_schema({}).names) - set(table.column_names) - set(OPTIONAL):
            return [f"the sidecar lacks the columns {', '.join(sorted(missing))}"]
        rows = table.to_pylist()
        groups, size, _ = (int(footer[k]) for k in ("groups", "group_size", "tar_bytes"))
    except Exception as error:  # pyarrow raises many kinds on damaged bytes
        return [f"the sidecar cannot be read: {type(error).__name__}: {error}"]
    problems = []
    if footer["fingerprint"] != fingerprint:
        problems.append(f"fingerprint {footer['fingerprint']}, expected the dataset's {fingerprint}")
    if len(rows) != groups * size:
        problems.append(f"{len(rows)} rows, expected {groups} groups of {size}")
    keys = list(dict.fromkeys(row["group_key"] for row in rows))
    if len(keys) != groups or len({(r["group_key"], r["member"]) for r in rows}) != len(rows):
        problems.append(f"{len(keys)} distinct groups in {len(rows)} rows, expected {groups} of {size} members")
    for key in keys:
        if key in seen:
            problems.append(f"group {key} is also in {seen[key].name}")
        seen[key] = sidecar
    for row in rows:
        if row["status"] == OK and (row["reward"] is None or not math.isfinite(row["reward"])):
            problems.append(f"{row['group_key']} member {row['member']}: status ok with reward {row['reward']}")
    report.groups += len(keys)
    report.members += len(rows)
    report.failed += sum(row["status"] != OK for row in rows)
    return problems + _verify_tar(sidecar.with_suffix(".tar"), footer, rows)


def _verify_tar(tar: Path, footer: dict[str, str], rows: list[dict]) -> list[str]:
    if not tar.is_file():
        return [f"{tar.name} is missing"]
    data = tar.read_bytes()
    if len(data) != int(footer["tar_bytes"]):
        return [f"{tar.name} has {len(data)} bytes, expected {footer['tar_bytes']}"]
    if (found := hashlib.sha256(data).hexdigest()) != footer["tar_sha256"]:
        return [f"{tar.name} has sha256 {found}, expected {footer['tar_sha256']}"]
    problems = []
    for key, row in {r["group_key"]: r for r in rows}.items():
        try:
            sample = Record.of(row | {"tar": tar.name}, tar.parent).read()
        except RunError as error:
            problems.append(str(error))
            continue
        # Parquet checksums its pages but not its footer; what the tar says settles it.
        told = member_rows(json.loads(sample["group.json"]))
        of_group = [r for r in rows if r["group_key"] == key]
        # A lake of 0.1 has code and reason in one.
        split = [
            r | dict(zip(("status", "status_reason"), status.split(r["status"], r.get("status_reason")), strict=True))
            for r in of_group
        ]
        listed = [{k: r.get(k) for k in t} for t, r in zip(told, split, strict=False)]
        if listed != told:
            problems.append(f"the sidecar's rows of {key} are not what its group.json in {tar.name} says")
    return problems


def _alive(temporary: Path) -> bool:
    """Whether the process in the temporary's name (`<file>.<pid>.tmp`) still runs."""
    try:
        os.kill(int(temporary.name.split(".")[-2]), 0)
        return True
    except (ValueError, IndexError, ProcessLookupError):
        return False
    except PermissionError:
        return True
