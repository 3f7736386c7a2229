"""The verb `prompts`: what a recipe's prompts were understood to ask for, as a table, before anything is drawn."""

from __future__ import annotations

import dataclasses
import json

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpo_data import evaluators
from gpo_data.errors import RunError, UsageError
from gpo_data.generation.reward import expect_declared_reward
from gpo_data.prompt import Prompt
from gpo_data.recipe import Recipe
from gpo_data.tasks import TASKS, extras, sources

WIDEST = 60  # characters of a value


def show(recipe: Recipe, limit: int, console: Console) -> None:
    """Print them. Raises UsageError where the recipe could not draw them: a bad line, a reward that reads what nothing
    sees, a class that nothing detects.

    `limit`: how many; the others are counted.
    """
    kind = TASKS[recipe.task.kind]
    prompts = kind.prompts(recipe.task, recipe.seed)
    types = extras.types_of(prompts, kind.columns)
    own = [name for name in kind.columns if any(name in prompt.target for prompt in prompts)]
    travelling = [name for name in types if name not in kind.columns]
    console.print(understood(prompts[:limit], own))
    more = f", {len(prompts) - limit:,} more (--limit)" if len(prompts) > limit else ""
    keys = len({kind.key(prompt) for prompt in prompts})
    console.print(f"{len(prompts):,} prompts of {keys:,} targets{more}", soft_wrap=True)
    if recipe.task.prompts is not None:
        if repeated := sources.read(recipe.task).repeated:
            done = "merged into" if recipe.task.duplicates == "merge" else "dropped for"
            console.print(f"{repeated:,} rows repeat a prompt and were {done} the first", soft_wrap=True)
        for name in travelling:
            console.print(f"column {name} ({types[name]}): {_examples(prompts, name)}", soft_wrap=True, markup=False)
    expect_declared_reward(recipe, types)
    once = {name: dataclasses.replace(getattr(recipe, name), retries=0) for name in ("http", "vlm")}
    try:  # no server is waited for
        chosen = evaluators.build(dataclasses.replace(recipe, **once), alone=True)
    except (RunError, UsageError) as error:  # what it takes to draw is not what it takes to read a file
        console.print(f"not checked against the evaluators: {error}", soft_wrap=True, markup=False)
        return
    evaluators.refuse_same_columns(f"task.prompts: {recipe.task.prompts}", types, chosen)
    evaluators.check_classes(chosen, prompts, kind.classes)


def understood(prompts: list[Prompt], columns: list[str]) -> Table:
    table = Table("prompt", *columns)
    for prompt in prompts:
        values = [prompt.target.get(name) for name in columns]
        table.add_row(*(Text(_short(value)) for value in (prompt.text, *values)))
    return table


def _examples(prompts: list[Prompt], name: str) -> str:
    """A column's most different values, or the first."""
    values = list(dict.fromkeys(prompt.target[name] for prompt in prompts if name in prompt.target))
    return ", ".join(_short(value) for value in values[:5]) + (f", ... ({len(values):,})" if len(values) > 5 else "")


def _short(value: object) -> str:
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    text = text.replace("\n", " | ")
    return text if len(text) <= WIDEST else f"{text[:WIDEST]}..."
