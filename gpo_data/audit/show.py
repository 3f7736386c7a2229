"""The verb `show`: a picture grid of groups, each member with its reward and what was read or counted.

A green frame is around those that are exactly as asked.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Set
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gpo_data.errors import UsageError, few
from gpo_data.group import Group
from gpo_data.lake import catalog
from gpo_data.lake.manifest import read_manifest
from gpo_data.lake.record import PLACE, Record
from gpo_data.lake.remote import AnyPath
from gpo_data.lake.shard import sidecars
from gpo_data.lake.sidecar import read_rows
from gpo_data.tasks import TASKS

COLUMNS, LABEL, GAP = 8, 14, 4
FONT = ImageFont.load_default(11)
MOST = 256  # pixels of a cell's longer side
LOST = 64  # pixels of a cell where no group has a picture
Right = Set[tuple[str, int]]  # (group_key, member)


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


def judged(groups: list[Group], lake: str, name: str, reward: str | None = None) -> tuple[list[Group], Right]:
    """Groups of the dataset `name` with this reward in the place of the stored ones, and which members are exactly as
    asked. Raises UsageError."""
    con = catalog.scored(catalog.connect(lake, name), reward, name)
    query = "SELECT group_key, member, reward, exact FROM members WHERE dataset = ? AND list_contains(?, group_key)"
    rows = con.execute(query, [name, [one.key for one in groups]]).fetchall()
    paid = {(key, member): value for key, member, value, _ in rows}
    paid_for = [dataclasses.replace(one, rewards=[paid.get((one.key, i)) for i in range(one.size)]) for one in groups]
    return paid_for, {(key, member) for key, member, _, exact in rows if exact}


def cell_of(groups: Iterable[Group]) -> tuple[int, int]:
    """(width, height) in a grid of these groups' pictures: small ones at twice their size, large ones at 256 pixels."""
    shapes = [image.shape for group in groups for image in group.images if image is not None]
    height, width = (max((shape[axis] for shape in shapes), default=LOST) for axis in (0, 1))
    scale = 2 if max(height, width) <= MOST / 2 else MOST / max(height, width)
    return round(width * scale), round(height * scale)


def in_cell(image: np.ndarray, cell: tuple[int, int]) -> Image.Image:
    """uint8 [H, W, 3] as large as the cell holds it, in its own proportions."""
    picture = Image.fromarray(image)
    scale = min(cell[0] / picture.width, cell[1] / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)


def frame(draw: ImageDraw.ImageDraw, at: tuple[int, int], cell: tuple[int, int]) -> None:
    """Around a picture that is exactly as asked, whatever the reward pays for."""
    draw.rectangle((*at, at[0] + cell[0] - 1, at[1] + cell[1] - 1), outline=(0, 170, 60), width=2)


def grid(groups: list[Group], right: Right = frozenset()) -> Image.Image:
    """One picture: per group its prompt and its members, captioned `reward  what was seen`; `right` are framed."""
    wide, tall = cell = cell_of(groups)
    cell_w, cell_h = wide + GAP, tall + LABEL + GAP
    heights = [LABEL + GAP + -(-g.size // COLUMNS) * cell_h for g in groups]
    titles = [f"{group.key}  {group.prompt.text}" for group in groups]
    across = min(COLUMNS, max((group.size for group in groups), default=1)) * cell_w
    longest = max((round(FONT.getlength(title)) for title in titles), default=0) + GAP
    sheet = Image.new("RGB", (max(across, min(longest, COLUMNS * cell_w)) + GAP, sum(heights) + GAP), "white")
    draw, top = ImageDraw.Draw(sheet), GAP
    for group, title, height in zip(groups, titles, heights, strict=True):
        draw.text((GAP, top), title, fill="black", font=FONT)
        for member, image in enumerate(group.images):
            x, y = GAP + member % COLUMNS * cell_w, top + LABEL + GAP + member // COLUMNS * cell_h
            if image is not None:
                sheet.paste(in_cell(image, cell), (x, y))
            if (group.key, member) in right:
                frame(draw, (x, y), cell)
            draw.text((x, y + tall), caption(group, member), fill="black", font=FONT)
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
