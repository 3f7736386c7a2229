"""Which prompts an iteration draws, and what the lake must still have for that; see Online.prompt_selection."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gpo_data.errors import UsageError, few
from gpo_data.lake import catalog
from gpo_data.lake.files import open_lake
from gpo_data.prompt import Prompt
from gpo_data.recipe import Online, Recipe
from gpo_data.tasks import TASKS
from gpo_train.online.iterations import Iteration

POOL = 4  # times the prompts of an iteration: what `unmastered` chooses from


def drawn(recipe: Recipe, run: Path, numbers: range) -> list[str]:
    """The datasets of these iterations. Raises UsageError where one has been taken away: the run would go on otherwise
    than one that has it, or ask for what only the policy of then can draw."""
    names = [Iteration(run, i).name for i in numbers]
    there = {*open_lake(None, recipe.lake).of(names).datasets()} if names else set()
    if gone := [name for name in names if name not in there]:
        raise UsageError(
            f"run {run}: it has drawn {few(gone)}, and lake {recipe.lake} has it no longer: put it back there, or "
            f"begin anew with --run NAME; `online.keep_last` keeps the rows alone"
        )
    return names


def choose(recipe: Recipe, online: Online, iteration: Iteration) -> list[Prompt]:
    """The prompts of an iteration; see Online.prompt_selection. Raises UsageError."""
    count = online.prompts or recipe.task.num_prompts or len(_all(recipe, None))
    if online.prompt_selection == "same":
        return first_prompts(recipe, count, count, "online.prompts")
    if online.prompt_selection == "next":
        start = iteration.number * count
        # Where there are fewer they come round again.
        found = first_prompts(recipe, start + count, count, "online.prompts")
        return [found[i % len(found)] for i in range(start, start + count)]
    least, key = (online.pool, "online.pool") if online.pool else (count, "online.prompts")
    pool = first_prompts(recipe, online.pool or POOL * count, least, key)
    con = catalog.connect(recipe.lake, drawn(recipe, iteration.run, range(iteration.number)))
    known = dict(con.execute("SELECT prompt, arg_max(std, dataset) FROM groups GROUP BY prompt").fetchall())
    ranked = sorted(range(len(pool)), key=lambda i: (pool[i].text in known, -(known.get(pool[i].text) or 0.0), i))
    return [pool[i] for i in sorted(ranked[:count])]


def first_prompts(recipe: Recipe, count: int, least: int = 1, key: str = "task.num_prompts") -> list[Prompt]:
    """The task's first prompts, or all where there are fewer. Raises UsageError where there are fewer than `least`."""
    try:
        return _all(recipe, count)
    except UsageError:
        found = _all(recipe, None)
    if len(found) < least:
        raise UsageError(f"{key}: expected at most {len(found)}, which is how many prompts there are, found {least}")
    return found


def _all(recipe: Recipe, count: int | None) -> list[Prompt]:
    task = dataclasses.replace(recipe.task, num_prompts=count)
    return TASKS[task.kind].prompts(task, recipe.seed)
