"""A dataset's identity card, `dataset.json`: what drew it, so that another recipe cannot mix into it.

    {"name", "fingerprint", "fields", "measured", "recipe", "versions", "created"}

`fields` is all that changes pixels and `fingerprint` its hash; `measured` is the evaluators, their settings and the
reward as drawn. Opening a dataset with a recipe that differs is an error that lists what differs.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import gpo_data
from gpo_data import hardware, models
from gpo_data.errors import UsageError
from gpo_data.evaluators import function
from gpo_data.generation.plan import PlannedShard, prompts_digest
from gpo_data.lake.durable import clear_stale, expect_new, write_once
from gpo_data.lake.locks import held
from gpo_data.lake.remote import AnyPath, stage_folder
from gpo_data.lake.shard import dataset_folder
from gpo_data.recipe import SECTIONS, Recipe, fingerprint_of

RESTORE = "restore it, or draw under another --name"
# Settings that change where and how fast an evaluator runs, never what it sees.
NOT_MEASURED = ("device", "batch_size", "workers")


def settle(recipe: Recipe) -> Recipe:
    """The recipe with the precision that `sampler.dtype: auto` is: its dataset's, if there is one, else the hardware's.

    Raises UsageError where the device is not there or does not have the precision.
    """
    device = hardware.device_of(recipe.sampler.device)
    dtype = drawn_in(recipe.lake, str(recipe.name)) if recipe.sampler.dtype == "auto" else recipe.sampler.dtype
    return with_dtype(recipe, hardware.dtype_for(dtype or "auto", device))


def with_dtype(recipe: Recipe, dtype: hardware.Dtype) -> Recipe:
    return dataclasses.replace(recipe, sampler=dataclasses.replace(recipe.sampler, dtype=dtype))


def drawn_in(lake: str, name: str) -> str | None:
    """The precision that a dataset was drawn in; None where there is no such dataset."""
    folder = dataset_folder(lake, name)
    if not (folder / "dataset.json").is_file():
        return None
    dtype = read_manifest(folder)["fields"].get("sampler.dtype")
    return None if dtype is None else str(dtype)


def identity(recipe: Recipe, model_folder: Path, shards: list[PlannedShard]) -> dict[str, Any]:
    """`fields` of dataset.json."""
    fields = recipe.fingerprint_fields() | {
        "model_digest": models.digest(model_folder),
        "weights_digest": models.weights_digest(model_folder),
        "prompts_digest": prompts_digest(shards),
        "arithmetic": models.ARITHMETIC,
    }
    if recipe.policy is not None:
        fields["policy_digest"] = models.weights_digest(Path(recipe.policy))
        if recipe.sampler.dtype != "float32" and not (Path(recipe.policy) / models.LORA_FILE).is_file():
            fields["policy_rounding"] = "random"  # models/rounding.py; before it, to the nearest
    return fields


def of_older(recipe: Recipe, fields: dict[str, Any]) -> dict[str, Any]:
    """What a dataset has that says nothing of it because it is older; `fields` are the recipe's.

    What has changed in the arithmetic since has changed on the CPU alone; its weights are not known better.
    """
    arithmetic = 1 if hardware.device_of(recipe.sampler.device) == "cpu" else models.ARITHMETIC
    return {"arithmetic": arithmetic} | {k: v for k, v in fields.items() if k == "weights_digest"}


def measured(recipe: Recipe) -> dict[str, Any]:
    fields: dict[str, Any] = {"evaluators": list(recipe.evaluators), "reward": recipe.reward}
    for name in recipe.evaluators:
        section = "yolo" if name == "boxes" else name
        if section in SECTIONS:  # `color` has no settings
            settings = dataclasses.asdict(getattr(recipe, section))
            fields |= {f"{name}.{k}": v for k, v in settings.items() if k not in NOT_MEASURED}
        elif ":" in name:
            fields[f"{function.name_of(name)}.version"] = function.version_of(name)
    return fields


def open_dataset(recipe: Recipe, fields: dict[str, Any]) -> AnyPath:
    """The dataset's folder, made with its `dataset.json` if new; UsageError if another recipe drew it."""
    assert recipe.name
    folder = dataset_folder(recipe.lake, recipe.name)
    manifest = folder / "dataset.json"
    stage = stage_folder(folder)
    try:
        stage.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"lake: cannot make the folder {stage.parent}: {error.strerror}") from None
    clear_stale(manifest)
    if not manifest.exists():
        with held(stage / "dataset.lock", wait=True):
            if not manifest.exists():
                expect_new(folder)
                _write(manifest, recipe, fields)
    # Read again also where it was written here: two recipes of one name may have begun together.
    found = read_manifest(folder)
    before = of_older(recipe, fields) | found["fields"]
    _refuse_difference(recipe, folder, before, fields, "drew other pictures; draw")
    _refuse_difference(
        recipe,
        folder,
        found["measured"],
        measured(recipe),
        "measured them differently; `gpo-data measure` adds a measurement to what is drawn, "
        "`--reward` of audit and training tries another reward; or draw",
    )
    return folder


def _write(manifest: AnyPath, recipe: Recipe, fields: dict[str, Any]) -> None:
    content = {
        "name": recipe.name,
        "fingerprint": fingerprint_of(fields),
        "fields": fields,
        "measured": measured(recipe),
        "recipe": dataclasses.asdict(recipe),
        "versions": models.versions() | {"gpo": gpo_data.__version__},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    write_once(manifest, json.dumps(content, indent=2, ensure_ascii=False).encode())


# What is read of a dataset.json, by type.
PARTS: dict[str, type] = {"fingerprint": str, "fields": dict, "measured": dict, "recipe": dict}


def read_manifest(folder: AnyPath) -> dict[str, Any]:
    """The content of dataset.json. Raises UsageError where there is none or it is not one."""
    path = folder / "dataset.json"
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{folder}: no dataset here (no dataset.json); `gpo-data shards RECIPE` draws one") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot read: {error.strerror}; {RESTORE}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON ({error}); {RESTORE}") from None
    if not isinstance(manifest, dict):
        raise UsageError(f"{path}: expected an object, found {type(manifest).__name__}; {RESTORE}")
    for name, kind in PARTS.items():
        if not isinstance(manifest.get(name), kind):
            found = type(manifest[name]).__name__ if name in manifest else "nothing"
            raise UsageError(f"{path}: {name}: expected {kind.__name__}, found {found}; {RESTORE}")
    return manifest


def _refuse_difference(recipe: Recipe, folder: AnyPath, old: dict[str, Any], new: dict[str, Any], what: str) -> None:
    differing = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    if differing:
        listed = "; ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} in the recipe" for k in differing)
        raise UsageError(
            f"{folder} belongs to a recipe that {what} under another name (--name {recipe.name}-2), "
            f"or remove the folder. It differs in {listed}"
        )
