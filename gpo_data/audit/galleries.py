"""Which groups to look at, and their pictures.

Four kinds of group: the largest spread (what training learns most from), dead low (mostly wrong: too hard, or the
evaluator cannot read it), dead high (mostly right: nothing left to learn) and random ones (so that the eye is not
led). Of each, the best and the worst members.

Pictures come out of the tar by `pread` and are checked against the sidecar's crc32 (`Record.read`); those
larger than SHOWN pixels are made smaller, so that a page stays a few megabytes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpo_data.audit.members import Members
from gpo_data.audit.statistics import Figures
from gpo_data.lake.record import Record
from gpo_data.parts import Damage, open_picture
from gpo_data.tasks import TASKS

SHOWN = 256  # pixels
SIDE = 4  # members shown at either end of a group
RANDOM_SEED = 0


@dataclass(frozen=True)
class Picture:
    member: int
    uri: str | None  # None: the sample holds no picture of this member
    read: str  # what the evaluator saw
    reward: float
    exact: bool
    pixels: int  # width, to enlarge small pictures without blur


@dataclass(frozen=True)
class Shown:
    key: str
    prompt: str
    right: int
    measured: int
    std: float
    best: list[Picture]
    worst: list[Picture]


@dataclass(frozen=True)
class Gallery:
    title: str
    note: str
    groups: list[Shown]


def choose(data: Members, figures: Figures) -> list[Gallery]:
    """The galleries that have any group, each group in one gallery only."""
    rng = np.random.default_rng(RANDOM_SEED)
    alive = np.flatnonzero(~figures.dead)
    taken: list[int] = list(alive[np.argsort(-figures.std[alive], kind="stable")][:3])
    spread = list(taken)
    low, high = (rng.permutation(np.flatnonzero(mask))[:2] for mask in (figures.dead_low, figures.dead_high))
    rest = np.setdiff1d(np.arange(len(figures.std)), [*taken, *low, *high])
    wanted: list[tuple[str, str, Sequence[int] | np.ndarray]] = [
        ("Largest spread", "Best and worst differ most here: training learns most from these.", spread),
        ("Dead, low", "Every member got the same reward, most are wrong: too hard, or unreadable.", low),
        ("Dead, high", "Every member got the same reward, most are right: nothing left to learn.", high),
        ("Random", "Drawn without looking at the reward.", rng.permutation(rest)[:3]),
    ]
    return [
        Gallery(title, note, [_shown(data, figures, int(g)) for g in groups])
        for title, note, groups in wanted
        if len(groups)
    ]


def _shown(data: Members, figures: Figures, group: int) -> Shown:
    rewards = data.rewards[group]
    members = np.flatnonzero(np.isfinite(rewards))
    ranked = members[np.argsort(-rewards[members], kind="stable")]
    side = min(SIDE, -(-len(ranked) // 2))
    best, worst = ranked[:side], ranked[side:][-side:]
    rows = data.rows(group)
    row = rows[int(members[0])]
    record = Record.of(row, data.folder)
    sample = record.read()

    def pictures(members: np.ndarray) -> list[Picture]:
        try:
            return [_picture(data, group, rows[int(m)], sample) for m in members]
        except Damage as damage:
            raise record.damaged(str(damage)) from None

    return Shown(
        key=row["group_key"],
        prompt=row["prompt"],
        right=int(np.nansum(data.exact[group])),
        measured=len(members),
        std=float(figures.std[group]),
        best=pictures(best),
        worst=pictures(worst),
    )


def _picture(data: Members, group: int, row: Mapping[str, Any], sample: Mapping[str, bytes]) -> Picture:
    member, uri, pixels = row["member"], None, 0
    for extension in ("png", "webp"):
        if coded := sample.get(name := f"{member:02d}.{extension}"):
            uri, pixels = data_uri(coded, name)
    reward, exact = float(data.rewards[group, member]), bool(data.exact[group, member])
    return Picture(member, uri, TASKS[data.task].describe(row), reward, exact, pixels)


def data_uri(coded: bytes, name: str) -> tuple[str, int]:
    """(data URI, width in pixels) of the part `name`, made smaller where it is larger than SHOWN. Raises Damage."""
    image, kind = open_picture(coded, name), name.rpartition(".")[2]
    if max(image.size) > SHOWN:
        image.thumbnail((SHOWN, SHOWN))
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=85)
        coded, kind = buffer.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(coded).decode()}", image.width
