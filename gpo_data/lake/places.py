"""Where a snapshot's groups lie: its table, and one group made of its rows when asked for.

What always holds: a snapshot of millions of members is opened without a Python object for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import pyarrow as pa

from gpo_data.lake.columns import begins
from gpo_data.lake.record import Record
from gpo_data.lake.shard import dataset_folder
from gpo_data.lake.snapshot import COLUMNS


@dataclass(frozen=True)
class Part:
    """A group's record, and which of its members count."""

    record: Record
    members: tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """A group: its own record first, then those that it borrows members from (see relabel.py)."""

    key: str
    prompt: str
    parts: tuple[Part, ...]
    seeds: tuple[int, ...]
    rewards: tuple[float, ...]
    advantages: tuple[float, ...]
    kl_weights: tuple[float, ...] | None = None

    @property
    def dataset(self) -> str:
        return self.key.partition("/")[0]


class Places(Sequence[Place]):
    """The groups of a snapshot (see `take_snapshot`), by index. Picklable.

    keys: <dataset>/<group_key> of each.
    """

    def __init__(self, lake: str, snapshot: pa.Table) -> None:
        weighed = ["kl_weight"] if "kl_weight" in snapshot.column_names else []
        self.lake, self._rows = lake, snapshot.select([*COLUMNS, "advantage", *weighed])
        firsts = begins(snapshot)
        first = snapshot.select(["dataset", "group_key"]).take(firsts)
        names = (first["dataset"].to_pylist(), first["group_key"].to_pylist())
        bounds = [*firsts.tolist(), len(snapshot)]
        self._runs: dict[str, list[tuple[int, int]]] = {}  # rows of a key that follow each other; of most keys one run
        for dataset, key, begin, end in zip(*names, bounds[:-1], bounds[1:], strict=True):
            self._runs.setdefault(f"{dataset}/{key}", []).append((begin, end - begin))
        self.keys = list(self._runs)

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> Place: ...
    @overload
    def __getitem__(self, index: slice) -> list[Place]: ...
    def __getitem__(self, index: int | slice) -> Place | list[Place]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        key = self.keys[index]
        rows = [row for run in self._runs[key] for row in self._rows.slice(*run).to_pylist()]
        folder = dataset_folder(self.lake, rows[0]["dataset"])
        records: dict[Record, list[int]] = {}
        for row in rows:
            records.setdefault(Record.of(row, folder), []).append(row["member"])
        return Place(
            key=key,
            prompt=rows[0]["prompt"],
            parts=tuple(Part(record, tuple(members)) for record, members in records.items()),
            seeds=tuple(row["seed"] for row in rows),
            rewards=tuple(row["reward"] for row in rows),
            advantages=tuple(row["advantage"] for row in rows),
            kl_weights=tuple(row["kl_weight"] for row in rows) if "kl_weight" in rows[0] else None,
        )
