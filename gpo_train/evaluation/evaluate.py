"""The verb `eval`: policy against base on held-out prompts, the same noise seeds for both.

    exact       the word was read, the number was counted, exactly
    lenient     text: the word is in what was read; count: at most one off
    difference  policy - base, paired by (prompt, seed); its 95% interval resamples prompts, because members of one
                prompt are not independent
    diversity   root of the mean variance of latents over a group's members, mean over groups; a policy that collapses
                onto one picture a prompt loses it
    drift       entropy, edge density and dark fraction of the pictures, and the colour as asked where it is measured

Both sides are datasets in the lake like everything else (`<recipe>-eval-<hash>`, `<run>-eval-<hash>`), so SQL sees
them, drawing resumes, and a base that was drawn before is not drawn again.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from gpo_data import models
from gpo_data.audit.members import IMAGE_STATISTICS
from gpo_data.errors import UsageError
from gpo_data.generation.generate import draw
from gpo_data.generation.plan import plan
from gpo_data.lake import catalog
from gpo_data.lake.manifest import identity, measured
from gpo_data.lake.reader import diversity
from gpo_data.lake.shard import write_atomic
from gpo_data.recipe import NO_TRAINING, Eval, Recipe, fingerprint_of
from gpo_data.tasks import TASKS
from gpo_train.run import Run, settle


def evaluate(recipe: Recipe, run: Run, console: Console) -> dict[str, Any]:
    """Draw both sides, compare them, write eval.json, eval.html and eval.png into the run's folder."""
    from gpo_train.evaluation import report

    card, settings = run.card(), recipe.eval
    recipe = settle(recipe, run.folder, [])
    if not run.policy.is_dir():
        raise UsageError(f"run {run.folder}: no policy yet ({card['state']}); `gpo-train fit` finishes it")
    base, policy = eval_recipes(recipe, run.name, run.policy, settings)
    for side in (base, policy):
        console.print(f"{'policy' if side.policy else 'base'}: dataset {side.name}", soft_wrap=True)
        draw(side, console)
    found = {"run": run.name, "mode": card["mode"], "train_seconds": card.get("train_seconds")}
    sides = members(recipe, base, policy)
    found |= compare(recipe, base, policy, settings, sides)
    write_atomic(run.folder / "eval.json", json.dumps(found, indent=2).encode())
    report.terminal(found, console)
    right = [{key for key, one in side.items() if one["exact"]} for side in sides]
    grid = report.grid(recipe, str(base.name), str(policy.name), right, run.folder / "eval.png")
    page = report.page(found, grid, run.folder / "eval.html")
    console.print(f"page: {page}", soft_wrap=True)
    return found


def eval_recipes(recipe: Recipe, name: str, weights: Path, settings: Eval) -> tuple[Recipe, Recipe]:
    """The recipes of base and policy: held-out prompts, prompts x group_size pictures also where prompts are few.

    Args:
        name: what the policy's dataset is called after.
        weights: the policy's folder.
    """
    task = dataclasses.replace(recipe.task, split="heldout", num_prompts=None)
    try:
        available = len(TASKS[task.kind].prompts(task, settings.seed))
    except UsageError:  # the grammar has no end
        available = settings.prompts
    prompts = min(settings.prompts, available)
    base = dataclasses.replace(
        recipe,
        task=dataclasses.replace(task, num_prompts=prompts),
        group_size=max(2, -(-settings.prompts * settings.group_size // prompts)),
        seed=settings.seed,
        where=None,
        policy=recipe.policy,
        **NO_TRAINING,
    )
    policy = dataclasses.replace(base, policy=str(weights))
    return _named(base, f"{recipe.name}-eval"), _named(policy, f"{name}-eval")


def _named(recipe: Recipe, stem: str) -> Recipe:
    """The name says what is drawn and how it is measured: another reward is another dataset, not a refusal."""
    fields = identity(recipe, models.resolve(recipe.model, recipe.revision), plan(recipe)) | measured(recipe)
    return dataclasses.replace(recipe, name=f"{stem}-{fingerprint_of(fields)[:6]}")


Members = dict[tuple[str, int], dict[str, Any]]


def members(recipe: Recipe, base: Recipe, policy: Recipe) -> tuple[Members, Members]:
    """Of each side {(group_key, member): level, exact, lenient, reward and, where measured, statistics and colour}."""
    con = catalog.connect(recipe.lake)
    columns = {row[0] for row in con.execute("describe members").fetchall()}
    kind = TASKS[recipe.task.kind]
    if missing := kind.reads() - columns:
        raise UsageError(
            f"evaluators: what is exact in task {recipe.task.kind} is read from {', '.join(missing)}, which "
            f"nothing in {recipe.evaluators} measures; add the evaluator that does"
        )
    wanted = {"level": "level", "exact": "exact::double", "lenient": f"({kind.lenient})::double", "reward": "reward"}
    wanted |= {name: name for name in IMAGE_STATISTICS if name in columns}
    if {"color", "color_seen"} <= columns:
        wanted["color_exact"] = "(color = color_seen)::double"
    listed = ", ".join(f"{sql} AS {name}" for name, sql in wanted.items())

    def read(name: str | None) -> Members:
        rows = con.execute(
            f"SELECT group_key, member, {listed} FROM members WHERE dataset = ? AND status = 'ok' ORDER BY 1, 2", [name]
        ).fetchall()
        return {(key, member): dict(zip(wanted, values, strict=True)) for key, member, *values in rows}

    return read(base.name), read(policy.name)


def compare(
    recipe: Recipe, base: Recipe, policy: Recipe, settings: Eval, sides: tuple[Members, Members]
) -> dict[str, Any]:
    """Every number of eval.json, fractions and not percents. `sides`: what `members` gives."""
    shared = sorted(sides[0].keys() & sides[1].keys())  # a failed member has no partner

    def column(side: int, name: str) -> np.ndarray:
        values = [sides[side][key][name] for key in shared]
        return np.array([np.nan if value is None else value for value in values], dtype=float)

    groups = np.unique([key for key, _ in shared], return_inverse=True)[1]
    difference = column(1, "exact") - column(0, "exact")
    levels = column(0, "level").astype(int)
    found: dict[str, Any] = {"n": len(shared), "prompts": int(groups.max()) + 1}
    for number, name in enumerate(("base", "policy")):
        found[name] = {key: _mean(column(number, key)) for key in sides[0][shared[0]] if key != "level"}
        found[name]["diversity"] = diversity(recipe.lake, str((base, policy)[number].name))
    found["difference"] = {
        "exact": float(difference.mean()),
        "ci95": bootstrap(difference, groups, settings.bootstrap, settings.seed),
        "lenient": _mean(column(1, "lenient") - column(0, "lenient")),
    }
    found["diversity_ratio"] = found["policy"]["diversity"] / found["base"]["diversity"]
    found["by_level"] = {
        str(level): {
            "n": int((levels == level).sum()),
            "base": _mean(column(0, "exact")[levels == level]),
            "policy": _mean(column(1, "exact")[levels == level]),
        }
        for level in np.unique(levels)
    }
    found["datasets"] = {"base": base.name, "policy": policy.name}
    return found


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def bootstrap(values: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> list[float]:
    """The 95% percentile interval of the mean of `values`, resampling whole groups (prompts)."""
    count = int(groups.max()) + 1
    sums, sizes = np.bincount(groups, values, count), np.bincount(groups, minlength=count)
    picks = np.random.default_rng(seed).integers(0, count, (resamples, count))
    means = sums[picks].sum(1) / sizes[picks].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return [float(low), float(high)]
