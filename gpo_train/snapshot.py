"""Offline: what a run trains on, chosen and scored once by SQL and frozen in runs/<run>/snapshot.parquet.

    the recipe's dataset, or every dataset that `train.datasets` matches
    together   an epoch reads them all
    in turn    epoch e reads dataset e modulo their number, in the order of their names

The iterations of an online run are datasets like any other: read in turn, they are its history once more, in its order,
without drawing.
"""

from __future__ import annotations

import fnmatch
import io

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from gpo_data.errors import UsageError
from gpo_data.lake import catalog
from gpo_data.lake.manifest import read_manifest
from gpo_data.lake.reader import Reader, merge
from gpo_data.lake.shard import dataset_folder, write_atomic
from gpo_data.recipe import Recipe, Train
from gpo_train.data import GroupsOf, snapshot_of
from gpo_train.run import Run


def frozen_groups(recipe: Recipe, settings: Train, run: Run, console: Console) -> GroupsOf:
    """The reader of an epoch. Raises UsageError."""
    frozen = run.folder / "snapshot.parquet"
    if frozen.is_file():
        table = pq.read_table(frozen)
    else:
        here = run.card()["model_digest"]
        table = merge([_frozen(recipe, settings, name, here, console) for name in dataset_names(recipe, settings)])
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        write_atomic(frozen, buffer.getvalue())
        run.note(snapshot={k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()})
    readers = [Reader(recipe.lake, part) for part in (_turns(table) if settings.sequential else [table])]
    return lambda epoch: readers[epoch % len(readers)]


def dataset_names(recipe: Recipe, settings: Train) -> list[str]:
    """What a run trains on offline. Raises UsageError."""
    if settings.datasets is None:
        return [str(recipe.name)]
    present = [row[0] for row in catalog.connect(recipe.lake).sql("SELECT dataset FROM datasets ORDER BY 1").fetchall()]
    found = fnmatch.filter(present, settings.datasets)
    if not found:
        raise UsageError(
            f"train.datasets: no dataset of {recipe.lake} matches {settings.datasets!r}; there are: "
            f"{', '.join(present) or 'none'}"
        )
    return found


def _frozen(recipe: Recipe, settings: Train, name: str, here: str, console: Console) -> pa.Table:
    """One dataset's snapshot; `here`: digest of the model that trains."""
    if "://" not in recipe.lake:
        _same_model(recipe, name, here)
    where = recipe.where
    if settings.objective == "sft":
        where = f"({where or 'true'}) AND reward >= {settings.sft_reward}"
    table = snapshot_of(recipe, name, where, keep_dead=settings.objective == "sft")
    facts = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    console.print(
        f"dataset {name}: {facts['groups']} groups to learn from, {facts['dead_groups']} dead "
        f"(every reward the same; skipped), {facts['failed_members']} failed members",
        soft_wrap=True,
    )
    if not table.num_rows:
        raise UsageError(
            f"dataset {name}: all {facts['dead_groups']} groups are dead: no member is better than another "
            f"under the reward {recipe.reward!r}; try another reward: or where:, or draw more or other prompts"
        )
    return table


def _turns(table: pa.Table) -> list[pa.Table]:
    """A merged snapshot's datasets, by name."""
    parts = [table.filter(pc.field("dataset") == name) for name in sorted(set(table["dataset"].to_pylist()))]
    return [part.replace_schema_metadata({"digest": catalog.digest(part)}) for part in parts]


def _same_model(recipe: Recipe, name: str, here: str) -> None:
    """The dataset's latents must be this model's."""
    card = read_manifest(dataset_folder(recipe.lake, name))
    drawn = card["fields"].get("model_digest")
    if drawn != here:
        raise UsageError(
            f"dataset {name} was drawn by another model ({card['fields'].get('model')}, digest {drawn}) than "
            f"model: {recipe.model} (digest {here}); draw with `gpo-data shards`, or set model: to that one"
        )
