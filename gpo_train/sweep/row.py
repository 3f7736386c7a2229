"""One row: train, evaluate, and write down what came of it: the verbs `fit` and `eval`; of a mean `average` and `eval`.

<sweep>/runs/<row>/          the run
<sweep>/rows/<row>.json      what the page needs of it; written last: a row that has one is never run again
<sweep>/logs/<row>.log       what it said
"""

from __future__ import annotations

import csv
import fcntl
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from gpo_data.errors import Interrupted, RunError, UsageError
from gpo_data.lake import catalog
from gpo_data.lake.document import read_document, write_document
from gpo_data.recipe import Recipe
from gpo_train.evaluation.result import Comparison, Evaluation
from gpo_train.online.iterations import history
from gpo_train.run import Run
from gpo_train.sweep.file import Sweep
from gpo_train.sweep.plan import Row
from gpo_train.sweep.processes import FAILED, STOPPED

POINTS = 200  # of a curve


@dataclass(frozen=True)
class Curve:
    """Online: exact of what each iteration drew, by pictures. Offline: how far errors of worse and better members are
    apart, by step."""

    x: list[float]
    y: list[float]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The content of rows/<row>.json.

    Args:
        pictures: that were drawn to train on. A mean has the pictures, the steps and the seconds of all its runs.
        seconds: with the evaluation.
        points: of the sweep's `points` that the row reached, by step, the policy of then against the base.
        peak_memory: as run.json has it.
    """

    label: str
    seed: int
    evaluation: Evaluation
    pictures: int
    steps: int
    train_seconds: float
    seconds: float
    curve: Curve
    points: dict[str, Comparison] = field(default_factory=dict)
    peak_memory: int | None = None


def result_of(folder: Path, row: Row) -> Result | None:
    """What a row that was run to its end has written down; a damaged file is none, and the row's verbs say it again."""
    try:
        return read_document(Result, folder / "rows" / f"{row.name}.json", "it is written again")
    except (FileNotFoundError, UsageError):
        return None


def draw_dataset(recipe: Recipe) -> int:
    """The groups that offline rows are trained on, in a process of its own; its exit code."""
    from gpo_data.generation.generate import draw

    return _guarded(lambda console: draw(recipe, console))


def run_row(row: Row, sweep: Sweep, folder: Path) -> int:
    """Train and evaluate, in a process of its own; its exit code."""
    from gpo_train.average import average
    from gpo_train.evaluation.evaluate import evaluate
    from gpo_train.evaluation.several import at_points
    from gpo_train.fit import fit
    from gpo_train.points import folder_of

    def work(console: Console) -> None:
        started, path = time.monotonic(), folder / "rows" / f"{row.name}.json"
        of = [Run(folder / "runs" / name) for name in row.of or [row.name]]
        run = Run(folder / "runs" / row.name)
        if not row.of:
            fit(row.recipe, row.name, console, sweep.mode, folder / "runs", sweep.points)
        elif not run.folder.is_dir():
            average(of, row.last, row.scale, row.name)
        reached = {step: at for step in sorted(sweep.points) if (at := folder_of(run, step)).is_dir()}
        # One at a time: rows share the base's pictures, which the first of them draws.
        with (folder / ".eval.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = evaluate(row.recipe, run, console)
            points = at_points(row.recipe, run, reached, console)
        manifests = [one.manifest() for one in of]
        drawn = [pictures_of(row.recipe, one.folder, sweep.mode) for one in of]
        path.parent.mkdir(parents=True, exist_ok=True)
        result = Result(
            label=row.label,
            seed=row.seed,
            evaluation=found,
            pictures=sum(drawn) if sweep.mode == "online" else drawn[0],
            steps=sum(one.steps or 0 for one in manifests),
            train_seconds=sum(one.train_seconds or 0.0 for one in manifests),
            seconds=round(time.monotonic() - started, 1),
            curve=curve(run.folder),
            points={str(step): one for step, one in points.items()},
            peak_memory=max((one.peak_memory for one in manifests if one.peak_memory is not None), default=None),
        )
        write_document(result, path)

    return _guarded(work)


def _guarded(work: Any) -> int:
    console = Console(highlight=False, markup=False, width=120)
    try:
        work(console)
    except (Interrupted, KeyboardInterrupt):
        return STOPPED
    except (UsageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception:  # of one row; the others go on, and the log has it
        traceback.print_exc()
        return FAILED
    return 0


def pictures_of(recipe: Recipe, run: Path, mode: str) -> int:
    """That were drawn to train on, with those that were left out."""
    if mode == "online":
        return sum(one.images for one in history(run))
    import pyarrow.parquet as pq

    names = sorted(set(pq.read_table(run / "snapshot.parquet", columns=["dataset"])["dataset"].to_pylist()))
    con = catalog.connect(recipe.lake, names)
    asked = "SELECT count(*) FROM drawn_members WHERE list_contains(?, dataset)"
    return int(con.execute(asked, [names]).fetchall()[0][0])


def curve(run: Path) -> Curve:
    drawn = history(run)
    if drawn:
        images = [float(sum(one.images for one in drawn[:i])) for i in range(len(drawn))]
        return Curve(images, [one.exact or 0.0 for one in drawn])
    found: dict[int, float] = {}
    for file in sorted((run / "logs" / "csv").glob("metrics*.csv")):
        for one in csv.DictReader(file.read_text().splitlines()):
            for what in ("error_diff", "error"):  # without a reference it is the error itself
                below, above = one.get(f"{what}/below_mean"), one.get(f"{what}/above_mean")
                if below and above:
                    with suppress(TypeError, ValueError):  # a line that a killed run did not finish
                        found[int(one["step"])] = float(below) - float(above)
    steps = sorted(found)[:: max(1, len(found) // POINTS)]
    return Curve([float(step) for step in steps], [found[step] for step in steps])
