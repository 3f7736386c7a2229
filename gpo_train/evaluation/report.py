"""What `eval` found, for people: a table in the terminal, one static page, a grid of matched seeds before and after."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import jinja2
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpo_data.audit.show import FONT, Right, cell_of, frame, in_cell, load_groups
from gpo_data.lake.durable import write_atomic
from gpo_data.lake.shard import dataset_folder
from gpo_data.recipe import Recipe
from gpo_train.evaluation.interval import Interval
from gpo_train.evaluation.result import Evaluation, Prompts

LABELS = {"ocr_accuracy": "OCR accuracy"}
NAMES = {"heldout": "held-out", "validation": "validation"}  # parts of the split, for people
PROMPTS, MEMBERS, GAP, LABEL = 8, 4, 4, 14


def rows_of(found: Evaluation) -> list[tuple[str, str, str, str]]:
    """(what, base, policy, difference) as text."""
    base, policy, difference = found.base, found.policy, found.difference
    rows = [
        _share("exact", base.exact, policy.exact, _interval(difference.ci95)),
        ("lenient", _percent(base.lenient), _percent(policy.lenient), f"{100 * difference.lenient:+.1f} points"),
    ]
    for level, one in found.by_level.items():
        rows.append(_share(f"  exact at {level} (n={one.n})", one.base, one.policy, _interval(one.ci95)))
    for column, tags in found.by_tag.items():
        for tag, one in tags.items():
            rows.append(_share(f"  exact of {column} {tag} (n={one.n})", one.base, one.policy, _interval(one.ci95)))
    for name, score in base.scores.items():
        rows.append(_share(LABELS.get(name, name), score, policy.scores[name]))
    failed = policy.failed - base.failed
    rows.append(("failed pictures, wrong", str(base.failed), str(policy.failed), f"{failed:+d}"))
    change = difference.reward if difference.reward is not None else policy.reward - base.reward
    paid = f"{change:+.3f}{_interval(difference.reward95, 1, 3)}"
    rows.append(("reward", f"{base.reward:.3f}", f"{policy.reward:.3f}", paid))
    before, after = ({"diversity": side.diversity} | side.statistics for side in (base, policy))
    if "color_exact" in before:
        rows.append(_share("colour as asked", before.pop("color_exact"), after["color_exact"]))
    for name, value in before.items():
        change = after[name] / value if value else float("nan")
        what = name.replace("_", " ").replace("watched/", "only watched: ")
        rows.append((what, f"{value:.3f}", f"{after[name]:.3f}", f"x {change:.2f}"))
    return rows


def _interval(bounds: Interval | None, scale: float = 100, digits: int = 1) -> str:
    if bounds is None:
        return ""
    low, high = (f"{scale * one:+.{digits}f}" for one in bounds)
    return f", 95% [{low}, {high}]"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _share(what: str, base: float, policy: float, more: str = "") -> tuple[str, str, str, str]:
    return what, _percent(base), _percent(policy), f"{100 * (policy - base):+.1f} points{more}"


def points_text(value: float, bounds: Sequence[float] | None = None) -> str:
    """A difference of shares in points: `+1.2 [+0.3, +2.1]`."""
    return f"{100 * value:+.1f}" + ("" if bounds is None else f" [{100 * bounds[0]:+.1f}, {100 * bounds[1]:+.1f}]")


def markdown_row(cells: Sequence[str]) -> str:
    """A row of a table, whatever stands in the cells."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"


def headline(found: Evaluation) -> str:
    return f"{found.run}: {found.n} images each side, {prompts_of(found)}"


def part_of(found: Prompts) -> str:
    return Path(found.file).name if found.file is not None else NAMES[found.split]


def prompts_of(found: Prompts) -> str:
    """Which prompts the figures are of, and how many."""
    if found.file is not None:
        known = f"; {found.trained_on} prompts have targets that were trained on" if found.trained_on else ""
        return f"all {found.prompts} prompts of {part_of(found)}, {found.targets} targets, same seeds{known}"
    return (
        f"{found.prompts} {NAMES[found.split]} prompts of {found.targets} targets, same seeds; "
        f"{found.left_out} left out that were trained on"
    )


def terminal(found: Evaluation, console: Console) -> None:
    table = Table("", "base", "policy", "difference", title=headline(found), title_justify="left")
    for row in rows_of(found):
        table.add_row(*map(Text, row))  # a file's tags may have brackets
    console.print(table)


def grid(recipe: Recipe, base: str, policy: str, right: Sequence[Right], path: Path) -> Path:
    """Prompts down; across, the same seeds drawn by the base (left) and by the policy (right).

    `right`: of each side, what to frame.
    """
    sides = [load_groups(dataset_folder(recipe.lake, name), limit=PROMPTS) for name in (base, policy)]
    wide, tall = cell = cell_of(group for side in sides for group in side)
    members = min(MEMBERS, sides[0][0].size)
    width, height = 2 * members * (wide + GAP) + 3 * GAP, len(sides[0]) * (tall + LABEL + GAP) + LABEL + GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for side, title in enumerate(("base", "policy, the same seeds")):
        draw.text((GAP + side * (members * (wide + GAP) + GAP), 1), title, fill="black", font=FONT)
    for row, pair in enumerate(zip(*sides, strict=True)):
        top = LABEL + row * (tall + LABEL + GAP)
        draw.text((GAP, top), pair[0].prompt.text[: width // 7], fill="black", font=FONT)
        for side, group in enumerate(pair):
            for member in range(members):
                image = group.images[member]
                x = GAP + side * (members * (wide + GAP) + GAP) + member * (wide + GAP)
                if image is not None:
                    sheet.paste(in_cell(image, cell), (x, top + LABEL))
                if (group.key, member) in right[side]:
                    frame(draw, (x, top + LABEL), cell)
    sheet.save(path)
    return path


PAGE = """<!doctype html><meta charset="utf-8"><title>{{ title }}</title>
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:1150px;margin:2rem auto;padding:0 1rem;color:#1a1a1a}
table{border-collapse:collapse}td,th{padding:.25rem .8rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left;white-space:pre}img{max-width:100%;image-rendering:pixelated}</style>
<h1>{{ title }}</h1><p>The interval is over targets, since pictures of one
target are right or wrong together. A picture that failed is wrong. A green frame: exactly as asked.</p>
<table><tr><th></th><th>base</th><th>policy</th><th>difference</th></tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table><h2>Before and after</h2><img alt="the same seeds, base and policy" src="{{ picture }}">
"""


def page(found: Evaluation, picture: Path, path: Path) -> Path:
    """One static file, the picture inside."""
    uri = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    html = jinja2.Environment(autoescape=True).from_string(PAGE)
    write_atomic(path, html.render(title=headline(found), rows=rows_of(found), picture=uri).encode())
    return path
