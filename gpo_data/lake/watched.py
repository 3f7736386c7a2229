"""Watchers: evaluators that are measured and shown beside the reward, and never paid.

A policy that is paid for one judge learns what that judge likes. The panel of others that papers report against this
(`watchers:` of a recipe) says so only while no reward reads them. Which columns those are is known from

    dataset.json "watched"        {watcher: [column]}, of those that the dataset was drawn with
    measures/<watcher>@*/         the columns of its files, of those measured later

and of watchers of the package by their names alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from gpo_data.errors import UsageError
from gpo_data.lake import locked
from gpo_data.lake.manifest import Manifest
from gpo_data.lake.remote import AnyPath, files_in
from gpo_data.lake.sidecar import parquet_of
from gpo_data.recipe import EVALUATORS


def watched_columns(folder: AnyPath, manifest: Manifest | None, watchers: Sequence[str] = ()) -> list[str]:
    """Columns of a dataset that are only watched, of its own watchers and of these.

    Args:
        folder: the dataset's.
        watchers: names, as in a recipe.
    """
    stored = (manifest.watched if manifest else None) or {}
    found = [name for names in stored.values() for name in names]
    for watcher in watchers:
        found += declared(watcher)
        for path in files_in(folder, f"measures/{watcher.replace(':', '.')}@*/*.parquet"):
            try:
                names = pq.read_schema(parquet_of(path)).names
            except (OSError, pa.ArrowException):
                continue  # damaged: `gpo-data verify` says so
            found += [name for name in names if name not in ("group_key", "member")]
    return list(dict.fromkeys(found))


def refuse_watched(reward: str, columns: Iterable[str], key: str = "reward") -> None:
    """Raise UsageError where a reward, or what else of a recipe decides training, reads what is only watched."""
    used = locked.columns_in(reward)
    if paid := [name for name in columns if name.lower() in used]:
        raise UsageError(
            f"{key}: {locked.short(reward)}: reads {', '.join(paid)}, which is only watched; move its evaluator from "
            f"watchers: to evaluators: to pay for it"
        )


def declared(evaluator: str) -> dict[str, pa.DataType]:
    """The columns of an evaluator of the package, by its name; none of another."""
    if evaluator not in EVALUATORS:
        return {}
    module, kind = EVALUATORS[evaluator]
    columns = getattr(getattr(importlib.import_module(module), kind), "columns", None)
    return columns if isinstance(columns, dict) else {evaluator: pa.float64()}
