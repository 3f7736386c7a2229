"""Offline: what a run trains on, chosen and scored once by SQL and frozen in runs/<run>/snapshot.parquet.

A snapshot that is gone, cut or changed is made again from the lake, and has to be the same.

    the recipe's dataset, or every dataset that `train.datasets` matches
    together   an epoch reads them all
    in turn    epoch e reads dataset e modulo their number, in the order of their names

The iterations of an online run are datasets like any other: read in turn, they are its history once more, in its order,
without drawing.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from gpo_data import models
from gpo_data.errors import RunError, UsageError, few
from gpo_data.generation.plan import plan, prompts_digest
from gpo_data.lake.columns import pieces_of_bytes
from gpo_data.lake.durable import write_stream
from gpo_data.lake.files import matching
from gpo_data.lake.latents import LARGE
from gpo_data.lake.manifest import EXTENT, Manifest, imported, read_manifest
from gpo_data.lake.reader import Reader, expect_unconditional, merge
from gpo_data.lake.shard import dataset_folder
from gpo_data.lake.snapshot import digest
from gpo_data.recipe import Recipe, Train
from gpo_train.data import Prepare, cache_of, snapshot_of
from gpo_train.run import Run


def frozen_groups(recipe: Recipe, settings: Train, run: Run, console: Console) -> Prepare:
    """What gives an epoch's reader. Raises UsageError, RunError."""
    frozen = run.folder / "snapshot.parquet"
    noted = run.manifest().snapshot
    table = _whole(frozen, noted)
    if table is None:
        if frozen.exists() or noted:
            console.print(f"snapshot {frozen} is gone or damaged: made again from the lake", soft_wrap=True)
        begun = run.manifest()
        here = {"model_digest": begun.model_digest}
        if begun.weights_digest is not None:  # not in older runs
            here["weights_digest"] = begun.weights_digest
        found = {name: _frozen(recipe, settings, name, here, console) for name in dataset_names(recipe, settings)}
        if settings.datasets is None and (said := drawn_otherwise(recipe)):
            console.print(said, soft_wrap=True)
        table = _sealed(merge(_learnable(recipe, settings, found)))
        if noted and facts_of(table)["digest"] != noted["digest"]:
            raise RunError(
                f"{frozen}: damaged, and the lake does not give the same again: expected the digest {noted['digest']}, "
                f"found {facts_of(table)['digest']}; restore one of them, or start another run with --run NAME"
            )
        write_stream(frozen, lambda stream: pq.write_table(table, stream, compression="zstd", write_page_checksum=True))
    if noted is None:
        run.note(snapshot=facts_of(table))
    readers = [
        Reader(recipe.lake, part, cache_of(settings), settings.unconditional, LARGE)
        for part in (_turns(table, settings.groups_per_step, console) if settings.sequential else [table])
    ]
    return lambda epoch: readers[epoch % len(readers)]


def facts_of(table: pa.Table) -> dict[str, str]:
    return {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}


def _whole(path: Path, noted: dict[str, str] | None) -> pa.Table | None:
    """The snapshot in a file, if it is what was written there."""
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        return None
    facts = facts_of(table)
    good = facts.get("checksum") == _checksum(table) and (noted is None or facts == noted)
    return table if good else None


def _sealed(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata(facts_of(table) | {"checksum": _checksum(table)})


def _checksum(table: pa.Table) -> str:
    """Of all that the table holds; the digest says what was chosen, and does not cover advantages."""
    state = hashlib.blake2b(digest_size=16)
    for name in table.column_names:
        state.update(name.encode())
        for piece in pieces_of_bytes(table[name]):
            state.update(piece)
    return state.hexdigest()


def dataset_names(recipe: Recipe, settings: Train) -> list[str]:
    """What a run trains on offline. Raises UsageError."""
    if settings.datasets is None:
        return [str(recipe.name)]
    return matching(recipe.lake, settings.datasets, "train.datasets")


def _frozen(recipe: Recipe, settings: Train, name: str, here: dict[str, str], console: Console) -> pa.Table:
    """One dataset's snapshot; `here`: digests of the model that trains."""
    _same_model(recipe, name, here)
    _has_noise(recipe, settings, name)
    expect_unconditional(recipe.lake, name, settings.unconditional)
    table = snapshot_of(recipe, name)
    facts, sft = facts_of(table), settings.objective == "sft"
    dead = "" if sft else f", {facts['dead_groups']} dead (every reward the same; skipped)"
    lent = ""
    if "lender" in table.column_names:
        borrowed = pc.sum(pc.not_equal(table["lender"].cast("string"), table["group_key"].cast("string"))).as_py() or 0
        lent = f", {borrowed} of {table.num_rows} members borrowed"
    failed = f"{facts['failed_members']} failed members"
    console.print(
        f"dataset {name}: {facts['groups']} groups to learn from{dead}, {failed}{lent}",
        soft_wrap=True,
    )
    return table


def _learnable(recipe: Recipe, settings: Train, tables: dict[str, pa.Table]) -> list[pa.Table]:
    """The snapshots with a group to learn from, of all by dataset. Raises UsageError where there is none."""
    if found := [table for table in tables.values() if table.num_rows]:
        return found
    named = f"dataset{'s' * (len(tables) > 1)} {few(list(tables))}"
    if settings.objective == "sft":
        raise UsageError(
            f"train.sft_reward: {settings.sft_reward}: no member of {named} has as much under the reward "
            f"{recipe.reward!r}; lower it, or try another reward: or where:"
        )
    dead = sum(int(facts_of(table)["dead_groups"]) for table in tables.values())
    if not dead:
        failed = sum(int(facts_of(table)["failed_members"]) for table in tables.values())
        raise UsageError(f"{named}: no group has two members to compare: {failed} failed, where: {recipe.where}")
    raise UsageError(
        f"{named}: all {dead} groups are dead: no member is better than another under the reward "
        f"{recipe.reward!r}; try another reward: or where:, or draw more or other prompts"
    )


def _turns(table: pa.Table, least: int, console: Console) -> list[pa.Table]:
    """A merged snapshot's datasets, by name, but for those with fewer than `least` groups: too few for a step."""
    parts = {name: table.filter(pc.field("dataset") == name) for name in sorted(table["dataset"].unique().to_pylist())}
    groups = {name: len(part["group_key"].unique()) for name, part in parts.items()}
    if all(number < least for number in groups.values()):
        raise UsageError(
            f"train.groups_per_step: {least} groups a step, and no dataset has more than {max(groups.values())} with a "
            f"reward that varies; lower it, or leave train.sequential out"
        )
    for name, number in groups.items():
        if number < least:
            console.print(f"dataset {name}: left out, {number} groups are fewer than a step's {least}", soft_wrap=True)
    chosen = [part for name, part in parts.items() if groups[name] >= least]
    return [part.replace_schema_metadata({"digest": digest(part)}) for part in chosen]


def _has_noise(recipe: Recipe, settings: Train, name: str) -> None:
    """Imported pictures have no starting noise."""
    if settings.noise == "own" and imported(dataset_folder(recipe.lake, name)):
        raise UsageError(
            f"train.noise: own: the pictures of dataset {name} were imported, not drawn from noise of their own"
        )


# What training reads too, whoever drew; which weights they are is in their digest.
TRAINED_WITH = ("model", "revision", "seed")


def drawn_otherwise(recipe: Recipe) -> str | None:
    """A warning where the recipe's dataset was drawn in another way than the recipe says."""
    manifest, asked = read_manifest(dataset_folder(recipe.lake, str(recipe.name))), recipe.fingerprint_fields()
    if "imported" in manifest.fields:
        return None
    task = manifest.recipe["task"] if manifest.grown else {}  # `fields` stay those of its beginning
    there = manifest.fields | {f"task.{key}": value for key, value in task.items()}
    differing = [k for k in asked if k in there and k not in TRAINED_WITH and asked[k] != there[k]]
    if {*EXTENT} & {*differing} and _same_prompts(recipe, manifest):
        differing = [k for k in differing if k not in EXTENT]
    if not differing:
        return None
    listed = "; ".join(f"{k}: {there[k]!r} there, {asked[k]!r} in the recipe" for k in differing)
    return (
        f"warning: dataset {recipe.name} was drawn otherwise than the recipe says, and is trained on as it is: "
        f"{listed}; `gpo-data shards` with another --name draws as the recipe says"
    )


def _same_prompts(recipe: Recipe, manifest: Manifest) -> bool:
    """Also where another file, or another number, gives them."""
    last = manifest.grown.prompts_digest if manifest.grown else manifest.fields.get("prompts_digest")
    try:
        return prompts_digest(plan(recipe), recipe.task.kind) == last
    except UsageError:  # training reads no prompts: their file may be gone
        return False


def _same_model(recipe: Recipe, name: str, here: dict[str, str]) -> None:
    """The dataset's latents must be this model's."""
    manifest = read_manifest(dataset_folder(recipe.lake, name))
    folder = models.resolve(recipe.model, recipe.revision)
    drawn = {k: manifest.fields[k] for k in here if k in manifest.fields}  # an older one has the first alone
    if any(here[k] != v for k, v in drawn.items()):
        here = models.digests_of(folder, manifest.fields)  # one of the two may be older
    if "model_digest" not in drawn or any(here[k] != v for k, v in drawn.items()):
        raise UsageError(
            f"dataset {name} was drawn by another model ({manifest.fields.get('model')}, digest {drawn}) than "
            f"model: {recipe.model} (digest {here}); draw with `gpo-data shards`, or set model: to that one"
        )
    for key in models.told(folder):
        as_drawn, now = manifest.fields.get(f"sampler.{key}"), getattr(recipe.sampler, key)
        if as_drawn not in (None, now):
            raise UsageError(
                f"dataset {name} was drawn with sampler.{key}: {as_drawn}, which this model is told in training too: "
                f"expected the same, found {now}"
            )
