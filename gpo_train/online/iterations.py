"""The iterations of an online run: what each draws, where it lies, and what the lake says about it.

    lake/dataset=<run>-it0003/                  the groups, a dataset like any other
    runs/<run>/iterations/it0003/prompts.jsonl  its prompts, the task's own or chosen by SQL
    runs/<run>/iterations/it0003/policy/        the weights at its start, which drew it
    runs/<run>/iterations/it0003/summary.json   rewards, dead groups, diversity, seconds; written last

Iteration i draws with the noise seed `seed + i`. Iteration 0 has the prompts, seeds and (before the first step) the
weights of the recipe's own dataset, so its tars are the same bytes as those of `gpo-data shards`,
unless `online:` gives it fewer members or steps.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gpo_data.audit.members import IMAGE_STATISTICS
from gpo_data.errors import RunError, UsageError
from gpo_data.lake import catalog
from gpo_data.lake.document import read_document, write_document
from gpo_data.lake.durable import write_atomic
from gpo_data.lake.manifest import read_manifest
from gpo_data.lake.reader import diversity
from gpo_data.lake.shard import dataset_folder
from gpo_data.lake.sql import identifier
from gpo_data.lake.views import is_number
from gpo_data.lake.watched import watched_columns
from gpo_data.prompt import Prompt
from gpo_data.recipe import NO_TRAINING, Recipe, Task
from gpo_data.tasks import TASKS


@dataclass(frozen=True)
class Summary:
    """The content of summary.json.

    Args:
        dead: groups that have one reward.
        exact: share of the images that are right; None where the task's measurement is missing.
        diversity: inside groups; lake/reader.py.
        seconds: by phase.
        weights_changed: share of the weights whose drawn value is not the base's.
        watched: means of what watchers see.
        rewards: means of the recipe's `rewards`.
        distance: mean error of the policy above the reference's over the iteration's last epoch.
    """

    iteration: int
    groups: int
    dead: int
    images: int
    reward: float
    diversity: float
    seconds: dict[str, float]
    exact: float | None = None
    entropy: float | None = None
    edge_density: float | None = None
    dark_fraction: float | None = None
    weights_changed: float | None = None
    distance: float | None = None
    watched: dict[str, float] = field(default_factory=dict)
    rewards: dict[str, float] = field(default_factory=dict)

    def measured(self) -> dict[str, float]:
        """What there is of numbers, by name."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        found = {
            k: v for k, v in found.items() if v is not None and k not in ("iteration", "seconds", "watched", "rewards")
        }
        found |= {f"reward/{name}": value for name, value in self.rewards.items()}
        return found | {f"watched/{name}": value for name, value in self.watched.items()}


@dataclass(frozen=True)
class Iteration:
    """One iteration of the run in `folder` (runs/<run>)."""

    run: Path
    number: int

    @property
    def name(self) -> str:
        """Of its dataset."""
        return f"{self.run.name}-it{self.number:04d}"

    @property
    def folder(self) -> Path:
        return self.run / "iterations" / f"it{self.number:04d}"

    @property
    def policy(self) -> Path:
        return self.folder / "policy"

    @property
    def has_weights(self) -> bool:
        """Whether its policy is still there; `prune` of earlier states left an empty folder."""
        return self.policy.is_dir() and any(self.policy.iterdir())

    def recipe(self, base: Recipe, writer: str) -> Recipe:
        """What `gpo-data` needs to draw it, verify it or draw it again."""
        task = from_file(base.task, self.folder / "prompts.jsonl")
        policy = base.policy if writer == "base" else str(self.policy)
        return dataclasses.replace(
            base,
            name=self.name,
            task=task,
            seed=base.seed + self.number,
            policy=policy,
            **NO_TRAINING,
        )

    def summary(self) -> Summary | None:
        """What `summarise` and the training noted; None before all its groups are committed.

        A damaged one is none: nothing is drawn again, and the lake says the same again.
        """
        try:
            return read_document(Summary, self.folder / "summary.json", "")
        except (FileNotFoundError, UsageError):
            return None

    def expect_summary(self) -> Summary:
        """The summary of an iteration that has been drawn. Raises RunError where somebody took it away."""
        found = self.summary()
        if found is None:
            raise RunError(f"{self.folder / 'summary.json'}: gone or damaged while the run trains; run it again")
        return found

    def write(self, summary: Summary) -> None:
        write_document(summary, self.folder / "summary.json")

    def note(self, **facts: Any) -> None:
        self.write(dataclasses.replace(self.expect_summary(), **facts))


def history(run: Path) -> list[Summary]:
    """The summaries of all finished drawings, in order."""
    found: list[Summary] = []
    while (summary := Iteration(run, len(found)).summary()) is not None:
        found.append(summary)
    return found


def write_prompts(prompts: list[Prompt], path: Path) -> None:
    """Under the lake's own names: a column of the user's file may be called as the task's is in files."""
    rows: list[dict[str, Any]] = [{"prompt": p.text} | p.target for p in prompts]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def from_file(task: Task, path: Path) -> Task:
    """A task that draws the prompts which `write_prompts` wrote, all of them."""
    names = {"target": "target", "class": "class"}
    with suppress(OSError, ValueError), path.open(encoding="utf-8") as stream:  # whoever reads it says what is wrong
        there = json.loads(stream.readline())
        # Runs of before have the names of files.
        names |= {file: own for own, file in TASKS[task.kind].file_columns.items() if own in there}
    return dataclasses.replace(
        task,
        prompts=str(path),
        num_prompts=None,
        split="all",
        prompt_column="prompt",
        target_column=names["target"],
        class_column=names["class"],
    )


def summarise(recipe: Recipe, name: str) -> Summary:
    """What the lake says of the dataset `name`."""
    con = catalog.scored(catalog.connect(recipe.lake, name), recipe.reward, name)
    columns = {row[0]: row[1] for row in con.execute("DESCRIBE members").fetchall()}
    wanted = {"reward": "reward", "exact": "exact::DOUBLE"} | {c: c for c in IMAGE_STATISTICS if c in columns}
    watched = numbers_watched(recipe, name, columns)
    wanted |= {c: f"{identifier(c)}::DOUBLE" for c in watched}
    terms = {name: f"reward_{name}" for name, _, _ in recipe.weighted_rewards()}
    wanted |= {terms[name]: f"CAST(({sql}\n) AS DOUBLE)" for name, sql, _ in recipe.weighted_rewards()}
    table = con.sql(
        f"SELECT {', '.join(wanted.values())} FROM members WHERE dataset = ? AND status = 'ok' "
        f"ORDER BY group_key, member",
        params=[name],
    ).to_arrow_table()
    # In numpy, in a fixed order: DuckDB's parallel sums differ in the last bit from run to run, and rules read these.
    means: dict[str, Any] = {key: _mean(table.column(i)) for i, key in enumerate(wanted)}
    groups, dead = con.execute(
        "SELECT count(*), count(*) FILTER (dead) FROM groups WHERE dataset = ?", [name]
    ).fetchall()[0]
    return Summary(
        iteration=0,
        groups=groups,
        dead=dead,
        images=table.num_rows,
        diversity=diversity(recipe.lake, name),
        seconds={},
        watched={c: value for c in watched if (value := means.pop(c)) is not None},
        rewards={name: value for name, key in terms.items() if (value := means.pop(key)) is not None},
        **means,
    )


def numbers_watched(recipe: Recipe, dataset: str, columns: dict[str, str]) -> list[str]:
    """The numbers among a dataset's columns that are only watched. `columns`: {name: DuckDB's type}."""
    here = dataset_folder(recipe.lake, dataset)
    manifest = read_manifest(here)
    found = watched_columns(here, manifest, recipe.watchers)
    return [name for name in found if is_number(columns.get(name, ""))]


def _mean(column: pa.ChunkedArray) -> float | None:
    """Of the values that are there; None of none."""
    values = column.drop_null().to_numpy()
    return float(np.mean(values)) if len(values) else None


def prune(recipe: Recipe, iteration: Iteration) -> None:
    """Remove the tars and the policy of an iteration; its rows stay for SQL."""
    for tar in dataset_folder(recipe.lake, iteration.name).glob("shard-*.tar"):
        tar.unlink()
    if iteration.policy.is_dir():
        shutil.rmtree(iteration.policy)
