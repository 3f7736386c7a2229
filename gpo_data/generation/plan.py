"""The plan: work = wanted - committed.

`shard_id = prompt_index // groups_per_shard`, whatever the number of processes that draw. A shard is committed when
its Parquet sidecar exists, and unfinished when it holds failed members, which the next run tries again. Batches are
fixed slices of a shard's members, so a resumed shard gets the same arithmetic and the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from gpo_data.errors import UsageError
from gpo_data.group import group_key, member_seed
from gpo_data.prompt import Prompt
from gpo_data.recipe import Recipe
from gpo_data.tasks import TASKS, extras


@dataclass(frozen=True)
class PlannedGroup:
    """`columns`: the dataset's target columns, the task's and those of the user's file."""

    key: str
    prompt: Prompt
    seeds: list[int]
    columns: dict[str, pa.DataType] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class PlannedShard:
    shard_id: int
    groups: list[PlannedGroup]

    @property
    def columns(self) -> dict[str, pa.DataType]:
        return self.groups[0].columns

    def batches(self, batch_size: int) -> list[list[tuple[int, int]]]:
        """Fixed slices of the shard's (group, member) pairs; batches cross prompts whatever G is."""
        flat = [(g, m) for g, group in enumerate(self.groups) for m in range(len(group.seeds))]
        return [flat[i : i + batch_size] for i in range(0, len(flat), batch_size)]

    def parts(self, batch_size: int) -> list[list[int]]:
        """Numbers of groups that share batches with each other and with no other group."""
        found, members = list[list[int]](), 0
        for g, group in enumerate(self.groups):
            if members % batch_size == 0:
                found.append([])
            found[-1].append(g)
            members += len(group.seeds)
        return found


def plan(recipe: Recipe) -> list[PlannedShard]:
    """Every shard that the recipe wants, with its groups' keys, prompts and noise seeds."""
    task = recipe.task.kind
    prompts = TASKS[task].prompts(recipe.task, recipe.seed)
    if not prompts:
        raise UsageError(f"task: no {recipe.task.split} prompts; see task.prompts, task.split and task.num_prompts")
    columns = extras.types_of(prompts, TASKS[task].columns)
    groups = [
        PlannedGroup(
            group_key(task, index),
            prompt,
            [member_seed(recipe.seed, task, prompt.prompt_id, m) for m in range(recipe.group_size)],
            columns,
        )
        for index, prompt in enumerate(prompts)
    ]
    size = recipe.groups_per_shard
    return [PlannedShard(i // size, groups[i : i + size]) for i in range(0, len(groups), size)]


def prompts_digest(shards: Sequence[PlannedShard], task: str) -> str:
    """16 hex digits over the prompts in order, with the task's targets; part of a dataset's fingerprint."""
    return prompts_digests(shards, task)[-1]


def prompts_digests(shards: Sequence[PlannedShard], task: str) -> list[str]:
    """`prompts_digest` of the first prompt, of the first two, ...: what a dataset may have been that has grown."""
    state, found = hashlib.blake2b(digest_size=8), list[str]()
    columns = TASKS[task].columns
    for group in (group for shard in shards for group in shard.groups):
        target = sorted((name, value) for name, value in group.prompt.target.items() if name in columns)
        state.update(f"{chr(10) if found else ''}{group.prompt.text}\t{target}".encode())
        found.append(state.hexdigest())
    return found
