"""gpo-train: from groups to a better policy.

    gpo-train fit    text-tiny                   train on the recipe's frozen shards (resumes)
    gpo-train fit    text-tiny --mode online     train on what the policy draws, iteration by iteration
    gpo-train watch  text-tiny --mode online     its iterations: a table, curves as a picture
    gpo-train eval   text-tiny                   its newest run against the base, held-out prompts
    gpo-train report text-tiny-offline other     their evaluations and benchmarks side by side, one page
    gpo-train compare text-tiny --run a b        held-out accuracy of runs, iteration by iteration
    gpo-train sweep  recipes/experiments/losses-text.yaml     many runs of a recipe, evaluated and compared; resumes;
                                                 --workers 8: a GPU each, by Ray; --ray auto: on a cluster
    gpo-train average text-tiny --run a b c      the mean of runs (or of --last 8 iterations of one), as a run;
                                                 --scale 2 goes twice as far from the base
    gpo-train export text-tiny --out folder      files that diffusers opens with no code of ours

Every key of the recipe can be overridden: --train.learning_rate 1e-5 --train.tuning lora --eval.prompts 64.
Exit code 0: done; 1: a run failed; 2: the recipe or the command line is wrong; 130: stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpo_data.command import Argument, Command, Options, argument, at_least, never
from gpo_data.errors import UsageError
from gpo_data.progress import plain_console
from gpo_data.recipe import Recipe

console = plain_console()
command = Command("gpo-train", __doc__)
RUNS = argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="of all runs; default: runs")


def one_run(mode: str, default: str = "the newest of this recipe and mode") -> list[Argument]:
    who = f"who draws the groups: `gpo-data shards`, before, or the policy itself; default: {mode}"
    return [
        RUNS,
        argument("--run", metavar="NAME", help=f"a run there; default: {default}"),
        argument("--mode", choices=("offline", "online"), default=mode, help=who),
    ]


def drawn(options: Options) -> bool:
    """Whether the policy draws."""
    return bool(options.mode == "online")


@command.verb(*one_run("offline", "<recipe>-<mode>, new or not"), keys=("train", "online", "ray"), runs=drawn)
def fit(recipe: Recipe, options: Options) -> None:
    """train a policy; resumes"""
    from gpo_train.fit import fit

    fit(recipe, options.run, console, options.mode, options.runs)


@command.verb(
    *one_run("offline"),
    argument("--base-only", action="store_true", help="no run: the recipe's model alone, into <runs>/<recipe>-base/"),
    name="eval",
    keys=("eval", "ray"),
)
def evaluate(recipe: Recipe, options: Options) -> None:
    """compare a run's policy with its base on held-out prompts or a benchmark's file, same seeds"""
    from gpo_train.evaluation.alone import evaluate_alone
    from gpo_train.evaluation.evaluate import evaluate

    if options.base_only:
        evaluate_alone(recipe, options.runs / f"{recipe.name}-base", console)
        return

    evaluate(recipe, _run(recipe, options), console)


@command.verb(
    RUNS,
    argument("--run", nargs="+", required=True, metavar="NAME", help="runs there"),
    argument("--every", type=at_least(1), default=1, metavar="N", help="a point every N iterations"),
    argument("--out", type=Path, help="folder of the table and the curves; default: compare in that of all runs"),
)
def compare(recipe: Recipe, options: Options) -> None:
    """held-out accuracy of several online runs, iteration by iteration: a table, and compare.png"""
    from gpo_train.evaluation.compare import compare
    from gpo_train.run import named

    runs = [named(options.runs, name) for name in options.run]
    compare(recipe, runs, options.out or options.runs / "compare", options.every, console)


def _first_run(name: str, overrides: Sequence[str], trust: bool) -> str:
    if overrides:
        raise UsageError(f"report: expected runs alone, since it reads what `eval` wrote; found {overrides[0]:.200}")
    return name


@command.verb(
    argument("more", nargs="*", metavar="run", help="further ones"),
    RUNS,
    argument("--out", type=Path, metavar="FOLDER", help="of the page; default: report in that of all runs"),
    runs=never,
    reads=("run", "a run, or <recipe>-base of a model alone: a name, or a folder", _first_run),
)
def report(run: str, options: Options) -> None:
    """evaluations and benchmarks of several runs side by side: a table, one HTML page, Markdown; draws nothing"""
    from gpo_train.evaluation.side_by_side import side_by_side

    side_by_side([run, *options.more], options.runs, options.out or options.runs / "report", console)


@command.verb(
    *one_run("online"),
    argument("--follow", action="store_true", help="again every ten seconds until the run has finished"),
    runs=never,
)
def watch(recipe: Recipe, options: Options) -> None:
    """the iterations of an online run: rewards, dead groups, seconds; a table, and curves in watch.png"""
    from gpo_train.online.watch import watch

    watch(recipe, _run(recipe, options), console, options.follow)


@command.verb(
    RUNS,
    argument("--run", nargs="+", metavar="NAME", help="runs there; default: the newest of this recipe and mode"),
    one_run("online")[-1],
    argument("--last", type=at_least(2), metavar="N", help="so many last iterations of an online run, not its end"),
    argument("--scale", type=float, default=1.0, metavar="S", help="base + S (mean - base); default: 1, the mean"),
    argument("--out", metavar="NAME", help="a new run beside them; default: <run>-mean<N>"),
    runs=never,
)
def average(recipe: Recipe, options: Options) -> None:
    """the mean of the weights of runs, or of an online run's last iterations, as a run that eval and export take"""
    from gpo_train.average import average
    from gpo_train.run import named, newest

    out = None if options.out is None else named(options.runs, options.out).name
    names = options.run or [newest(str(recipe.name), options.mode, options.runs).name]
    made = average([named(options.runs, name) for name in names], options.last, options.scale, out)
    console.print(f"averaged: {made.folder}; look at it with `gpo-train eval ... --run {made.name}`", soft_wrap=True)


@command.verb(
    *one_run("offline"),
    argument("--out", type=Path, required=True, help="a new folder"),
    argument("--merge", action="store_true", help="a LoRA into the base model's weights: a whole diffusers folder"),
    runs=never,
)
def export(recipe: Recipe, options: Options) -> int:
    """write the policy as a plain diffusers folder or LoRA file"""
    from gpo_train.export import export

    console.print(f"exported: {export(_run(recipe, options), options.out, options.merge)}", soft_wrap=True)
    return 0


@command.verb(
    argument("repository", metavar="ORG/NAME", help="of a hub; $HF_ENDPOINT names another hub"),
    *one_run("offline"),
    argument("--license", default="other", help="of the policy, in the hub's words; default: other"),
    argument("--private", action="store_true", help="a new repository is seen by its owners alone"),
    argument("--tag", metavar="NAME", help="tag the repository as it is then"),
    runs=never,
)
def push(recipe: Recipe, options: Options) -> None:
    """send a run's policy to a hub, with a card that holds its evaluation; resumes"""
    from gpo_train.share import push

    url = push(_run(recipe, options), options.repository, options.license, options.private, options.tag)
    console.print(f"pushed: {url}", soft_wrap=True)


def _plan(path: str, overrides: Sequence[str], trust: bool) -> Any:
    from gpo_train.sweep.plan import read_plan

    return read_plan(path, overrides, trust)


@command.verb(
    argument("--out", type=Path, metavar="FOLDER", help="of the runs and the page; default: sweeps/<name>"),
    argument("--list", action="store_true", help="print the rows and run none"),
    argument("--jobs", type=at_least(1), metavar="N", help="rows at once on this machine; default: the file's"),
    argument("--rows", nargs="+", default=[], metavar="NAME", help="run these alone, as --list has them, or 'awm*'"),
    argument("--seeds", nargs="+", default=[], type=at_least(0), metavar="N", help="run these alone; default: all"),
    keys=("ray",),
    reads=("sweep", "a sweep file, or the name of one in recipes/experiments", _plan),
)
def sweep(plan: Any, options: Options) -> int:
    """train and evaluate every row of a sweep file that is not done; a table, and one HTML page; resumes"""
    from gpo_train.sweep.sweep import sweep

    plan = plan.only(options.rows, options.seeds)
    if options.list:
        for row in plan.asked:
            console.print(f"{row.name}: {row.label}, seed {row.seed}", soft_wrap=True)
        return 0
    return 1 if sweep(plan, options.out or Path("sweeps") / plan.sweep.name, console, options.jobs) else 0


def _run(recipe: Recipe, options: Options) -> Any:
    from gpo_train.run import named, newest

    if options.run is not None:
        return named(options.runs, options.run)
    return newest(str(recipe.name), options.mode, options.runs)


main, run = command.main, command.run

if __name__ == "__main__":
    run()
