"""The verb `watch`: what an online run has done so far, a row an iteration, and its curves as runs/<run>/watch.png."""

from __future__ import annotations

import math
import time
from pathlib import Path

import matplotlib
from rich import box
from rich.console import Console
from rich.table import Table

from gpo_data.recipe import Recipe
from gpo_train.evaluation.rollback import line
from gpo_train.online.iterations import Summary, history
from gpo_train.run import Run

EVERY = 10.0  # seconds between two looks


def watch(recipe: Recipe, run: Run, console: Console, follow: bool = False) -> None:
    """Print the table and write the curves; with `follow`, whenever there is news. Raises UsageError."""
    run.expect_online("its curves are in logs/")
    seen = -1.0
    while True:
        manifest = run.manifest()  # before the summaries: what has finished by now is in them
        news = max((p.stat().st_mtime for p in run.folder.glob("iterations/*/summary.json")), default=0.0)
        found = history(run.folder)
        if news > seen and found:
            console.print(table(found, run.name))
            console.print(f"curves: {curves(found, run.folder / 'watch.png')}", soft_wrap=True)
            seen = news
        if manifest.stopped_by:
            console.print(f"stopped: {manifest.stopped_by}", soft_wrap=True)
        if manifest.rollback:
            console.print(line(manifest.rollback), soft_wrap=True)
        if not follow or manifest.state in ("finished", "trial"):
            if not found:
                console.print(f"run {run.name}: the first iteration is being drawn")
            return
        time.sleep(EVERY)


def share(summary: Summary) -> dict[str, float]:
    """Seconds of an iteration: draw and train are wall time; the rest lies inside draw and overlaps."""
    seconds = summary.seconds
    keys = ("draw", "train", "denoise", "decode", "measure", "write", "catalog", "policy")
    return {key: seconds.get(key, 0.0) for key in keys}


def table(found: list[Summary], name: str) -> Table:
    made = Table(
        "it",
        "reward",
        "exact",
        "dead",
        "diversity",
        "distance",
        "draw",
        "measure",
        "write",
        "train",
        *found[-1].watched,
        title=f"{name} (draw, measure, write and train in seconds)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,  # so that 80 columns of a terminal hold it
    )
    for column in made.columns:
        column.justify, column.no_wrap = "right", True
    for one in found:
        seconds = share(one)
        made.add_row(
            str(one.iteration),
            f"{one.reward:.3f}",
            "" if one.exact is None else f"{100 * one.exact:.1f}%",
            f"{one.dead}/{one.groups}",
            f"{one.diversity:.3f}",
            "" if one.distance is None else f"{one.distance:.4f}",
            *(
                f"{spent:.{spent < 100:d}f}"  # tenths where they say something
                for spent in (
                    seconds["draw"],
                    seconds["measure"],
                    seconds["write"] + seconds["catalog"],
                    seconds["train"],
                )
            ),
            *(f"{one.watched.get(name, math.nan):.3f}" for name in found[-1].watched),
        )
    return made


def curves(found: list[Summary], path: Path) -> Path:
    """Reward and exact, dead groups, diversity and statistics over iterations."""
    from matplotlib.figure import Figure

    x = [one.iteration for one in found]
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    for name in ("reward", "exact"):
        if getattr(found[0], name) is not None:
            first.plot(x, [getattr(one, name) for one in found], marker="o", label=name)
    second.plot(x, [one.dead / one.groups for one in found], marker="o", label="dead groups, share")
    shown = [{n: getattr(one, n) for n in ("diversity", "entropy", "edge_density")} | one.watched for one in found]
    for name, before in shown[0].items():
        if before:
            third.plot(x, [(one.get(name) or math.nan) / before for one in shown], marker="o", label=f"{name} / first")
    for axes in (first, second, third):
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axes.legend(fontsize=8, frameon=False)
        axes.grid(alpha=0.3)
    low, high = first.get_ylim()
    first.set_ylim(min(low, 0), max(high, 1))  # rewards may lie anywhere
    second.set_ylim(0, 1)
    figure.savefig(path, dpi=110)
    return path
