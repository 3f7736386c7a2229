"""`eval --base-only`: a model alone on a file of prompts or a part of the split, without any run of training.

Each prompt is drawn `eval.group_size` times. What is right, nearly right and rewarded, in all and by the file's own
tags (tags.py), with 95% intervals over targets (interval.py). The dataset is that of an evaluation's base: a later
`eval` of a run does not draw it again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpo_data.generation.generate import draw
from gpo_data.lake.document import write_document
from gpo_data.recipe import Recipe
from gpo_data.tasks import TASKS
from gpo_train.evaluation import evaluate, report
from gpo_train.evaluation.interval import open_interval, share_interval
from gpo_train.evaluation.prompts import choose
from gpo_train.evaluation.result import Alone, Figures
from gpo_train.evaluation.tags import by_tag


def evaluate_alone(recipe: Recipe, folder: Path, console: Console) -> Alone:
    """Draw what is missing, print the table, write eval.json or a benchmark's into `folder`. Raises UsageError."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = choose(recipe, set(), folder)
    base, _ = evaluate.eval_recipes(recipe, chosen.task, str(recipe.name), Path(), alone=True)
    console.print(f"dataset {base.name}", soft_wrap=True)
    draw(base, console, measuring=evaluate.expect_measured(recipe))
    members = evaluate.members(recipe, base, base)[0]
    pairs = sorted(members)
    prompt_of = evaluate.prompt_of(base, [group for group, _ in pairs])
    clusters = np.array([chosen.keys[index] for index in prompt_of])
    scores = list(TASKS[recipe.task.kind].scores)

    def figures(chosen_ones: np.ndarray) -> Figures:
        rows = [members[pair] for pair, one in zip(pairs, chosen_ones, strict=True) if one]
        of = clusters[chosen_ones]
        exact = np.array([float(row["exact"]) for row in rows])
        rewards = np.array([np.nan if row["reward"] is None else row["reward"] for row in rows], dtype=float)
        return Figures(
            n=len(rows),
            exact=float(exact.mean()),
            exact95=share_interval(exact, of),
            lenient=float(np.mean([float(row["lenient"]) for row in rows])),
            reward=evaluate.mean(rewards),
            reward95=open_interval(rewards, of),
            failed=sum(bool(row["failed"]) for row in rows),
            scores={name: float(np.mean([row[name] for row in rows])) for name in scores},
        )

    found = Alone(
        **vars(chosen.described()),
        model=recipe.model if recipe.policy is None else f"{recipe.model} with {recipe.policy}",
        reward=recipe.reward,
        all=figures(np.ones(len(pairs), bool)),
        by_tag=by_tag(chosen.tags, prompt_of, figures),
        dataset=str(base.name),
    )
    path = folder / f"{found.stem}.json"
    write_document(found, path)
    console.print(table(found))
    console.print(f"figures: {path}", soft_wrap=True)
    return found


def table(found: Alone) -> Table:
    names = list(found.all.scores)
    title = f"{found.model}: {found.all.n} images, {report.prompts_of(found)}"
    made = Table("", "images", "exact", "95%", "lenient", "reward", *names, "failed", title=title, title_justify="left")
    rows = [("all", found.all)]
    for column, values in found.by_tag.items():
        rows += [(f"{column}: {value}", one) for value, one in values.items()]
    for what, one in rows:
        low, high = one.exact95
        made.add_row(
            Text(what),
            str(one.n),
            f"{100 * one.exact:.1f}%",
            f"[{100 * low:.1f}, {100 * high:.1f}]",
            f"{100 * one.lenient:.1f}%",
            f"{one.reward:.3f}",
            *(f"{100 * one.scores[name]:.1f}%" for name in names),
            str(one.failed),
        )
    return made
