"""The sidecar of a shard: one row a member, and a footer. What it must be to be read as one.

What always holds: whoever reads rows gets them from a file that has the columns and the types of a sidecar, with page
checksums checked, or an error of one line.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpo_data.errors import RunError, words
from gpo_data.lake.remote import AnyPath, held

SCHEMA_VERSION = 1
FOOTER = ("tar_sha256", "tar_bytes", "groups", "group_size", "schema_version", "fingerprint")
OPTIONAL = ("status_reason",)  # lakes of 0.1 lack it
REPAIR = "run `gpo-data verify RECIPE --repair`"


def sidecar_schema(columns: dict[str, pa.DataType]) -> pa.Schema:
    """`columns`: the task's target columns and the evaluators' measurement columns."""
    head = {"group_key": pa.string(), "prompt_id": pa.string(), "prompt": pa.string()}
    tail = {"member": pa.int32(), "seed": pa.int64()} | columns
    tail |= {"reward": pa.float64(), "status": pa.string(), "status_reason": pa.string()}
    tail |= {"tar": pa.string(), "offset": pa.int64(), "size": pa.int64(), "crc32": pa.int64()}
    return pa.schema(list((head | tail).items()))


CORE = sidecar_schema({})
# That the catalog adds to a shard's own, for members and for groups.
MEMBER_COLUMNS = ("dataset", "shard", "filename", "exact", "level", "lender")
GROUP_COLUMNS = ("n", "failed", "mean", "min", "max", "best_of_n", "best_member", "exact_rate", "dead", "std")
RESERVED = frozenset((*CORE.names, *MEMBER_COLUMNS, *GROUP_COLUMNS))  # what no target or measurement is called


DAMAGED = "its bytes are not those of its rows"


def problem_of(source: IO[bytes] | Path | str, whole: bool = False) -> str | None:
    """Why this is no sidecar; None if it is one.

    Args:
        whole: read every row, with page checksums, and hold every byte to them; else the footer alone.
    """
    try:
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            problem = _wrong_footer(schema.metadata or {}) or _wrong_columns(schema)
            if problem is None and whole:
                if (told := _written_schema(file.metadata)) is not None and told.names != schema.names:
                    return f"the sidecar has the columns {', '.join(schema.names)}, written as {', '.join(told.names)}"
                problem = wrong_bytes(source, pa.Table.from_batches(file.iter_batches(), schema), file.metadata)
    except Exception as error:  # pyarrow raises many kinds on damaged bytes
        return f"the sidecar cannot be read: {words(error)}"
    return problem


def written(table: pa.Table) -> bytes:
    """A sidecar's or a measures file's."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def wrong_bytes(source: IO[bytes] | Path | str, table: pa.Table, metadata: pq.FileMetaData) -> str | None:
    """Whether a file's bytes are not those that its rows would be written as, by the library that wrote them.

    Checksums are of pages alone: statistics, which SQL leaves row groups out by, and all else of the footer have none.
    """
    as_written = _written_schema(metadata)
    ours = metadata.num_row_groups == 1 and metadata.row_group(0).column(0).compression == "ZSTD"
    if as_written is None or not ours:
        return None  # another writer's
    again = written(table.combine_chunks().cast(as_written))  # which calls a list's values by another name
    if pq.read_metadata(io.BytesIO(again)).created_by != metadata.created_by:
        return None  # another version may lay out the same rows otherwise
    if isinstance(source, str | Path):
        return None if Path(source).read_bytes() == again else DAMAGED
    source.seek(0)
    return None if source.read() == again else DAMAGED


def parquet_of(path: AnyPath) -> IO[bytes] | Path:
    """What pyarrow reads. Raises RunError where an object store does not give it."""
    path = held(path)
    return path if isinstance(path, Path) else io.BytesIO(path.read_bytes())


def read_rows(sidecar: AnyPath, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Rows of a sidecar, of these columns that it has. Raises RunError where it is none."""
    source = parquet_of(sidecar)
    if problem := problem_of(source):
        raise RunError(f"{sidecar}: {problem}; {REPAIR}")
    try:
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            names = [n for n in columns if n in file.schema_arrow.names] if columns is not None else None
            rows: list[dict[str, Any]] = file.read(columns=names).to_pylist()
            return rows
    except Exception as error:
        raise RunError(f"{sidecar}: the sidecar cannot be read: {words(error)}; {REPAIR}") from None


def measured_columns(sidecar: AnyPath) -> dict[str, pa.DataType]:
    """The targets and measurements of a sidecar, with their types."""
    return {field.name: field.type for field in pq.read_schema(parquet_of(sidecar)) if field.name not in CORE.names}


def footer_of(path: AnyPath) -> dict[str, str]:
    """A Parquet file's own key-value metadata. Raises RunError."""
    source = parquet_of(path)
    try:
        metadata = pq.read_schema(source).metadata or {}
        return {k.decode(): v.decode() for k, v in metadata.items() if k != b"ARROW:schema"}
    except Exception as error:
        raise RunError(f"{path}: cannot be read: {words(error)}; {REPAIR}") from None


def _written_schema(metadata: pq.FileMetaData) -> pa.Schema | None:
    """The columns as Arrow wrote them once more, in a part of its own; None where another library wrote the file."""
    coded = (metadata.metadata or {}).get(b"ARROW:schema")
    return pa.ipc.read_schema(pa.BufferReader(base64.b64decode(coded))) if coded else None


def _wrong_footer(metadata: dict[bytes, bytes]) -> str | None:
    if missing := [key for key in FOOTER if key.encode() not in metadata]:
        return f"the sidecar's footer lacks {', '.join(missing)}"
    for key in ("tar_bytes", "groups", "group_size", "schema_version"):
        if not metadata[key.encode()].isdigit():
            return f"the sidecar's footer has {key} {metadata[key.encode()][:40]!r}, expected a number"
    if (version := int(metadata[b"schema_version"])) > SCHEMA_VERSION:
        return f"the sidecar has schema_version {version}, expected at most {SCHEMA_VERSION}; a newer gpo-data wrote it"
    return None


def _wrong_columns(schema: pa.Schema) -> str | None:
    from gpo_data.tasks import TARGETS  # of all tasks, which import this

    if missing := [name for name in CORE.names if name not in schema.names and name not in OPTIONAL]:
        return f"the sidecar lacks the columns {', '.join(missing)}"
    for field in CORE:
        if field.name in schema.names and kind_of(found := schema.field(field.name).type) != kind_of(field.type):
            return f"the sidecar's column {field.name} is {found}, expected {field.type}"
    for field in schema:
        if (expected := TARGETS.get(field.name)) and broad_kind_of(field.type) != broad_kind_of(expected):
            return f"the sidecar's column {field.name} is {field.type}, expected {expected}, as tasks have it"
    return None


def kind_of(type: pa.DataType) -> str:
    """Text, whole number or number: which width another writer chose does not matter."""
    if pa.types.is_string(type) or pa.types.is_large_string(type):
        return "text"
    if pa.types.is_integer(type):
        return "whole number"
    return "number" if pa.types.is_floating(type) else str(type)


def broad_kind_of(type: pa.DataType) -> str:
    """Text or number: what columns of different datasets agree in."""
    kind = kind_of(type)
    return "number" if kind in ("whole number", "bool") else kind
