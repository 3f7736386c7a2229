"""A table of members with their pictures, as a hub's viewer and `datasets` show them.

    pictures/<dataset>-00000.parquet    image, and the sidecars' columns but for where the record lies; a row a member

Pictures are the stored ones, byte for byte; a member without one has null. A row group is a group, so that a viewer
reads no more than it shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpo_data.errors import RunError
from gpo_data.lake.manifest import read_manifest
from gpo_data.lake.record import PLACE, Record
from gpo_data.lake.shard import sidecars
from gpo_data.lake.sidecar import parquet_of, read_rows
from gpo_data.parts import pictures_of

FOLDER = "pictures"
LARGEST = 2**28  # bytes of pictures in a file, and a group more


def files_of(name: str, number: str = "?????") -> str:
    """A file of a dataset's table; without its number the pattern of all."""
    return f"{FOLDER}/{name}-{number}.parquet"


def write_pictures(folder: Path, out: Path, largest: int = LARGEST) -> None:
    """Write the table of a dataset below `out`, one group after the other in memory. Raises RunError."""
    try:
        _write(folder, out, largest)
    except OSError as error:
        raise RunError(
            f"{out}: cannot write the table of pictures: {error.strerror or error}; TMPDIR names another folder, or "
            f"--no-pictures leaves it out"
        ) from None


def _write(folder: Path, out: Path, largest: int) -> None:
    from datasets import Features, Image

    drawn = pq.read_schema(parquet_of(sidecars(folder)[0])).remove_metadata()
    told = pa.schema([column for column in drawn if column.name not in (*PLACE, "image")])
    schema = Features({"image": Image(), **Features.from_arrow_schema(told)}).arrow_schema
    name, groups = read_manifest(folder).name, _groups(folder)
    (out / FOLDER).mkdir()
    for number in count():
        if (rows := next(groups, None)) is None:
            return
        written = 0
        with pq.ParquetWriter(out / files_of(str(name), f"{number:05d}"), schema) as writer:
            while rows:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                written += sum(len(row["image"]["bytes"]) for row in rows if row["image"])
                rows = next(groups, None) if written < largest else None


def _groups(folder: Path) -> Iterator[list[dict[str, Any]]]:
    """Of each group its members' rows."""
    for sidecar in sidecars(folder):
        for key, members in groupby(read_rows(sidecar), key=lambda row: row["group_key"]):
            rows = list(members)
            sample = Record.of(rows[0], folder).read()
            pictures = {
                member: {"bytes": sample[name], "path": f"{key}.{name}"} for member, name in pictures_of(sample).items()
            }
            yield [row | {"image": pictures.get(row["member"])} for row in rows]
