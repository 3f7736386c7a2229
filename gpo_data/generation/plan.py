"""The plan: work = wanted - committed.

`shard_id = prompt_index // groups_per_shard`, whatever the number of processes that draw. A shard is committed when
its Parquet sidecar exists, and unfinished when it holds failed members, which the next run tries again. Batches are
fixed slices of a shard's members, so a resumed shard gets the same arithmetic and the same bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from gpo_data.errors import UsageError
from gpo_data.group import group_key, member_seed
from gpo_data.prompt import Prompt
from gpo_data.recipe import Recipe
from gpo_data.tasks import TASKS


@dataclass(frozen=True)
class PlannedGroup:
    key: str
    prompt: Prompt
    seeds: list[int]


@dataclass(frozen=True)
class PlannedShard:
    shard_id: int
    groups: list[PlannedGroup]

    def batches(self, batch_size: int) -> list[list[tuple[int, int]]]:
        """Fixed slices of the shard's (group, member) pairs; batches cross prompts whatever G is."""
        flat = [(g, m) for g, group in enumerate(self.groups) for m in range(len(group.seeds))]
        return [flat[i : i + batch_size] for i in range(0, len(flat), batch_size)]


def plan(recipe: Recipe) -> list[PlannedShard]:
    """Every shard that the recipe wants, with its groups' keys, prompts and noise seeds."""
    task = recipe.task.kind
    prompts = TASKS[task].prompts(recipe.task, recipe.seed)
    if not prompts:
        raise UsageError(f"task: no {recipe.task.split} prompts; see task.prompts, task.split and task.num_prompts")
    groups = [
        PlannedGroup(
            group_key(task, index),
            prompt,
            [member_seed(recipe.seed, task, prompt.prompt_id, m) for m in range(recipe.group_size)],
        )
        for index, prompt in enumerate(prompts)
    ]
    size = recipe.groups_per_shard
    return [PlannedShard(i // size, groups[i : i + size]) for i in range(0, len(groups), size)]


def prompts_digest(shards: list[PlannedShard]) -> str:
    """16 hex digits over the prompts in order; part of a dataset's fingerprint."""
    text = "\n".join(f"{g.prompt.text}\t{sorted(g.prompt.target.items())}" for s in shards for g in s.groups)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
