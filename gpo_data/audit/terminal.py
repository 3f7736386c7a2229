"""The audit as a table in the terminal: what the page says, without the pictures."""

from __future__ import annotations

from rich import box
from rich.table import Table

from gpo_data.audit import page, wording
from gpo_data.audit.members import Members
from gpo_data.audit.statistics import Figures
from gpo_data.progress import plain_console


def show(data: Members, figures: Figures) -> None:
    console = plain_console()
    head = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    head.add_column(style="dim")
    head.add_column(overflow="fold")
    for name, value in [("dataset", data.name), *page.facts(data, figures), *page.tiles(data, figures)]:
        # Not as markup: a reward such as x[1] would be eaten.
        head.add_row(name, _plain(value))
    console.print(head)
    console.print(levels(data, figures))
    if figures.drifts:
        console.print(drifts(figures))
    console.print(wording.opening(data, figures), markup=False, highlight=False)


def levels(data: Members, figures: Figures) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="by difficulty", title_justify="left")
    table.add_column(data.level_name)
    last = figures.last_k
    for column in ("groups", "reward", "right", f"right in {last}", "dead low", "dead high"):
        table.add_column(column, justify="right")
    for v in figures.levels:
        table.add_row(
            v.label,
            str(v.groups),
            wording.number(v.mean_reward),
            wording.percent(v.accuracy),
            wording.percent(v.pass_at_group),
            str(v.dead_low),
            str(v.dead_high),
        )
    return table


def drifts(figures: Figures) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="picture statistics against reward", title_justify="left")
    table.add_column("statistic")
    table.add_column("mean", justify="right")
    table.add_column("inside groups", justify="right")
    table.add_column("over all", justify="right")
    for d in figures.drifts:
        name, mean = d.name.replace("_", " "), wording.number(d.mean)
        table.add_row(name, mean, wording.signed(d.within), wording.signed(d.pooled))
    return table


def _plain(value: str) -> str:
    return value.replace("[", r"\[")
