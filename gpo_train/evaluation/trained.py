"""What a run was trained on, as content keys (split.py): what its evaluation leaves out.

    offline   the prompts of runs/<run>/snapshot.parquet; their targets are in the lake
    online    the prompts of runs/<run>/iterations/it*/prompts.jsonl
    average   those of the runs whose weights it averages

and those of the run whose weights it began with (`policy:`). What cannot be known is an error, not an empty set.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gpo_data.errors import UsageError
from gpo_data.lake import catalog
from gpo_data.lake.columns import begins
from gpo_data.lake.sql import identifier
from gpo_data.lake.views import columns_of
from gpo_data.prompt import Prompt
from gpo_data.recipe import Recipe, Task
from gpo_data.tasks import TASKS
from gpo_train.online.iterations import from_file
from gpo_train.run import Run


def trained_keys(recipe: Recipe, run: Run) -> set[str]:
    """The content keys that `run` was trained on; `recipe` says where the lake is. Raises UsageError."""
    manifest = run.manifest()
    if manifest.averaged is not None:
        of = [Run(run.folder.parent / name) for name in manifest.averaged.runs]
        return set().union(*(trained_keys(recipe, one) for one in of))
    kind = manifest.recipe["task"]["kind"]
    if kind not in TASKS:
        raise UsageError(f"{run.folder}/run.json: recipe.task.kind: expected {', '.join(TASKS)}, found {kind!r:.80}")
    prompts = _iterations(run, kind) if manifest.mode == "online" else _snapshot(recipe.lake, run, kind)
    keys = {TASKS[kind].key(prompt) for prompt in prompts}
    if (before := _began_with(manifest.recipe["policy"])) and before.folder != run.folder:
        keys |= trained_keys(recipe, before)
    return keys


def _iterations(run: Run, kind: str) -> list[Prompt]:
    files = sorted((run.folder / "iterations").glob("it*/prompts.jsonl"))
    return [prompt for file in files for prompt in TASKS[kind].prompts(from_file(Task(kind), file), 0)]


def _snapshot(lake: str, run: Run, kind: str) -> list[Prompt]:
    path = run.folder / "snapshot.parquet"
    try:
        trained = pq.read_table(path, columns=["dataset", "group_key", "prompt_id", "prompt"])
    except (OSError, pa.ArrowException) as error:
        raise UsageError(
            f"{path}: expected what the run was trained on, found {type(error).__name__}; `gpo-train fit` makes "
            f"it again"
        ) from None
    wanted = {tuple(row.values()) for row in trained.take(begins(trained)).drop_columns("group_key").to_pylist()}
    datasets = sorted({dataset for dataset, _, _ in wanted})
    con = catalog.connect(lake, datasets)
    there = columns_of(con, "SELECT * FROM drawn_members")
    columns = [name for name in TASKS[kind].columns if name in there]
    rows = con.execute(
        f"SELECT DISTINCT dataset, prompt_id, prompt, {', '.join(map(identifier, columns))} FROM drawn_members "
        "WHERE list_contains(?, dataset)",
        [datasets],
    ).fetchall()
    found = {(dataset, id, text): values for dataset, id, text, *values in rows}
    if missing := sorted({dataset for dataset, *_ in wanted - found.keys()}):
        raise UsageError(
            f"run {run.folder} was trained on {', '.join(missing)}, and the lake {lake} does not have all of its "
            f"prompts: expected them, to leave their targets out; set lake: to the one that has, or draw it again "
            f"(`gpo-data shards`)"
        )
    return [
        Prompt(id, text, {k: v for k, v in zip(columns, found[dataset, id, text], strict=True) if v is not None})
        for dataset, id, text in wanted
    ]


def _began_with(policy: str | None) -> Run | None:
    """The run that a policy's folder is of, runs/<run>/policy or runs/<run>/iterations/it0003/policy."""
    folders = Path(policy).resolve().parents if policy else ()
    return next((Run(folder) for folder in folders if (folder / "run.json").is_file()), None)
