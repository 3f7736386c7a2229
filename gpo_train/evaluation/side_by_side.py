"""The verb `report`: what `eval` found of several runs and models, by benchmark, on one page. It draws nothing.

    runs/<run>/eval*.json  ->  report.html, report.md, a table in the terminal

A benchmark is a file of prompts, or a part of the split: its evaluations have one name in every run (result.py). A row
is a run, or a model alone; where a file has tags, a second table has a column for each of these. Intervals are those
that `eval` wrote, over targets; runs are not compared with each other here, but each with its base.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from gpo_data.errors import UsageError
from gpo_data.lake.document import read_document
from gpo_data.lake.durable import write_atomic
from gpo_data.out_folder import make_folder
from gpo_train.evaluation.interval import Interval
from gpo_train.evaluation.report import markdown_row, part_of, points_text
from gpo_train.evaluation.result import Alone, Evaluation, Figures, Level, Prompts
from gpo_train.run import Run, all_runs

Found = Evaluation | Alone
HEAD = ("", "prompts", "targets", "pictures", "base, exact", "exact", "difference", "base, reward", "reward", "change")


@dataclass(frozen=True, kw_only=True)
class Whose(Prompts):
    """What every evaluation has; `run` is None of a model alone."""

    run: str | None = None


@dataclass(frozen=True)
class Section:
    """A table for people; notes stand under it."""

    title: str
    head: Sequence[str]
    rows: list[list[str]]
    notes: list[str]


def side_by_side(names: list[str], runs: Path, out: Path, console: Console) -> list[Section]:
    """Print the tables, write report.html and report.md into `out`. Raises UsageError."""
    made = sections(evaluations(names, runs))
    for one in made:
        table = Table(
            *(Column(Text(name), overflow="fold") for name in one.head), title=Text(one.title), title_justify="left"
        )
        for row in one.rows:
            table.add_row(*map(Text, row))
        console.print(table)
        for note in one.notes:
            console.print(note, soft_wrap=True, markup=False)
    make_folder(out)
    write_atomic(out / "report.md", markdown(made).encode())
    write_atomic(out / "report.html", PAGE.render(sections=made).encode())
    console.print(f"page: {out / 'report.html'}; Markdown: {out / 'report.md'}", soft_wrap=True)
    return made


def evaluations(names: list[str], runs: Path) -> dict[str, dict[str, Found]]:
    """{benchmark: {run: what was found}}, all in the order of `names`. Raises UsageError.

    Args:
        names: of folders in `runs`, or paths.
    """
    folders = list(dict.fromkeys(_folder(name, runs) for name in names))
    labels = {one: one.name if [f.name for f in folders].count(one.name) == 1 else str(one) for one in folders}
    found: dict[str, dict[str, Found]] = {}
    without = []
    for folder in folders:
        paths = sorted(path for path in folder.glob("eval*.json") if re.match(r"eval[-.]", path.name))
        for path in paths:
            one = _read(path)
            found.setdefault(f"{path.stem} {one.split} {one.task}", {})[labels[folder]] = one
            if isinstance(one, Evaluation) and Run(folder).evaluated_before(one.train_seconds):
                without.append(
                    f"{path}: the run has been trained further since; {_command(folder)} evaluates it as it is now, or "
                    f"remove the file"
                )
        if not paths:
            without.append(
                f"run {folder}: expected an evaluation (eval*.json), found none; {_command(folder)} makes one"
            )
    if without:
        raise UsageError("\n".join(without))
    return found


def _folder(name: str, runs: Path) -> Path:
    for path in (runs / name, Path(name)):
        if path.is_dir():
            return path
    known = ", ".join(run.name for run in all_runs(runs)) or "none"
    raise UsageError(f"run {name!s:.200}: no such folder in {runs}, and no such path; runs: {known}")


def _command(folder: Path) -> str:
    if not (folder / "run.json").is_file():
        return f"`gpo-train eval {folder.name.removesuffix('-base')} --base-only --eval.prompts FILE`"
    recipe = Run(folder).manifest().recipe["name"]
    where = "" if folder.parent == Path("runs") else f" --runs {folder.parent}"
    return f"`gpo-train eval {recipe} --run {folder.name}{where}`, or with `--eval.prompts FILE` for a benchmark,"


def _read(path: Path) -> Found:
    again = "remove it, and `gpo-train eval` makes it again"
    whose = read_document(Whose, path, again)
    return read_document(Alone, path, again) if whose.run is None else read_document(Evaluation, path, again)


def sections(found: dict[str, dict[str, Found]]) -> list[Section]:
    made = []
    titles = _titles([next(iter(entries.values())) for entries in found.values()])
    for title, entries in zip(titles, found.values(), strict=True):
        made.append(Section(title, HEAD, [_row(name, one) for name, one in entries.items()], _notes(entries)))
        columns = dict.fromkeys(column for one in entries.values() for column in one.by_tag)
        made += [_tags(f"{title}, exact by {column}", column, entries) for column in columns]
    return made


def _titles(benchmarks: list[Found]) -> list[str]:
    """Of two files of one name the folders are told too, and of one file with two tasks the tasks."""
    ways = [[way(one) for one in benchmarks] for way in (_title, _in_folder, _of_task)]
    return [
        next((title for title, way in zip(titles, ways, strict=True) if way.count(title) == 1), titles[-1])
        for titles in zip(*ways, strict=True)
    ]


def _title(one: Found) -> str:
    if one.file is not None:
        return part_of(one)
    return f"{part_of(one)} prompts" + (f" of task {one.task}" if one.task else "")


def _in_folder(one: Found) -> str:
    return _title(one) if one.file is None else "/".join(Path(one.file).parts[-2:])


def _of_task(one: Found) -> str:
    return f"{_in_folder(one)} of task {one.task}"


def _row(name: str, found: Found) -> list[str]:
    counts = [name, str(found.prompts), str(found.targets)]
    if isinstance(found, Alone):
        one = found.all
        shown = ["", _share(one.exact, one.exact95), "", "", _value(one.reward, one.reward95), ""]
        return [*counts, str(one.n), *shown]
    base, policy, change = found.base, found.policy, found.difference
    return [
        *counts,
        str(found.n),
        _share(base.exact, base.exact95),
        _share(policy.exact, policy.exact95),
        points_text(change.exact, change.ci95),
        _value(base.reward, base.reward95),
        _value(policy.reward, policy.reward95),
        _value(policy.reward - base.reward if change.reward is None else change.reward, change.reward95, "+"),
    ]


def _notes(entries: dict[str, Found]) -> list[str]:
    """What sets the rows apart: rewards, failures, targets that were trained on."""
    notes = []
    rewards: dict[str, list[str]] = {}
    for name, one in entries.items():
        if one.reward is not None:
            rewards.setdefault(one.reward, []).append(name)
    for reward, names in rewards.items():
        of = "" if len(rewards) == 1 else f" of {', '.join(names)}"
        notes.append(f"reward{of}: {reward}")
    for name, one in entries.items():
        failed = one.all.failed if isinstance(one, Alone) else one.base.failed + one.policy.failed
        if failed:
            notes.append(f"{name}: {failed} pictures failed, and are wrong")
        if one.trained_on:
            notes.append(f"{name}: {one.trained_on} prompts have targets that were trained on")
        if one.left_out:
            notes.append(f"{name}: {one.left_out} prompts left out that were trained on")
    return notes


def _tags(title: str, column: str, entries: dict[str, Found]) -> Section:
    of = {name: one.by_tag.get(column, {}) for name, one in entries.items()}
    values = dict.fromkeys(value for tags in of.values() for value in tags)
    rows = [[value, *(_tag(tags.get(value)) for tags in of.values())] for value in values]
    return Section(title, [column, *of], rows, [])


def _tag(found: Figures | Level | None) -> str:
    if found is None:
        return ""
    if isinstance(found, Figures):
        return f"{_share(found.exact, found.exact95)} of {found.n}"
    before, after = (f"{100 * value:.1f}%" for value in (found.base, found.policy))
    return f"{before} to {after} of {found.n}: {points_text(found.policy - found.base, found.ci95)}"


def _share(value: float, bounds: Interval | None) -> str:
    return f"{100 * value:.1f}%" + ("" if bounds is None else f" [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]")


def _value(value: float, bounds: Interval | None, sign: str = "") -> str:
    shown = f"{value:{sign}.3f}"
    return shown if bounds is None else f"{shown} [{bounds[0]:{sign}.3f}, {bounds[1]:{sign}.3f}]"


def markdown(made: list[Section]) -> str:
    text = f"# Benchmarks\n\n{LEGEND}\n"
    for one in made:
        rows = "".join(map(markdown_row, [one.head, ["---"] * len(one.head), *one.rows]))
        text += f"\n## {one.title}\n\n{rows}" + "".join(f"\n- {note}" for note in one.notes) + "\n"
    return text


LEGEND = (
    "exact: share of the pictures that are exactly as asked. difference: policy less base, the same prompts and seeds, "
    "in points; change: of the reward. In brackets 95% intervals over targets."
)
PAGE = jinja2.Environment(autoescape=True).from_string(
    """<!doctype html><meta charset="utf-8"><title>Benchmarks</title>
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:1350px;margin:2rem auto;padding:0 1rem;color:#1a1a1a}
table{border-collapse:collapse}td,th{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}</style>
<h1>Benchmarks</h1><p>"""
    + LEGEND
    + """</p>
{% for one in sections %}<h2>{{ one.title }}</h2>
<table><tr>{% for cell in one.head %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in one.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% for note in one.notes %}<p>{{ note }}</p>{% endfor %}
{% endfor %}"""
)
