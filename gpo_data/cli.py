"""gpo-data: from prompts to groups, shards, SQL and audits.

    gpo-data prompts text-tiny --task.prompts f.csv  what is understood of prompts, before drawing
    gpo-data shards text-tiny                        draw what is missing (resumes)
    gpo-data shards text-tiny --workers 2            in so many processes, by Ray; --ray auto: on a cluster
    gpo-data audit  text-tiny                        a table here, an HTML page beside the shards
    gpo-data sql    text-tiny "select * from groups" one query, or a prompt without one
    gpo-data verify text-tiny --redraw 8             prove every byte; draw some members again

Exit code 0: done; 1: a run failed; 2: the recipe or the command line is wrong; 130: stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from gpo_data.command import Command, Options, argument, at_least, never, positive
from gpo_data.errors import UsageError
from gpo_data.progress import plain_console
from gpo_data.recipe import EVALUATORS, SECTIONS, Recipe, expect_no_code

if TYPE_CHECKING:
    from gpo_data.lake.remote import AnyPath

console = plain_console()
command = Command("gpo-data", __doc__, keys=("", *SECTIONS))


@command.verb()
def shards(recipe: Recipe, options: Options) -> None:
    """draw groups, measure them, write shards; resumes"""
    from gpo_data.generation.generate import draw

    draw(recipe, console)


@command.verb(
    argument("--limit", type=at_least(1), default=20, metavar="N", help="how many to show; default: 20"),
    keys=("", "task"),
)
def prompts(recipe: Recipe, options: Options) -> None:
    """what is asked for: a table of prompts and their targets, checked as before drawing"""
    from gpo_data.audit.prompts import show

    show(recipe, options.limit, console)


@command.verb(runs=never)
def audit(recipe: Recipe, options: Options) -> None:
    """what is in a dataset: a table here, an HTML page beside the shards"""
    from gpo_data.audit import run
    from gpo_data.lake.manifest import read_manifest

    stored = read_manifest(_folder(recipe)).measured["reward"]
    reward = None if recipe.reward == stored else recipe.reward
    path = run(recipe.lake, str(recipe.name), reward, recipe.where, recipe.watchers)
    if recipe.relabel:
        console.print("the groups as they were drawn: members that `relabel` lends are counted by `gpo-train fit`")
    console.print(f"page: {path}", soft_wrap=True)


@command.verb(
    argument("query", nargs="?", help="SQL; without it, an interactive prompt"),
    argument("--format", choices=("table", "csv", "json", "parquet"), help="default: as --out ends, else table"),
    argument("--out", type=Path, help="write there instead of printing"),
    argument(
        "--dataset", action="append", metavar="NAME", help="the views show this alone, a name or pattern; default: all"
    ),
    argument("--unsafe", action="store_true", help="any SQL, which may read and write other files"),
    runs=never,
)
def sql(recipe: Recipe, options: Options) -> None:
    """query the lake with DuckDB: views members, groups, shards, datasets"""
    from gpo_data.lake import shell

    shell.run(
        recipe.lake,
        options.query,
        options.format,
        options.out,
        recipe.reward if options.reward else None,
        options.unsafe,
        options.dataset,
    )


@command.verb(
    argument(
        "--evaluator", action="append", metavar="NAME", help=f"{', '.join(EVALUATORS)}; default: those of the recipe"
    ),
)
def measure(recipe: Recipe, options: Options) -> None:
    """add an evaluator's measurements to shards that are already drawn"""
    from gpo_data.generation.measure import measure

    _expect_trusted(recipe, options)
    measure(recipe, options.evaluator)


@command.verb(
    argument("--evaluator", action="append", metavar="NAME", help="one of the recipe's, or more; default: all of them"),
    argument("--host", default="127.0.0.1", help="to listen at; beyond this machine set GPO_JUDGE_TOKEN"),
    argument("--port", type=at_least(0), default=8190, help="0: any that is free"),
)
def serve(recipe: Recipe, options: Options) -> None:
    """offer the recipe's evaluators to others over HTTP: POST /score, as `http:` of a recipe asks for"""
    from gpo_data.evaluators import chosen
    from gpo_data.evaluators.serve import serve

    _expect_trusted(recipe, options)
    names = options.evaluator or [*recipe.evaluators, *recipe.watchers]
    serve(chosen(recipe, names), options.host, options.port, console)


@command.verb(
    argument("--redraw", type=at_least(0), default=0, metavar="N", help="draw N members again and compare"),
    argument("--repair", action="store_true", help="quarantine what is damaged"),
    argument("--tag", metavar="NAME", help="also that what was tagged is there as it was"),
    runs=lambda options: options.redraw > 0,
)
def verify(recipe: Recipe, options: Options) -> int:
    """prove a dataset: hashes, counts, orphans; --repair quarantines damage"""
    from gpo_data.generation.redraw import redraw
    from gpo_data.lake.manifest import imported
    from gpo_data.lake.remote import below
    from gpo_data.lake.repair import repair
    from gpo_data.lake.verify import verify

    folder = _folder(recipe)
    report = verify(folder, console)
    console.print(
        f"{folder}: {report.shards} shards, {report.groups} groups, {report.members} members "
        f"({report.failed} failed), {len(report.problems)} problems",
        soft_wrap=True,
    )
    for path, problem in report.problems:
        console.print(f"  {below(path, folder)}: {problem}", soft_wrap=True)
    changed: list[str] = []
    if options.tag:
        from gpo_data.sharing.tag import differences, read_tag

        tagged = read_tag(folder, options.tag)
        console.print(f"tag {tagged.tag}: digest {tagged.digest} of {len(tagged.files)} files", soft_wrap=True)
        for line in (changed := differences(folder, tagged)):
            console.print(f"  {line}", soft_wrap=True)
    if options.redraw and report.problems:
        console.print("nothing is drawn again before its problems are repaired")
    differing = 0
    for row in redraw(recipe, folder, options.redraw, console) if options.redraw and not report.problems else []:
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
        again = "import` brings" if imported(folder) else "shards` draws"
        console.print(
            f"repaired: {moved} files moved to .quarantine or removed; `gpo-data {again} them again, and `gpo-data "
            f"measure` measures",
            soft_wrap=True,
        )
        return 1 if changed else 0
    return 1 if report.problems or changed else 0


@command.verb(
    argument("--group", action="append", metavar="KEY", help="a group, for example text-00000003"),
    argument("--limit", type=at_least(1), default=4, help="without --group: how many groups"),
    argument("--out", type=Path, help="PNG file; default: show.png beside the shards"),
    runs=never,
)
def show(recipe: Recipe, options: Options) -> None:
    """write a picture grid of groups, with rewards and what was read; a green frame: exactly as asked"""
    from gpo_data.audit.show import grid, judged, load_groups, png
    from gpo_data.lake.durable import write_atomic
    from gpo_data.out_folder import make_folder

    groups = load_groups(_folder(recipe), options.group, options.limit)
    groups, right = judged(groups, recipe.lake, str(recipe.name), recipe.reward if options.reward else None)
    if options.out and options.out.suffix.lower() != ".png":
        raise UsageError(f"--out: expected a name that ends in .png, found {options.out}")
    if options.out:
        make_folder(options.out.parent)
    out = options.out or _folder(recipe) / "show.png"
    write_atomic(out, png(grid(groups, right)))
    console.print(f"{len(groups)} groups: {out}", soft_wrap=True)


REPOSITORY = argument("repository", metavar="ORG/NAME", help="of a hub; $HF_ENDPOINT names another hub")


@command.verb(argument("tag", help="a name such as v1, never used before"), runs=never)
def tag(recipe: Recipe, options: Options) -> None:
    """name what the dataset holds now, for a paper to cite; `verify --tag` checks it"""
    from gpo_data.sharing.tag import make_tag

    made = make_tag(_folder(recipe), options.tag)
    console.print(f"tag {made.tag}: digest {made.digest} of {len(made.files)} files", soft_wrap=True)


@command.verb(
    REPOSITORY,
    argument("--license", default="other", help="of the dataset, in the hub's words; default: other"),
    argument("--private", action="store_true", help="a new repository is seen by its owners alone"),
    argument("--tag", metavar="NAME", help="tag the repository as it is then"),
    argument("--no-pictures", action="store_true", help="no table with pictures, which sends them a second time"),
    runs=never,
)
def push(recipe: Recipe, options: Options) -> None:
    """send the dataset to a hub, with a card; resumes"""
    from gpo_data.sharing.hub import push

    o = options
    url = push(_folder(recipe), o.repository, o.license, o.private, o.tag, not o.no_pictures, console)
    console.print(f"pushed: {url}", soft_wrap=True)


@command.verb(REPOSITORY, argument("--revision", help="a branch, tag or commit of it"), runs=never)
def pull(recipe: Recipe, options: Options) -> None:
    """fetch the recipe's dataset from a hub into the lake, and prove it; resumes"""
    from gpo_data.sharing.hub import pull

    console.print(f"dataset {pull(_folder(recipe), options.repository, options.revision, console)}", soft_wrap=True)


@command.verb(
    argument("--out", type=Path, required=True, help="a new folder"),
    argument("--format", choices=("pickapic", "verl-omni", "simpletuner"), default="pickapic"),
    argument("--margin", type=positive, help="every pair whose rewards differ by so much; default: best and worst"),
    name="export-pairs",
    runs=never,
)
def export_pairs(recipe: Recipe, options: Options) -> None:
    """pairs of better and worse members for other trainers: Pick-a-Pic, verl-omni, SimpleTuner"""
    from gpo_data.exchange.export import export

    export(recipe, options.out, options.format, options.margin, console)


@command.verb(argument("source", help="a folder, .tar, .parquet or `datasets` id"), name="import")
def import_pictures(recipe: Recipe, options: Options) -> None:
    """pictures of anybody with their captions, or pairs with labels, as a dataset of the lake"""
    from gpo_data.exchange.imported import bring_in

    bring_in(recipe, options.source, console)


def _expect_trusted(recipe: Recipe, options: Options) -> None:
    """Of --evaluator, which may name others than the recipe's lists."""
    if options.evaluator and not options.trust:
        named = [name for name in dict.fromkeys(options.evaluator) if recipe.knows(name)]
        expect_no_code(dataclasses.replace(recipe, evaluators=named or recipe.evaluators, watchers=[]))


def _folder(recipe: Recipe) -> AnyPath:
    from gpo_data.lake.shard import dataset_folder

    return dataset_folder(recipe.lake, str(recipe.name))


main, run = command.main, command.run

if __name__ == "__main__":
    run()
