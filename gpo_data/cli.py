"""gpo-data: from prompts to groups, shards, SQL and audits.

    gpo-data shards recipes/text-tiny.yaml                        draw what is missing (resumes)
    gpo-data audit  recipes/text-tiny.yaml                        a table here, an HTML page beside the shards
    gpo-data sql    recipes/text-tiny.yaml "select * from groups" one query, or a prompt without one
    gpo-data verify recipes/text-tiny.yaml --redraw 8             prove every byte; draw some members again

Exit code 0: done; 1: a run failed; 2: the recipe or the command line is wrong; 130: stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console

from gpo_data import recipe as recipes
from gpo_data.errors import DISK, RunError, UsageError
from gpo_data.recipe import Recipe

console = Console(highlight=False)


def shards(recipe: Recipe, options: argparse.Namespace) -> int:
    """draw groups, measure them, write shards; resumes"""
    from gpo_data.generation.generate import draw
    from gpo_data.generation.worker import Interrupted

    try:
        draw(recipe, console)
    except Interrupted:
        console.print("stopped; the same command goes on from here")
        return 130
    return 0


def audit(recipe: Recipe, options: argparse.Namespace) -> int:
    """what is in a dataset: a table here, an HTML page beside the shards"""
    from gpo_data.audit import run
    from gpo_data.lake.manifest import read_manifest

    stored = read_manifest(_folder(recipe))["measured"]["reward"]
    path = run(recipe.lake, str(recipe.name), None if recipe.reward == stored else recipe.reward, recipe.where)
    console.print(f"page: {path}", soft_wrap=True)
    return 0


def sql(recipe: Recipe, options: argparse.Namespace) -> int:
    """query the lake with DuckDB: views members, groups, shards, datasets"""
    from gpo_data.lake import shell

    shell.run(
        recipe.lake,
        options.query,
        options.format,
        options.out,
        recipe.reward if options.reward else None,
        options.unsafe,
    )
    return 0


def measure(recipe: Recipe, options: argparse.Namespace) -> int:
    """add an evaluator's measurements to shards that are already drawn"""
    from gpo_data.generation.measure import measure

    measure(recipe, options.evaluator)
    return 0


def verify(recipe: Recipe, options: argparse.Namespace) -> int:
    """prove a dataset: hashes, counts, orphans; --repair quarantines damage"""
    from gpo_data.generation.redraw import redraw
    from gpo_data.lake.repair import repair
    from gpo_data.lake.verify import verify

    folder = _folder(recipe)
    report = verify(folder)
    console.print(
        f"{folder}: {report.shards} shards, {report.groups} groups, {report.members} members "
        f"({report.failed} failed), {len(report.problems)} problems",
        soft_wrap=True,
    )
    for path, problem in report.problems:
        console.print(f"  {path.relative_to(folder)}: {problem}", soft_wrap=True)
    differing = 0
    for row in redraw(recipe, folder, options.redraw) if options.redraw and not report.problems else []:
        same = "as stored" if row.agrees else f"NOT as stored: rounding is at most {row.tolerance:g}"
        now = "agrees" if row.reward == row.reward_again else f"is now {row.reward_again}"
        console.print(
            f"  redrawn {row.group_key} member {row.member:2d}: difference of latents {row.difference:.1e} of their "
            f"norm, {same}; reward {row.reward} {now}",
            soft_wrap=True,
        )
        differing += not row.agrees
    if differing:
        console.print(f"{differing} of {options.redraw} members are not what the recipe draws from their seeds")
        return 1
    if report.problems and options.repair:
        moved = repair(folder, report)
        console.print(f"repaired: {moved} files moved to .quarantine or removed; `gpo-data shards` draws them again")
        return 0
    return 1 if report.problems else 0


def show(recipe: Recipe, options: argparse.Namespace) -> int:
    """write a picture grid of groups, with rewards and what was read"""
    from gpo_data.audit.show import grid, load_groups

    groups = load_groups(_folder(recipe), options.group, options.limit)
    out = options.out or _folder(recipe) / "show.png"
    grid(groups).save(out)
    console.print(f"{len(groups)} groups: {out}", soft_wrap=True)
    return 0


VERBS: dict[str, Callable[[Recipe, argparse.Namespace], int]] = {
    verb.__name__: verb for verb in (shards, audit, sql, measure, verify, show)
}


def _folder(recipe: Recipe) -> Path:
    from gpo_data.lake.shard import dataset_folder

    return dataset_folder(recipe.lake, str(recipe.name))


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the whole command, which gives help, and one a verb."""
    parser = argparse.ArgumentParser(
        "gpo-data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, function in VERBS.items():
        verb = verbs.add_parser(
            name,
            help=function.__doc__,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            description=f"{name}: {function.__doc__}",
            epilog="Every key of the recipe can be overridden:\n\n" + _recipe_help(),
        )
        verb.add_argument("recipe", help="for example recipes/text-tiny.yaml")
        if name == "sql":
            verb.add_argument("query", nargs="?", help="SQL; without it, an interactive prompt")
            verb.add_argument("--format", choices=("table", "csv", "json", "parquet"), default="table")
            verb.add_argument("--out", type=Path, help="write there instead of printing")
            verb.add_argument("--unsafe", action="store_true", help="any SQL, which may read and write other files")
        if name == "measure":
            verb.add_argument(
                "--evaluator",
                action="append",
                metavar="NAME",
                help=f"{', '.join(recipes.EVALUATORS)}; default: those of the recipe",
            )
        if name == "verify":
            verb.add_argument("--redraw", type=int, default=0, metavar="N", help="draw N members again and compare")
            verb.add_argument("--repair", action="store_true", help="quarantine what is damaged")
        if name == "show":
            verb.add_argument("--group", action="append", metavar="KEY", help="a group, for example text-00000003")
            verb.add_argument("--limit", type=int, default=4, help="without --group: how many groups")
            verb.add_argument("--out", type=Path, help="PNG file; default: show.png beside the shards")
    return parser, dict(verbs.choices)


@functools.cache
def _recipe_help() -> str:
    if not {"-h", "--help"} & set(sys.argv):
        return ""  # building it takes a moment, and only help shows it
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_class_arguments(Recipe, as_group=False)
    return parser.format_help()


def main(argv: list[str] | None = None) -> int:
    return run(argv, _parsers, VERBS)


def run(
    argv: list[str] | None,
    parsers: Callable[[], tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]],
    functions: dict[str, Callable[[Recipe, argparse.Namespace], int]],
) -> int:
    """Parse `VERB RECIPE [--key value ...]`, run the verb, turn what went wrong into a line and an exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    parser, verbs = parsers()
    if not arguments or arguments[0] not in verbs:
        parser.parse_args(arguments)  # prints help, or which verbs there are, and exits
    # A recipe's keys come out first: their values would look like this verb's positional arguments.
    overrides, rest = recipes.split_overrides(arguments[1:])
    options, unknown = verbs[arguments[0]].parse_known_intermixed_args(rest)
    options.reward = any(o.split("=")[0] == "--reward" for o in overrides)
    try:
        return functions[arguments[0]](recipes.load(options.recipe, overrides + unknown), options)
    except (UsageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `gpo-data sql ... | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno not in DISK:
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
