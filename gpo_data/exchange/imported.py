"""The verb `import`: pictures of anybody become groups of the lake, through the model's own autoencoder.

    pictures of one caption   a group; it is measured and scored as if the model had drawn it
    a pair of Pick-a-Pic      a group of two, whose labels are the column `label`: with `reward: label`, DPO's data

As a viewer shows it, scaled and cut to the sampler's size, a picture p is stored, and its latent is
x_0 = VAE.encode(p).mode(), in the units in which the sampler leaves its latents.

A dataset of them says so: `imported` among the fields of dataset.json, and the column `imported_from` of every member.
What always holds: everything that reads a lake reads them (verify, audit, show, fit), and what needs the noise that a
member was drawn from (train.noise: own, verify --redraw) refuses: there is none, and `seed` is a name. The same command
goes on where it was stopped. Shards hold groups of one size; a caption's group is never split.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageOps
from rich.console import Console

from gpo_data import evaluators, hardware, models
from gpo_data.errors import RunError, UsageError, words
from gpo_data.evaluators.protocol import Malformed
from gpo_data.exchange.captions import prompts_of
from gpo_data.exchange.rows import Picture
from gpo_data.exchange.sources import pictures
from gpo_data.generation.plan import PlannedGroup, PlannedShard
from gpo_data.generation.reward import expect_reward
from gpo_data.generation.worker import judged
from gpo_data.group import Group, group_key, member_seed
from gpo_data.lake.locks import claim
from gpo_data.lake.manifest import identity, open_dataset, read_manifest, refuse_other_versions, settle
from gpo_data.lake.remote import AnyPath
from gpo_data.lake.shard import commit, sidecar_path, sidecars
from gpo_data.lake.sidecar import read_rows
from gpo_data.lake.stage import stage, staged
from gpo_data.pictures import KINDS, TooLarge, kind_of, shown
from gpo_data.progress import Bar
from gpo_data.prompt import Prompt
from gpo_data.recipe import Recipe
from gpo_data.recipe.checks import MOST_MEMBERS
from gpo_data.status import OK
from gpo_data.tasks import TASKS, extras

LABEL, FROM = "label", "imported_from"
COLUMNS: dict[str, pa.DataType] = {FROM: pa.string(), LABEL: pa.float64()}


def bring_in(recipe: Recipe, source: str, console: Console) -> AnyPath:
    """Import `source` as the recipe's dataset; its folder. Raises UsageError, RunError."""
    recipe = settle(recipe)
    found = pictures(source, dataclasses.replace(recipe.task, prompts=source), console)
    groups = _groups(found)
    prompts = {
        caption: dataclasses.replace(prompt, target=_beside_members(prompt.target, source))
        for caption, prompt in prompts_of(recipe, source, found).items()
    }
    shards, members = _plan(recipe, groups, prompts)
    measuring = evaluators.build(recipe)
    columns = evaluators.columns_of(measuring)
    evaluators.refuse_same_columns(f"import: {source}", shards[0].columns, measuring)
    watching = expect_reward(recipe, shards[0].columns, measuring)
    model_folder = models.resolve(recipe.model, recipe.revision)
    models.expect_size(model_folder, recipe.sampler)
    models.expect_unconditional(model_folder, recipe.sampler.unconditional)
    evaluators.try_out(measuring, shards[0].groups[0].prompt, recipe.sampler)
    fields = identity(recipe, model_folder, shards) | {"imported": _digest(members)}
    watched, versions = {one.name: list(one.columns) for one in watching}, evaluators.versions_of(measuring)
    folder = open_dataset(recipe, fields, watched, versions=versions)
    manifest = read_manifest(folder)
    fingerprint = manifest.fingerprint
    todo = [shard for shard in shards if not sidecar_path(folder, shard.shard_id).is_file()]
    if not todo:
        console.print(f"nothing to import: all {len(shards)} shards of {folder} are committed", soft_wrap=True)
        _expect_few_failed(recipe, folder)
        return folder
    refuse_other_versions(folder, manifest, versions)
    hardware.take_threads()
    model = models.load(model_folder, recipe.sampler)
    with Bar("importing", sum(len(shard.groups) for shard in todo), "groups", console) as bar:
        for shard in todo:
            with claim(folder, shard.shard_id) as mine:
                if not mine or sidecar_path(folder, shard.shard_id).is_file():
                    bar.step(len(shard.groups), line="another process's")
                    continue
                left = [one for one in shard.groups if staged(folder, one.key, fingerprint, one.seeds) is None]
                texts = model.encode([one.prompt.text for one in left]) if left else {}
                for planned in shard.groups:
                    if planned in left:
                        text = {name: value[left.index(planned)].clone() for name, value in texts.items()}
                        group = _encoded(recipe, model, measuring, planned, members[planned.key], text)
                        if recipe.sampler.store_unconditional and planned is shard.groups[0]:
                            group.unconditional = model.unconditional()
                        stage(folder, group, fingerprint)
                    bar.step(line=planned.key)
                commit(folder, shard.shard_id, [one.key for one in shard.groups], shard.columns | columns, fingerprint)
    evaluators.close(measuring)
    there = [shard for shard in shards if sidecar_path(folder, shard.shard_id).is_file()]
    imported = [planned for shard in there for planned in shard.groups]
    failed = _expect_few_failed(recipe, folder)
    pictured = sum(len(planned.seeds) for planned in imported)
    console.print(f"imported {pictured} pictures in {len(imported)} groups; {failed} failed: {folder}", soft_wrap=True)
    if elsewhere := len(shards) - len(there):
        console.print(f"{elsewhere} shards are imported by another process; run again to see whether it finished")
    return folder


def _expect_few_failed(recipe: Recipe, folder: AnyPath) -> int:
    """How many members of the committed shards failed. Raises RunError where they are too many."""
    failed, total, why = 0, 0, ""
    for sidecar in sidecars(folder):
        for row in read_rows(sidecar, ["status", "status_reason"]):
            total += 1
            if row["status"] != OK:
                failed, why = failed + 1, row["status_reason"] or row["status"]
    if failed > recipe.max_failed * total:
        raise RunError(
            f"dataset {folder}: {failed} of {total} pictures failed, more than max_failed ({recipe.max_failed:g}), the "
            f"last because: {why}; repair them, remove the folder and import again"
        )
    return failed


def _groups(found: list[Picture]) -> list[list[Picture]]:
    """By pair, else by caption, in the order of their first pictures."""
    by_name: dict[tuple[str, str], list[Picture]] = {}
    for one in found:
        by_name.setdefault(("pair", one.pair) if one.pair is not None else ("caption", one.caption), []).append(one)
    for group in by_name.values():
        if len(group) > MOST_MEMBERS:
            raise UsageError(
                f"import: {len(group)} pictures have one caption, expected at most {MOST_MEMBERS}: {group[0].caption}"
            )
    return list(by_name.values())


def _beside_members(target: dict[str, Any], source: str) -> dict[str, Any]:
    """The prompt's columns, none of them named as one of imported members. Raises UsageError."""
    if taken := [name for name in COLUMNS if name in target and f"row_{name}" in target]:
        raise UsageError(f"import {source}: columns {taken[0]} and row_{taken[0]} would be one; rename one")
    return {f"row_{name}" if name in COLUMNS else name: value for name, value in target.items()}


def _plan(
    recipe: Recipe, groups: list[list[Picture]], prompts: dict[str, Prompt]
) -> tuple[list[PlannedShard], dict[str, list[Picture]]]:
    """Shards of groups of one size, and the pictures of each group."""
    task, size = recipe.task.kind, recipe.groups_per_shard
    columns = extras.types_of(list(prompts.values()), TASKS[task].columns) | COLUMNS
    ordered = sorted(groups, key=len)  # keeps the order of equals
    planned: list[PlannedGroup] = []
    members: dict[str, list[Picture]] = {}
    shards: list[PlannedShard] = []
    for index, group in enumerate(ordered):
        prompt, key = prompts[group[0].caption], group_key(task, index)
        names = [f"{prompt.prompt_id}/{group[0].pair or ''}" for _ in group]
        seeds = [member_seed(recipe.seed, task, name, i) for i, name in enumerate(names)]
        if planned and (len(planned) == size or len(planned[0].seeds) != len(group)):
            shards.append(PlannedShard(len(shards), planned))
            planned = []
        planned.append(PlannedGroup(key, prompt, seeds, columns))
        members[key] = group
    return [*shards, PlannedShard(len(shards), planned)], members


def _digest(members: dict[str, list[Picture]]) -> str:
    """Of what was imported: captions, names and labels, in order."""
    state = hashlib.blake2b(digest_size=8)
    for key, group in members.items():
        for one in group:
            state.update(f"{key}\t{one.caption}\t{one.where}\t{one.label}\n".encode())
    return state.hexdigest()


def _encoded(
    recipe: Recipe,
    model: Any,
    measuring: list[Any],
    planned: PlannedGroup,
    group: list[Picture],
    text: dict[str, torch.Tensor],
) -> Group:
    """The group as the lake has it; a picture that does not open is a member that failed, with the reason."""
    images: list[np.ndarray | None] = []
    reasons: list[str | None] = []
    for one in group:
        try:
            images.append(fitted(_opened(one.read(), one.where), recipe.sampler.width, recipe.sampler.height))
            reasons.append(None)
        except (Malformed, OSError) as error:
            images.append(None)
            reasons.append(f"import: {error}"[:300])
    good = [i for i, image in enumerate(images) if image is not None]
    size = recipe.sampler.batch_size
    blank = np.zeros((recipe.sampler.height, recipe.sampler.width, 3), np.uint8)
    wanted = [one for one in images if one is not None] or [blank]  # one, to know the shape
    encoded = torch.cat([model.encode_images(wanted[i : i + size]) for i in range(0, len(wanted), size)])
    latents = torch.full((len(group), *encoded.shape[1:]), float("nan"), dtype=encoded.dtype)
    latents[good] = encoded[: len(good)]
    known: list[dict[str, Any]] = [{FROM: one.where, LABEL: one.label} for one in group]
    made = judged(recipe, measuring, planned, latents, text, images, known)
    made.reasons = [why or own for why, own in zip(reasons, made.reasons, strict=True)]
    return made


def _opened(data: bytes, where: str) -> np.ndarray:
    """As a viewer shows it: uint8 [height, width, 3]. Raises Malformed."""
    kind = kind_of(data)
    if kind is None:
        raise Malformed(f"{where}: expected a picture, {', '.join(KINDS)}, found {data[:8]!r}")
    try:
        return np.asarray(shown(data, kind))
    except TooLarge as error:
        raise Malformed(f"{where}: {error}") from None
    except Exception as error:  # Pillow raises many kinds on damaged bytes
        raise Malformed(f"{where}: a damaged {kind}: {words(error, 200)}") from None


def fitted(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scaled until it covers the size, and cut about its middle: uint8 [height, width, 3]."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(ImageOps.fit(Image.fromarray(image), (width, height), Image.Resampling.LANCZOS))
