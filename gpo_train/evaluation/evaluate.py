"""The verb `eval`: policy against base, the same prompts and noise seeds for both.

    prompts     of one part of the split, without those whose target was trained on (prompts.py)
    exact       the word was read, the number was counted, exactly; a picture that failed is wrong
    lenient     text: the word is in what was read; count: at most one off; a picture that failed is wrong
    difference  policy - base, paired by (prompt, seed); its 95% interval is over targets (interval.py)
    diversity   root of the mean variance of latents over a group's members, mean over groups; a policy that collapses
                onto one picture a prompt loses it
    drift       entropy, edge density and dark fraction of the pictures, and the colour as asked where it is measured,
                all of pictures that did not fail
    watched     what the recipe's watchers see, likewise: no reward paid for it

Both sides are datasets in the lake like everything else (`<recipe>-eval-<hash>`, `<run>-eval-<hash>`), so SQL sees
them, drawing resumes, and a base that was drawn before is not drawn again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from gpo_data import evaluators, models
from gpo_data.audit.members import IMAGE_STATISTICS, expect_right
from gpo_data.generation.generate import draw
from gpo_data.generation.plan import plan
from gpo_data.generation.remote import kept_workers
from gpo_data.lake import catalog
from gpo_data.lake.document import write_document
from gpo_data.lake.manifest import identity, measured
from gpo_data.lake.reader import diversity
from gpo_data.lake.sql import identifier
from gpo_data.recipe import NO_TRAINING, Recipe, Task, fingerprint_of
from gpo_data.tasks import TASKS
from gpo_train.evaluation.interval import interval, open_interval, share_interval
from gpo_train.evaluation.prompts import EvalPrompts, choose
from gpo_train.evaluation.result import WATCHED, Comparison, Difference, Evaluation, Level, Side, Sums, Target
from gpo_train.evaluation.tags import by_tag
from gpo_train.evaluation.trained import trained_keys
from gpo_train.online.iterations import numbers_watched
from gpo_train.run import Run, settle


def evaluate(recipe: Recipe, run: Run, console: Console) -> Evaluation:
    """Draw both sides, compare them, write eval.json, .html and .png into the run's folder (result.py: names)."""
    from gpo_train.evaluation import report

    manifest = run.manifest()
    recipe = settle(recipe, run.folder, [])
    run.expect_policy()
    run.expect_base(recipe)
    measuring = expect_measured(recipe)
    chosen = choose(recipe, trained_keys(recipe, run), run.folder)
    base, policy = eval_recipes(recipe, chosen.task, run.name, run.policy)
    with kept_workers(recipe, console) as workers:
        for side in (base, policy):
            console.print(f"{'policy' if side.policy else 'base'}: dataset {side.name}", soft_wrap=True)
            draw(side, console, workers=workers, measuring=measuring)
    sides = members(recipe, base, policy)
    compared = compare(recipe, base, policy, sides, chosen)
    found = Evaluation(
        run=run.name,
        mode=manifest.mode,
        train_seconds=manifest.train_seconds,
        model=recipe.model,
        reward=recipe.reward,
        **vars(chosen.described()),
        **vars(compared),
    )
    # A run's own figures are not replaced by those of another task's prompts.
    stem = found.stem + ("" if manifest.recipe["task"]["kind"] == found.task else f"-{found.task}")
    write_document(found, run.folder / f"{stem}.json")
    report.terminal(found, console)
    right = [{key for key, one in side.items() if one["exact"]} for side in sides]
    grid = report.grid(recipe, str(base.name), str(policy.name), right, run.folder / f"{stem}.png")
    page = report.page(found, grid, run.folder / f"{stem}.html")
    console.print(f"page: {page}", soft_wrap=True)
    return found


def expect_measured(recipe: Recipe) -> list[evaluators.Evaluator]:
    """The recipe's evaluators. Raises UsageError, before anything is drawn, where nothing will tell what is right."""
    measuring = evaluators.build(evaluators.on_driver(recipe))
    columns = evaluators.columns_of(measuring).keys() | TASKS[recipe.task.kind].columns.keys()
    expect_right(recipe.task.kind, columns, "evaluators")
    return measuring


def eval_recipes(recipe: Recipe, task: Task, name: str, weights: Path, alone: bool = False) -> tuple[Recipe, Recipe]:
    """The recipes of base and policy: `eval.prompts` x `eval.group_size` pictures also where prompts are few.

    Of a file every prompt has `eval.group_size`.

    Args:
        task: the prompts (prompts.py).
        name: what the policy's dataset is called after.
        weights: the policy's folder.
        alone: there is none; both are the base.
    """
    settings = recipe.eval
    prompts = len(TASKS[task.kind].prompts(task, settings.seed))
    wanted = (prompts if isinstance(settings.prompts, str) else settings.prompts) * settings.group_size
    base = dataclasses.replace(
        recipe,
        task=task,
        group_size=max(2, -(-wanted // prompts)),
        seed=settings.seed,
        where=None,
        policy=recipe.policy,
        **NO_TRAINING,
    )
    if alone:
        named = _named(base, f"{recipe.name}-eval")
        return named, named
    policy = dataclasses.replace(base, policy=str(weights))
    return _named(base, f"{recipe.name}-eval"), _named(policy, f"{name}-eval")


def _named(recipe: Recipe, stem: str) -> Recipe:
    """The name says what is drawn and how it is measured: another reward is another dataset, not a refusal."""
    fields = identity(recipe, models.resolve(recipe.model, recipe.revision), plan(recipe)) | measured(recipe)
    return dataclasses.replace(recipe, name=f"{stem}-{fingerprint_of(fields)[:6]}")


Members = dict[tuple[str, int], dict[str, Any]]


def members(recipe: Recipe, base: Recipe, policy: Recipe) -> tuple[Members, Members]:
    """Of each side {(group_key, member): failed, level, exact, lenient, scores, reward and what else is measured}.

    A member that failed is neither exact nor lenient, and its scores are 0; the rest of it is None. Raises UsageError.
    """
    con = catalog.connect(recipe.lake, [str(base.name), str(policy.name)])
    columns = {row[0]: row[1] for row in con.execute("describe members").fetchall()}
    kind = TASKS[recipe.task.kind]
    missing = kind.reads() - columns.keys()
    judged = {"exact": "exact", "lenient": kind.lenient} | kind.scores
    wanted = {"failed": "status <> 'ok'", "level": "level"}
    wanted |= {name: f"CASE WHEN status = 'ok' THEN ({sql})::double ELSE 0 END" for name, sql in judged.items()}
    seen = {"reward": "reward"} | {name: name for name in IMAGE_STATISTICS if name in columns}
    if {"color", "color_seen"} <= columns.keys() and con.execute("SELECT count(color) FROM members").fetchall()[0][0]:
        seen["color_exact"] = "(color = color_seen)::double"  # a file's prompts may ask for none
    for name in numbers_watched(recipe, str(base.name), columns):
        seen[WATCHED + name] = f"{identifier(name)}::double"
    wanted |= {name: f"CASE WHEN status = 'ok' THEN {sql} END" for name, sql in seen.items()}
    listed = ", ".join(f"{sql} AS {identifier(name)}" for name, sql in wanted.items())

    def read(name: str | None) -> Members:
        rows = con.execute(
            f"SELECT group_key, member, {listed} FROM members WHERE dataset = ? ORDER BY 1, 2", [name]
        ).fetchall()
        return {(key, member): dict(zip(wanted, values, strict=True)) for key, member, *values in rows}

    sides = (read(base.name), read(policy.name)) if not missing else ({}, {})
    if missing or any(one["exact"] is None for side in sides for one in side.values()):
        expect_right(recipe.task.kind, columns.keys() - {*kind.measured}, f"evaluators: {recipe.evaluators}")
    return sides


def compare(
    recipe: Recipe,
    base: Recipe,
    policy: Recipe,
    sides: tuple[Members, Members],
    chosen: EvalPrompts,
    spread: Callable[[str, str], float] = diversity,
) -> Comparison:
    """The sides against each other.

    Args:
        sides: what `members` gives.
        chosen: what was drawn.
        spread: (lake, dataset) -> its diversity.
    """
    pairs = sorted(sides[0].keys() & sides[1].keys())  # all of them: one that failed has its row too

    def column(side: int, name: str) -> np.ndarray:
        values = [sides[side][pair][name] for pair in pairs]
        return np.array([np.nan if value is None else value for value in values], dtype=float)

    prompts = prompt_of(base, [group for group, _ in pairs])
    clusters = np.array([chosen.keys[index] for index in prompts])
    exact = [column(number, "exact") for number in (0, 1)]
    difference = exact[1] - exact[0]
    rewards = column(1, "reward") - column(0, "reward")
    levels = column(0, "level").astype(int)
    scores = list(TASKS[recipe.task.kind].scores)

    def side(number: int) -> Side:
        means = {key: mean(column(number, key)) for key in sides[0][pairs[0]] if key not in ("level", "failed")}
        return Side(
            failed=int(column(number, "failed").sum()),
            exact95=share_interval(exact[number], clusters),
            reward95=open_interval(column(number, "reward"), clusters),
            diversity=spread(recipe.lake, str((base, policy)[number].name)),
            scores={name: means.pop(name) for name in scores},
            **{name: means.pop(name) for name in ("exact", "lenient", "reward")},
            statistics=means,
        )

    def level(these: np.ndarray) -> Level:
        return Level(
            n=int(these.sum()),
            base=mean(exact[0][these]),
            policy=mean(exact[1][these]),
            base95=share_interval(exact[0][these], clusters[these]),
            policy95=share_interval(exact[1][these], clusters[these]),
            ci95=interval(difference[these], clusters[these]),
        )

    seen = [name for name in sides[0][pairs[0]] if name == "reward" or name.startswith(WATCHED)]
    others = {name: column(1, name) - column(0, name) for name in seen}

    def target(these: np.ndarray) -> Target:
        there = {name: values[these & np.isfinite(values)] for name, values in others.items()}
        return Target(
            n=int(these.sum()),
            sum=float(difference[these].sum()),
            others={name: Sums(n=len(values), sum=float(values.sum())) for name, values in there.items()},
        )

    before, after = side(0), side(1)
    return Comparison(
        n=len(pairs),
        base=before,
        policy=after,
        difference=Difference(
            exact=float(difference.mean()),
            ci95=interval(difference, clusters),
            lenient=mean(column(1, "lenient") - column(0, "lenient")),
            reward=mean(rewards),
            reward95=open_interval(rewards, clusters),
        ),
        diversity_ratio=after.diversity / before.diversity,
        by_level={str(number): level(levels == number) for number in np.unique(levels)},
        by_tag=by_tag(chosen.tags, prompts, level),
        by_target={str(key): target(clusters == key) for key in np.unique(clusters)},
        datasets={"base": str(base.name), "policy": str(policy.name)},
    )


def prompt_of(base: Recipe, groups: list[str]) -> np.ndarray:
    """[n] the index of each group's prompt."""
    index = {group.key: i for i, group in enumerate(g for shard in plan(base) for g in shard.groups)}
    return np.array([index[group] for group in groups])


def mean(values: np.ndarray) -> float:
    """Of those that are there; NaN where none is."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
