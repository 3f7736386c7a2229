"""The verb `show`: a picture grid of groups, each member with its reward and what was read or counted."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

from PIL import Image, ImageDraw

from gpo_data.errors import UsageError, few
from gpo_data.group import Group
from gpo_data.lake import catalog
from gpo_data.lake.manifest import read_manifest
from gpo_data.lake.record import PLACE, Record
from gpo_data.lake.remote import AnyPath
from gpo_data.lake.shard import sidecars
from gpo_data.lake.sidecar import read_rows
from gpo_data.recipe import Recipe
from gpo_data.tasks import TASKS

COLUMNS, LABEL, GAP = 8, 14, 4
LOST = 64  # pixels of a cell where no group has a picture


def load_groups(folder: AnyPath, keys: list[str] | None = None, limit: int = 4) -> list[Group]:
    """Groups by key, or the first `limit`. UsageError names the keys that are not there."""
    read_manifest(folder)
    places: dict[str, dict[str, Any]] = {}
    for sidecar in sidecars(folder):
        for row in read_rows(sidecar, ["group_key", *PLACE]):
            places.setdefault(row["group_key"], row)
    if not places:
        raise UsageError(f"{folder}: no committed shard; `gpo-data shards RECIPE` draws some")
    if missing := [key for key in keys or [] if key not in places]:
        known = f"{next(iter(places))} to {next(reversed(places))}"
        raise UsageError(f"{folder}: no group {few(missing)}; groups here: {known}")
    chosen = [places[key] for key in keys] if keys else list(places.values())[:limit]
    return [Record.of(r, folder).group() for r in chosen]


def rescored(groups: list[Group], recipe: Recipe) -> list[Group]:
    """With the recipe's reward in the place of the stored ones. Raises UsageError."""
    name = str(recipe.name)
    con = catalog.scored(catalog.connect(recipe.lake, name), recipe.reward, name)
    rows = con.execute("SELECT group_key, member, reward FROM members WHERE dataset = ?", [name]).fetchall()
    found = {(key, member): reward for key, member, reward in rows}
    return [dataclasses.replace(one, rewards=[found.get((one.key, i)) for i in range(one.size)]) for one in groups]


def grid(groups: list[Group], scale: int = 2) -> Image.Image:
    """One picture: per group its prompt and its members, captioned `reward  what was seen`."""
    side = max((i.shape[0] for g in groups for i in g.images if i is not None), default=LOST) * scale
    cell_w, cell_h = side + GAP, side + LABEL + GAP
    heights = [LABEL + GAP + -(-g.size // COLUMNS) * cell_h for g in groups]
    sheet = Image.new("RGB", (COLUMNS * cell_w + GAP, sum(heights) + GAP), "white")
    draw, top = ImageDraw.Draw(sheet), GAP
    for group, height in zip(groups, heights, strict=True):
        draw.text((GAP, top), f"{group.key}  {group.prompt.text}", fill="black")
        for member, image in enumerate(group.images):
            x, y = GAP + member % COLUMNS * cell_w, top + LABEL + GAP + member // COLUMNS * cell_h
            if image is not None:
                picture = Image.fromarray(image)
                sheet.paste(
                    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST), (x, y)
                )
            draw.text((x, y + side), caption(group, member), fill="black")
        top += height
    return sheet


def png(picture: Image.Image) -> bytes:
    """As a file."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def caption(group: Group, member: int) -> str:
    reward, measured = group.rewards[member], group.measurements[member]
    kind = TASKS.get(group.key.rpartition("-")[0])  # a key begins with the task's name
    seen = kind.describe(group.prompt.target | measured) if kind else ""
    return "failed" if reward is None else f"{reward:.2f}  {seen}"[:20]
