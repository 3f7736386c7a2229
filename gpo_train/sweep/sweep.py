"""The verb `sweep`: run the rows of a sweep file that have not been run, and show what came of all.

    <folder>/index.html      the table, sorted; curves; accuracy against diversity and colour
    <folder>/table.md        the table, for a page of documentation
    <folder>/rows/*.json     see row.py

What always holds: a sweep that was killed goes on where it stopped; what is missing is said on the page.
"""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from gpo_data import hardware
from gpo_data.errors import UsageError
from gpo_data.generation.remote import expect_ray
from gpo_data.lake.durable import write_atomic
from gpo_data.out_folder import make_folder
from gpo_train.evaluation.report import points_text
from gpo_train.sweep import page
from gpo_train.sweep.line import lines_of
from gpo_train.sweep.plan import Plan, Row
from gpo_train.sweep.processes import STOPPED, Job, Runner, run_all
from gpo_train.sweep.row import Result, draw_dataset, result_of, run_row


def sweep(plan: Plan, folder: Path, console: Console, jobs: int | None = None) -> int:
    """The number of rows that failed. Raises KeyboardInterrupt, and UsageError where its Ray is not there.

    Args:
        jobs: rows at once in processes of this machine; None takes the file's.
    """
    if plan.ray.wanted and jobs:
        raise UsageError("--jobs: rows at once in processes of this machine; on a Ray --workers says how many")
    if not plan.ray.wanted or all(result_of(folder, row) for row in plan.asked):
        return run_rows(plan, folder, console, at_once=jobs)
    expect_ray(plan.ray)
    from gpo_train.sweep.ray import on_ray

    with on_ray(plan) as runner:
        return run_rows(plan, folder, console, runner, plan.ray.workers or len(plan.asked))


def run_rows(plan: Plan, folder: Path, console: Console, runner: Runner = run_all, at_once: int | None = None) -> int:
    """As `sweep`, by `runner`, so many rows at once in the place of the sweep's `jobs`."""
    at_once = at_once or plan.sweep.jobs
    make_folder(folder)
    found = {row.name: result for row in plan.rows if (result := result_of(folder, row)) is not None}
    todo = [row for row in plan.asked if row.name not in found]
    left_out = len(plan.left_out - found.keys())
    console.print(
        f"sweep {plan.sweep.name}: {len(plan.rows)} rows, {len(found)} of them done, "
        f"{f'{left_out} left out, ' if left_out else ''}at most {at_once} at once; {folder}",
        soft_wrap=True,
    )
    devices = {row.recipe.sampler.device for row in todo}
    if runner is run_all and (warning := crowded(min(at_once, len(todo)), devices)):
        console.print(warning, soft_wrap=True)
    failed: list[str] = []
    started, done = time.monotonic(), 0

    def ended(job: Job, code: int) -> None:
        nonlocal done
        done += 1
        if code == STOPPED:
            raise KeyboardInterrupt
        if code:
            console.print(
                f"{job.name}: failed with exit code {code}: {_last_line(job.log)} ({job.log})", soft_wrap=True
            )

    def drawn(job: Job, code: int) -> None:
        ended(job, code)
        if code:
            without = [row.name for row in todo if not row.of and _dataset(row) == job.name]
            failed.extend(without)
            console.print(
                f"dataset {job.name} was not drawn: the rows that train on it ({len(without)}) fail; with "
                f"`train.datasets: {job.name}` they train on what is there of it",
                soft_wrap=True,
            )

    def row_ended(job: Job, code: int) -> None:
        ended(job, code)
        if code:
            failed.append(job.name)
        left = (time.monotonic() - started) / done * (len(todo) - done)
        row = next(row for row in todo if row.name == job.name)
        if (result := result_of(folder, row)) is not None:
            found[row.name] = result
            told = f"{points_text(result.evaluation.difference.exact)} points"
            console.print(f"{done}/{len(todo)} {row.label}, seed {row.seed}: {told}; about {left / 60:.0f} min left")
        show(plan, folder, found, len(failed))

    try:
        if todo:
            runner(_drawings(plan, todo, found, folder), 1, drawn)
            todo = [row for row in todo if row.name not in failed]
            started, done = time.monotonic(), 0
            runner([_job(row, plan, folder) for row in todo if not row.of], at_once, row_ended)
            means = [row for row in todo if found.keys() >= {*row.of} and row.of]
            runner([_job(row, plan, folder) for row in means], at_once, row_ended)
    finally:  # also where it is stopped: what is there can be looked at
        table = show(plan, folder, found, len(failed))
    console.print(table, soft_wrap=True)
    console.print(f"page: {folder / 'index.html'}", soft_wrap=True)
    return len(failed)


def crowded(at_once: int, devices: set[str]) -> str | None:
    """A warning where rows that compute on the processor are more at once than it has cores."""
    if (cores := hardware.cores()) >= at_once or "cpu" not in {hardware.device_of(device) for device in devices}:
        return None
    return f"warning: jobs: {at_once} rows at once on {cores} physical cores take longer than {cores} at once would"


def show(plan: Plan, folder: Path, found: dict[str, Result], failed: int) -> str:
    """Write the page and the table; the table."""
    lines = lines_of(plan, found)
    table = page.markdown(lines)
    missing = [f"{row.label}, seed {row.seed}" for row in plan.rows if row.name not in found]
    unreached = page.unreached(plan, lines)
    notes = page.note(missing, len(plan.rows)) + (f"\n{unreached}\n" if unreached else "")
    write_atomic(folder / "table.md", (table + notes).encode())
    write_atomic(folder / "index.html", page.html(plan, lines, missing, failed).encode())
    return table


def _drawings(plan: Plan, rows: list[Row], found: dict[str, Result], folder: Path) -> list[Job]:
    """Of every dataset that offline rows read, which is drawn if it is not there; one that a row was trained on is."""
    if plan.sweep.mode == "online":
        return []
    there = {row.recipe.name for row in plan.rows if row.name in found}
    wanted = [row.drawing for row in rows if _dataset(row) not in (None, *there)]
    recipes = {str(recipe.name): recipe for recipe in wanted}
    return [Job(name, draw_dataset, (recipe,), folder / "logs" / f"{name}.log") for name, recipe in recipes.items()]


def _dataset(row: Row) -> str | None:
    """What an offline row reads and a sweep draws; None where `train.datasets` says what is there."""
    return None if row.drawing.train.datasets is not None else row.drawing.name


def _job(row: Row, plan: Plan, folder: Path) -> Job:
    return Job(row.name, run_row, (row, plan.sweep, folder), folder / "logs" / f"{row.name}.log")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing was said")
