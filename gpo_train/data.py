"""Groups for Lightning: what an epoch reads, from which of its steps on.

    epoch e, step s  ->  the B groups of reader.batches(...)[s], of which this rank gets [rank::world]

What always holds: nothing but (seed, epoch, step) decides what is read, so a run killed and resumed sees the batches of
one never killed, and prefetching processes cannot run ahead of what a checkpoint says. The place in the run is kept
here and not in Lightning's loops, which a resumed run finds at the beginning of an epoch as long as what is left of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow as pa
import torch

from gpo_data.errors import RunError, UsageError
from gpo_data.lake import catalog
from gpo_data.lake.advantage import Scale
from gpo_data.lake.cache import Cache, bytes_of
from gpo_data.lake.manifest import read_manifest
from gpo_data.lake.reader import Reader, TrainGroup, batches
from gpo_data.lake.shard import dataset_folder
from gpo_data.lake.snapshot import take_snapshot
from gpo_data.lake.watched import refuse_watched, watched_columns
from gpo_data.lifeline import end_with_parent
from gpo_data.recipe import Recipe, Train
from gpo_data.tasks import TASKS

Prepare = Callable[[int], Reader | None]  # makes sure that an epoch's groups are there; None: the run is to end


def snapshot_of(recipe: Recipe, dataset: str) -> pa.Table:
    """`take_snapshot` by the recipe's lake, reward, `where`, `relabel`, and what `train:` says of advantages.

    `objective: sft` compares with nothing: it takes members by `sft_reward`, dead groups' too.

    Raises UsageError, as for a reward that reads what is only watched.
    """
    here = dataset_folder(recipe.lake, dataset)
    manifest = read_manifest(here) if (here / "dataset.json").is_file() else None
    watched = watched_columns(here, manifest, recipe.watchers)
    train, where, sft = recipe.train, recipe.where, recipe.train.objective == "sft"
    if sft:
        where = f"({where or 'true'}\n) AND reward >= {train.sft_reward}"
    deciding = [("reward", recipe.reward), *(("train.kl_judges", judge) for judge in train.kl_judges)]
    if train.diversity_bonus is not None:
        deciding.append(("train.diversity_bonus", train.diversity_bonus))
    for key, expression in deciding:
        refuse_watched(expression, watched, key)
    return take_snapshot(
        catalog.connect(recipe.lake, dataset),
        dataset,
        recipe.reward,
        where,
        sft,
        recipe.relabel,
        tuple(TASKS[recipe.task.kind].columns),
        train.members_per_group,
        Scale(train.advantage, train.advantage_epsilon, train.advantage_clip),
        recipe.weighted_rewards(),
        train.diversity_bonus,
        train.kl_judges,
        train.kl_share,
    )


def cache_of(settings: Train) -> Cache | None:
    """Where groups from an object store are kept, for the epochs that follow."""
    if settings.cache is None:
        return None
    return Cache(Path(settings.cache["folder"]).expanduser(), bytes_of("train.cache.size", settings.cache["size"]))


def expect_ranks(settings: Train, world: int) -> None:
    """Raise UsageError unless a step's groups divide among so many."""
    if (per_step := settings.groups_per_step) % world:
        raise UsageError(
            f"train.groups_per_step: {per_step} groups a step do not divide among {world} ranks; "
            f"use a multiple of {world}"
        )


@dataclasses.dataclass(frozen=True)
class Position:
    """The step that comes next; `digest` of the snapshot that the steps before it in the epoch were taken on."""

    epoch: int = 0
    step: int = 0
    digest: str = ""


class GroupLoader:
    """An iterable of lists of TrainGroup: the groups at `steps`, one list a step."""

    def __init__(self, reader: Reader | None, steps: list[list[int]], workers: int) -> None:
        self.reader, self.steps, self.workers = reader, steps, workers

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[TrainGroup]]:
        # A generator: Lightning asks for an iterator twice, and worker processes start at the first batch.
        if self.reader is None:
            return
        if self.reader.remote:  # waits for a network and computes nothing: threads read ahead
            groups = self.reader.ahead(index for step in self.steps for index in step)
            yield from ([next(groups) for _ in step] for step in self.steps)
            return
        yield from torch.utils.data.DataLoader(
            self.reader,
            batch_sampler=self.steps,
            collate_fn=list,
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            # `fork` would copy the threads' locks of torch and OpenMP.
            multiprocessing_context="forkserver" if self.workers else None,
            worker_init_fn=end_with_parent,
        )


class GroupDataModule(L.LightningDataModule):
    """Asks `prepare` for an epoch's groups at its beginning, and keeps the place in the run."""

    def __init__(self, prepare: Prepare, settings: Train, seed: int) -> None:
        super().__init__()
        self.prepare, self.settings, self.seed = prepare, settings, seed
        self.position, self.steps = Position(), 0  # steps of the epoch, those done before a resumption too

    def train_dataloader(self) -> GroupLoader:
        assert self.trainer is not None
        epoch, at, world = self.trainer.current_epoch, self.position, self.trainer.world_size
        expect_ranks(self.settings, world)
        # Lightning asks before it looks whether an epoch is left: after its last step a killed run has none.
        reader = self.prepare(epoch) if epoch < (self.trainer.max_epochs or 0) else None
        if reader is None:
            return GroupLoader(None, [], 0)
        start = at.step if at.epoch == epoch else 0
        if start and reader.digest != at.digest:
            raise RunError(
                f"the first {start} steps of epoch {epoch} were taken on the snapshot {at.digest}; expected it, found "
                f"{reader.digest}: the groups, the reward or the condition changed; start another run with --run NAME"
            )
        planned = batches(len(reader), self.settings.groups_per_step, self.seed, epoch, self.settings.num_inner_epochs)
        self.position, self.steps = Position(epoch, start, reader.digest), len(planned)
        mine = [step[self.trainer.global_rank :: world] for step in planned[start:]]
        return GroupLoader(reader, mine, self.settings.workers)

    def step_done(self) -> None:
        """Move on by an optimiser step."""
        at = self.position
        after = dataclasses.replace(at, step=at.step + 1)
        self.position = Position(at.epoch + 1) if after.step == self.steps else after

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self.position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = Position(**state)
