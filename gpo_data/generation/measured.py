"""The measures of an evaluator in a dataset: dataset=<name>/measures/<evaluator>@<version>/shard-000012.parquet.

See measure.py for what is in them, and lake/measures.py for which count.
"""

from __future__ import annotations

import datetime
import re
from typing import Any

import pyarrow as pa

from gpo_data.errors import RunError
from gpo_data.lake.durable import write_atomic
from gpo_data.lake.measures import MEASURED_AT, values_digest
from gpo_data.lake.remote import AnyPath
from gpo_data.lake.shard import parquet_bytes
from gpo_data.lake.sidecar import footer_of

MEASURES = "measures"


def folder_name(evaluator: Any) -> str:
    """`<evaluator>@<version>`, fit for a file system."""
    return f"{evaluator.name}@{re.sub(r'[^A-Za-z0-9._+-]+', '-', str(evaluator.version))}"


def of_other_versions(folder: AnyPath, evaluator: Any) -> list[AnyPath]:
    """Measures by other settings of the evaluator, of which the last measured would count."""
    found = folder.glob(f"{MEASURES}/{evaluator.name}@*/shard-*.parquet")
    return [path for path in found if path.parent.name != folder_name(evaluator)]


def measured_at(measures: AnyPath) -> str:
    try:
        return footer_of(measures).get(MEASURED_AT, "")
    except RunError:
        return ""  # damaged: it does not count


def is_of(measures: AnyPath | None, sidecar: AnyPath) -> bool:
    """Whether measures are those of the shard as it is, and nothing failed; None: there are none."""
    try:
        footer = footer_of(measures) if measures is not None else {}
    except RunError:
        return False  # damaged: measured again and replaced
    return footer.get("tar_sha256") == footer_of(sidecar)["tar_sha256"] and footer.get("failed") == "0"


def lacks(folder: AnyPath, evaluator: Any, sidecar: AnyPath) -> bool:
    """Whether a shard is still to be measured.

    Asked while its lock is held (`claim`): nobody else measures it, nor does `shards` draw its failed members again.
    """
    there = folder / MEASURES / folder_name(evaluator) / sidecar.name
    return sidecar.is_file() and not is_of(there if there.is_file() else None, sidecar)


def write(
    folder: AnyPath, evaluator: Any, sidecar: AnyPath, rows: list[dict[str, Any]], failed: int, after: str
) -> AnyPath:
    """`after`: when others were measured, in whose place these are to count; perhaps by a clock that was ahead."""
    path = folder / MEASURES / folder_name(evaluator) / sidecar.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path.parent}: cannot make the folder: {error.strerror}") from None
    schema = pa.schema(list(({"group_key": pa.string(), "member": pa.int32()} | evaluator.columns).items()))
    footer = {
        "tar_sha256": footer_of(sidecar)["tar_sha256"],
        "evaluator": evaluator.name,
        "version": evaluator.version,
        MEASURED_AT: _now(after),
        "failed": failed,
        "values": values_digest(pa.Table.from_pylist(rows, schema=schema)),
    }
    write_atomic(path, parquet_bytes(rows, schema, footer))
    return path


def _now(after: str) -> str:
    """The time in UTC; later than `after`."""
    now = datetime.datetime.now(datetime.UTC)
    if after:
        now = max(now, datetime.datetime.fromisoformat(after) + datetime.timedelta(microseconds=1))
    return now.isoformat(timespec="microseconds")
