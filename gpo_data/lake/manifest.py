"""A dataset's manifest, `dataset.json`: what drew it, so that another recipe cannot mix into it.

Opening a dataset with a recipe that differs is an error that lists what differs.

A dataset grows: a recipe whose prompts begin with those it was drawn for goes on in it. Fields and fingerprint stay
those of its beginning, and `grown` says how far it has come.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpo_data
from gpo_data import hardware, models
from gpo_data.errors import FAILING, RunError, UsageError
from gpo_data.evaluators import function
from gpo_data.generation.plan import PlannedShard, prompts_digest, prompts_digests
from gpo_data.lake.document import read_document, write_document
from gpo_data.lake.durable import clear_stale, expect_new
from gpo_data.lake.locks import held
from gpo_data.lake.remote import AnyPath, stage_folder
from gpo_data.lake.shard import dataset_folder
from gpo_data.recipe import SECTIONS, Recipe, fingerprint_of, section_of

RESTORE = "restore it, or draw under another --name"
# Settings that change where and how fast an evaluator runs, never what it sees.
NOT_MEASURED = ("device", "batch_size", "workers", "actors", "num_gpus", "url", "timeout", "retries", "token_variable")


@dataclass(frozen=True, kw_only=True)
class Grown:
    """How many prompts a dataset has that began with fewer, and the digest of them all."""

    prompts: int
    prompts_digest: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of dataset.json.

    Args:
        fields: all that changes pixels.
        fingerprint: their hash.
        measured: the evaluators, their settings and the reward as drawn.
        recipe: as it was written, of any version.
        watched: the columns of each watcher, if there is one; see watched.py.
        grown: if it has more prompts than it began with.
        evaluators: {name: version} as drawn; older datasets have none.
    """

    name: str | None = None
    fingerprint: str
    fields: dict[str, Any]
    measured: dict[str, Any]
    recipe: dict[str, Any]
    versions: dict[str, Any] = field(default_factory=dict)
    created: str | None = None
    watched: dict[str, list[str]] | None = None
    grown: Grown | None = None
    evaluators: dict[str, str] | None = None

    def seen_otherwise(self, versions: dict[str, str]) -> str:
        """Which evaluators are of other versions than these now, for people; '' where none is, or that is not known."""
        before = self.evaluators or {}
        return ", ".join(
            f"{name}: {before[name]} there, {now} now" for name, now in versions.items() if before.get(name, now) != now
        )


def settle(recipe: Recipe, device: str | None = None) -> Recipe:
    """The recipe with the precision that `sampler.dtype: auto` is: its dataset's, if there is one, else the hardware's.

    `device`: that draws; None: this machine's.

    Raises UsageError where the device is not there or does not have the precision.
    """
    device = device or hardware.device_of(recipe.sampler.device)
    dtype = drawn_in(recipe.lake, str(recipe.name)) if recipe.sampler.dtype == "auto" else recipe.sampler.dtype
    return with_dtype(recipe, hardware.dtype_for(dtype or "auto", device))


def drawing_device(recipe: Recipe) -> str:
    """This machine's; where a cluster draws, which says by itself what it cannot, `cpu`, which has every precision."""
    return "cpu" if recipe.ray.elsewhere else hardware.device_of(recipe.sampler.device)


def with_dtype(recipe: Recipe, dtype: hardware.Dtype) -> Recipe:
    return dataclasses.replace(recipe, sampler=dataclasses.replace(recipe.sampler, dtype=dtype))


def drawn_in(lake: str, name: str) -> str | None:
    """The precision that a dataset was drawn in; None where there is no such dataset."""
    folder = dataset_folder(lake, name)
    if not (folder / "dataset.json").is_file():
        return None
    dtype = read_manifest(folder).fields.get("sampler.dtype")
    return None if dtype is None else str(dtype)


def imported(folder: AnyPath) -> bool:
    """Whether a dataset of this machine holds pictures that no model drew; their seeds are names."""
    return (folder / "dataset.json").is_file() and "imported" in read_manifest(folder).fields


def keeps_unconditional(manifest: Manifest) -> bool:
    """Whether the first group of each shard holds the unconditional embedding."""
    return manifest.fields.get("sampler.store_unconditional") is True


def identity(recipe: Recipe, model_folder: Path, shards: list[PlannedShard]) -> dict[str, Any]:
    """`fields` of dataset.json."""
    folder = dataset_folder(recipe.lake, str(recipe.name))
    there = read_manifest(folder).fields if (folder / "dataset.json").is_file() else None
    fields = (
        recipe.fingerprint_fields()
        | models.digests_of(model_folder, there)
        | {
            "prompts_digest": prompts_digest(shards, recipe.task.kind),
            "arithmetic": models.ARITHMETIC,
        }
    )
    if recipe.policy is not None:
        policy = Path(recipe.policy).expanduser()
        fields["policy_digest"] = (models.weights_digest if policy.is_dir() else models.files_digest)(policy)
        if recipe.sampler.dtype != "float32" and models.lora_of(policy) is None:
            fields["policy_rounding"] = "random"  # models/rounding.py; before it, to the nearest
    return fields


def of_older(recipe: Recipe, fields: dict[str, Any]) -> dict[str, Any]:
    """What a dataset has that says nothing of it because it is older; `fields` are the recipe's.

    What has changed in the arithmetic since has changed on the CPU alone; its weights are not known better.
    """
    device = recipe.sampler.device
    arithmetic = 1 if (hardware.device_of(device) if device == "auto" else device) == "cpu" else models.ARITHMETIC
    return {"arithmetic": arithmetic} | {k: v for k, v in fields.items() if k == "weights_digest"}


def measured(recipe: Recipe) -> dict[str, Any]:
    fields: dict[str, Any] = {"evaluators": list(recipe.evaluators), "reward": recipe.reward}
    if recipe.watchers:
        fields["watchers"] = list(recipe.watchers)
    for name in (*recipe.evaluators, *recipe.watchers):
        section = section_of(name)
        if section in SECTIONS:  # `color` has no settings
            settings = dataclasses.asdict(getattr(recipe, section))
            fields |= {f"{name}.{k}": v for k, v in settings.items() if k not in NOT_MEASURED}
        elif ":" in name:
            fields[f"{function.name_of(name)}.version"] = function.version_of(name)
    return fields


def open_dataset(
    recipe: Recipe,
    fields: dict[str, Any],
    watched: dict[str, list[str]] | None = None,
    shards: Sequence[PlannedShard] = (),
    versions: dict[str, str] | None = None,
) -> AnyPath:
    """The dataset's folder, made with its `dataset.json` if new; UsageError if another recipe drew it.

    Args:
        watched: the columns of each of the recipe's watchers.
        shards: what is planned; a dataset that has the first of these prompts grows.
        versions: of the evaluators, by name.
    """
    assert recipe.name
    folder = dataset_folder(recipe.lake, recipe.name)
    manifest = folder / "dataset.json"
    stage = stage_folder(folder)
    try:
        stage.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        kind = RunError if error.errno in FAILING else UsageError
        raise kind(f"lake: cannot make the folder {stage.parent}: {error.strerror}") from None
    clear_stale(manifest)
    if not manifest.exists():
        with held(stage / "dataset.lock", wait=True):
            if not manifest.exists():
                expect_new(folder)
                _write(manifest, recipe, fields, watched, versions)
    # Read again also where it was written here: two recipes of one name may have begun together.
    found = read_manifest(folder)
    before = of_older(recipe, fields) | found.fields
    first, now = found.fields.get("prompts_digest"), fields.get("prompts_digest")
    last = found.grown.prompts_digest if found.grown else first
    longer = now not in (first, last) and last in prompts_digests(shards, recipe.task.kind)
    if longer or now in (first, last):
        before |= {name: fields[name] for name in EXTENT if name in fields}
    _refuse_difference(recipe, folder, before, fields, "drew other pictures; draw")
    _refuse_difference(
        recipe,
        folder,
        found.measured,
        measured(recipe),
        "measured them differently; `gpo-data measure` adds a measurement to what is drawn, "
        "`--reward` of audit and training tries another reward; or draw",
    )
    if longer:
        _grow(folder, recipe, shards)
    return folder


# Fields that say which prompts: what differs in them may be the same prompts and more.
EXTENT = ("prompts_digest", "task.num_prompts", "task.prompts")


def _grow(folder: AnyPath, recipe: Recipe, shards: Sequence[PlannedShard]) -> None:
    """Note that the dataset is to have these prompts, which begin with those that it has."""
    digests = prompts_digests(shards, recipe.task.kind)
    with held(stage_folder(folder) / "dataset.lock", wait=True):
        found = read_manifest(folder)
        last = found.grown.prompts_digest if found.grown else found.fields.get("prompts_digest")
        if last in digests[:-1]:
            task = found.recipe | {"task": dataclasses.asdict(recipe.task)}
            made = dataclasses.replace(
                found, grown=Grown(prompts=len(digests), prompts_digest=digests[-1]), recipe=task
            )
            write_document(made, folder / "dataset.json")


def _write(
    path: AnyPath,
    recipe: Recipe,
    fields: dict[str, Any],
    watched: dict[str, list[str]] | None,
    versions: dict[str, str] | None,
) -> None:
    made = Manifest(
        name=recipe.name,
        fingerprint=fingerprint_of(fields),
        fields=fields,
        measured=measured(recipe),
        recipe=dataclasses.asdict(recipe),
        versions=models.versions() | {"gpo": gpo_data.__version__},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        watched=watched or None,
        evaluators=versions,
    )
    write_document(made, path, once=True)


def read_manifest(folder: AnyPath) -> Manifest:
    """The content of dataset.json. Raises UsageError where there is none or it is not one."""
    try:
        return read_document(Manifest, folder / "dataset.json", RESTORE)
    except FileNotFoundError:
        raise UsageError(f"{folder}: no dataset here (no dataset.json); `gpo-data shards RECIPE` draws one") from None


def refuse_other_versions(folder: AnyPath, manifest: Manifest, versions: dict[str, str]) -> None:
    """Raise UsageError where what is drawn now would be measured otherwise than what the dataset has."""
    if changed := manifest.seen_otherwise(versions):
        raise UsageError(
            f"{folder}: its pictures were measured by other versions of the evaluators, and nothing is drawn beside "
            f"them: {changed}; bring those back, draw under another --name, or remove the folder"
        )


def _refuse_difference(recipe: Recipe, folder: AnyPath, old: dict[str, Any], new: dict[str, Any], what: str) -> None:
    differing = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    if differing:
        listed = "; ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} in the recipe" for k in differing)
        raise UsageError(
            f"{folder} belongs to a recipe that {what} under another name (--name {recipe.name}-2), "
            f"or remove the folder. It differs in {listed}"
        )
