"""The verb `compare`: accuracy of online runs on prompts that none was trained on, iteration by iteration.

Every iteration's policy draws the same prompts of the part `eval.split` with the same seeds as the base (evaluate.py),
without those whose target any of the runs was trained on; point i is what the policy can do after i iterations of
drawing and training, point 0 is the base. Runs that differ in their seed alone are one line of the picture, their mean,
with a band from the lowest to the highest. `online.rollout_policy: base` makes the run that draws as many pictures and
takes as many steps without any feedback.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpo_data.errors import UsageError
from gpo_data.generation.remote import Begin, kept_workers
from gpo_data.lake.durable import write_atomic
from gpo_data.out_folder import make_folder
from gpo_data.recipe import Recipe
from gpo_train.evaluation import report
from gpo_train.evaluation.prompts import EvalPrompts, choose
from gpo_train.evaluation.result import Difference, Line, Point
from gpo_train.evaluation.several import against_base
from gpo_train.evaluation.trained import trained_keys
from gpo_train.online.iterations import Iteration, history
from gpo_train.run import Run, flat, settle


def compare(recipe: Recipe, runs: list[Run], out: Path, every: int, console: Console) -> dict[str, Line]:
    """Draw what is missing, print the table, write compare.json and compare.png into `out`. Raises UsageError.

    `every`: iterations between two points, besides the base and the end.
    """
    for run in runs:
        run.expect_online("`eval` compares others")
        run.expect_base(recipe)
    make_folder(out)  # before minutes of drawing
    chosen = choose(recipe, {key for run in runs for key in trained_keys(recipe, run)}, out)
    with kept_workers(recipe, console) as workers:
        found = {
            run.name: Line(
                line=line_of(run, runs),
                points=points(recipe, run, chosen, every, console, workers, run.manifest().state != "training"),
                **vars(chosen.described()),
            )
            for run in runs
        }
    if none := [name for name, one in found.items() if not one.points]:
        raise UsageError(f"compare: {', '.join(none)}: no iteration's policy is there yet; train on, or leave it out")
    write_atomic(
        out / "compare.json",
        json.dumps({name: dataclasses.asdict(one) for name, one in found.items()}, indent=2).encode(),
    )
    for table in tables(found):
        console.print(table)
    console.print(f"curves: {curves(found, out / 'compare.png')}", soft_wrap=True)
    return found


def tables(found: dict[str, Line]) -> list[Table]:
    """Every point of every run; and, where a line has several runs, their mean and how far they are apart."""
    runs = Table(
        "run",
        "after iteration",
        "exact",
        "difference to the base",
        "diversity",
        "colour as asked",
        "failed",
        "images",
        title=report.prompts_of(next(iter(found.values()))),
        title_justify="left",
    )
    for name, one in found.items():
        for point in one.points:
            colour = point.color_exact
            runs.add_row(
                Text(name),
                str(point.iteration),
                f"{100 * point.exact:.1f}%",
                report.points_text(point.difference, point.ci95),
                f"x {point.diversity_ratio:.2f}",
                "" if colour is None else f"{100 * colour:.1f}%",
                str(point.failed),
                str(point.images),
            )
    lines = Table(
        "line",
        "runs",
        "after iteration",
        "difference, mean",
        "lowest",
        "highest",
        title="seeds together",
        title_justify="left",
    )
    for line, same in by_line(found).items():
        for iteration, at in same:
            values = [100 * point.difference for point in at]
            if len(at) > 1:
                lines.add_row(
                    Text(line),
                    str(len(at)),
                    str(iteration),
                    f"{np.mean(values):+.1f}",
                    f"{min(values):+.1f}",
                    f"{max(values):+.1f}",
                )
    return [runs, lines] if lines.row_count else [runs]


def by_line(found: dict[str, Line]) -> dict[str, list[tuple[int, list[Point]]]]:
    """{line: [(iteration, the points of its runs there)]}, where all of them have one."""
    lines: dict[str, list[dict[int, Point]]] = {}
    for one in found.values():
        lines.setdefault(one.line, []).append({point.iteration: point for point in one.points})
    return {
        line: [(at, [one[at] for one in same]) for at in same[0] if all(at in one for one in same)]
        for line, same in lines.items()
    }


def points(
    recipe: Recipe, run: Run, chosen: EvalPrompts, every: int, console: Console, workers: Begin, ended: bool = True
) -> list[Point]:
    """From the base on.

    `ended`: its last weights are of all its iterations; those of a run that goes on are of an earlier end.
    """
    recipe, summaries = settle(recipe, run.folder, []), history(run.folder)
    trained = iterations_trained(run)
    iterations = [Iteration(run.folder, i) for i in range(every, trained, every)]
    weights = {one.number: one.policy for one in iterations if one.has_weights}  # else pruned by online.keep_last
    end = run.last if run.last.is_dir() else run.policy
    if ended and end.is_dir():
        weights[trained] = end
    made: list[Point] = []
    for number, found in against_base(recipe, run.name, weights, chosen, console, workers):
        images = sum(one.images for one in summaries[:number])
        sides = [(found.policy, number, images, found.difference, found.diversity_ratio)]
        if not made:
            sides.insert(0, (found.base, 0, 0, Difference(exact=0.0, ci95=(0.0, 0.0), lenient=0.0), 1.0))
        for side, at, drawn, difference, ratio in sides:
            made.append(
                Point(
                    iteration=at,
                    images=drawn,
                    exact=side.exact,
                    failed=side.failed,
                    color_exact=side.statistics.get("color_exact"),
                    difference=difference.exact,
                    ci95=difference.ci95,
                    diversity_ratio=ratio,
                )
            )
    return made


def iterations_trained(run: Run) -> int:
    """A rule that stops a run has it draw a last iteration, and not train on it."""
    return len(history(run.folder)) - (run.manifest().stopped_by is not None)


def line_of(run: Run, runs: list[Run]) -> str:
    """What the run is on the picture: the settings in which the runs differ, without seeds."""
    flats = {one.name: flat(one.manifest().recipe) for one in runs}
    keys = sorted({key for one in flats.values() for key in one} - {"name", "seed", "train.seed"})
    differing = [key for key in keys if len({json.dumps(one.get(key)) for one in flats.values()}) > 1]
    return (
        ", ".join(f"{key} {flats[run.name].get(key, 'default')}" for key in differing) or run.manifest().recipe["name"]
    )


def curves(found: dict[str, Line], path: Path) -> Path:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for line, same in by_line(found).items():
        values = np.array([[100 * point.exact for point in at] for _, at in same])
        x = [iteration for iteration, _ in same]
        axes.plot(x, values.mean(1), marker="o", label=f"{line} ({values.shape[1]} runs)")
        axes.fill_between(x, values.min(1), values.max(1), alpha=0.2)
    axes.set_xlabel("iterations of drawing and training")
    part = report.part_of(next(iter(found.values())))
    axes.set_ylabel(f"exact on {part} prompts, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    return path
