"""gpo-train: from groups to a better policy.

    gpo-train fit    recipes/text-tiny.yaml                   train on the recipe's frozen shards (resumes)
    gpo-train fit    recipes/text-tiny.yaml --mode online     train on what the policy draws, iteration by iteration
    gpo-train watch  recipes/text-tiny.yaml --mode online     its iterations: a table, curves as a picture
    gpo-train eval   recipes/text-tiny.yaml                   its newest run against the base, held-out prompts
    gpo-train compare recipes/text-tiny.yaml --runs a b       held-out accuracy of runs, iteration by iteration
    gpo-train average recipes/text-tiny.yaml --last 8         the mean of an online run's last iterations, as a run
    gpo-train export recipes/text-tiny.yaml --out folder      files that diffusers opens with no code of ours

Every key of the recipe can be overridden: --train.learning_rate 1e-5 --train.tuning lora --eval.prompts 64.
Exit code 0: done; 1: a run failed; 2: the recipe or the command line is wrong; 130: stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from gpo_data.cli import run
from gpo_data.recipe import Recipe

console = Console(highlight=False)


def fit(recipe: Recipe, options: argparse.Namespace) -> int:
    """train a policy; resumes"""
    from gpo_train.fit import Stopped, fit

    try:
        fit(recipe, options.run, console, options.mode)
    except Stopped:
        console.print("stopped; the same command goes on from here")
        return 130
    return 0


def evaluate(recipe: Recipe, options: argparse.Namespace) -> int:
    """compare a run's policy with its base on held-out prompts, same seeds"""
    from gpo_train.evaluation.evaluate import evaluate

    evaluate(recipe, _run(recipe, options), console)
    return 0


def compare(recipe: Recipe, options: argparse.Namespace) -> int:
    """held-out accuracy of several online runs, iteration by iteration: a table, and compare.png"""
    from gpo_train.evaluation.compare import compare
    from gpo_train.run import RUNS, Run

    compare(recipe, [Run(RUNS / name) for name in options.runs], options.out, options.every, console)
    return 0


def watch(recipe: Recipe, options: argparse.Namespace) -> int:
    """the iterations of an online run: rewards, dead groups, seconds; a table, and curves in watch.png"""
    from gpo_train.online.watch import watch

    watch(recipe, _run(recipe, options), console, options.follow)
    return 0


def average(recipe: Recipe, options: argparse.Namespace) -> int:
    """the mean of the weights of an online run's last iterations, as a run that eval and export take"""
    from gpo_train.online.average import average

    made = average(_run(recipe, options), options.last, options.out)
    console.print(f"averaged: {made.folder}; look at it with `gpo-train eval ... --run {made.name}`", soft_wrap=True)
    return 0


def export(recipe: Recipe, options: argparse.Namespace) -> int:
    """write the policy as a plain diffusers folder or LoRA file"""
    from gpo_train.export import export

    console.print(f"exported: {export(_run(recipe, options), options.out)}", soft_wrap=True)
    return 0


VERBS: dict[str, Callable[[Recipe, argparse.Namespace], int]] = {
    "fit": fit,
    "watch": watch,
    "eval": evaluate,
    "compare": compare,
    "average": average,
    "export": export,
}


def _run(recipe: Recipe, options: argparse.Namespace) -> Any:
    from gpo_train.run import RUNS, Run, newest

    return Run(RUNS / options.run) if options.run else newest(str(recipe.name), options.mode)


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("gpo-train", description=__doc__, formatter_class=style, allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, function in VERBS.items():
        verb = verbs.add_parser(
            name,
            help=function.__doc__,
            description=f"{name}: {function.__doc__}",
            epilog=_settings_help(name),
            formatter_class=style,
            allow_abbrev=False,
        )
        verb.add_argument("recipe", help="for example recipes/text-tiny.yaml")
        verb.add_argument(
            "--run",
            metavar="NAME",
            help="folder in runs/; default: "
            + ("<recipe>-<mode>" if name == "fit" else "the newest of this recipe and mode"),
        )
        mode = "online" if name in ("watch", "average") else "offline"
        verb.add_argument(
            "--mode",
            choices=("offline", "online"),
            default=mode,
            help="who draws the groups: `gpo-data shards`, before, or the policy itself",
        )
        if name == "watch":
            verb.add_argument(
                "--follow", action="store_true", help="again every ten seconds until the run has finished"
            )
        if name == "compare":
            verb.add_argument("--every", type=int, default=1, metavar="N", help="a point every N iterations")
            verb.add_argument("--runs", nargs="+", required=True, metavar="NAME", help="folders in runs/")
            verb.add_argument(
                "--out", type=Path, default=Path("runs/compare"), help="folder of the table and the curves"
            )
        if name == "average":
            verb.add_argument("--last", type=int, required=True, metavar="N", help="how many iterations")
            verb.add_argument("--out", metavar="NAME", help="a new folder in runs/; default: <run>-mean<N>")
        if name == "export":
            verb.add_argument("--out", type=Path, required=True, help="a new folder")
    return parser, dict(verbs.choices)


def _settings_help(verb: str) -> str:
    """The keys of the recipe's sections that the verb reads, with what they mean."""
    if not {"-h", "--help"} & set(sys.argv) or verb not in ("fit", "eval"):
        return ""
    from gpo_data.recipe import Eval, Online, Train

    sections: dict[str, Any] = {"train": Train, "online": Online} if verb == "fit" else {"eval": Eval}
    return "\n\n".join(f"--{name}.KEY VALUE: {inspect.getdoc(kind)}" for name, kind in sections.items())


def main(argv: list[str] | None = None) -> int:
    return run(argv, _parsers, VERBS)


if __name__ == "__main__":
    sys.exit(main())
