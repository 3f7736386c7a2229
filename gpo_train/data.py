"""Groups for Lightning: a loader whose order and place are functions of the trainer's own progress.

    epoch e, step s  ->  the B groups of reader.batches(...)[s], of which this rank gets [rank::world]

What always holds: nothing but (seed, epoch, step) decides what is read, so a run killed and resumed sees the batches of
one never killed, and prefetching processes cannot run ahead of what a checkpoint says. `len` is the whole epoch's,
because Lightning counts done batches against it. A checkpoint of another snapshot is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import pyarrow as pa
import torch

from gpo_data.errors import RunError, UsageError
from gpo_data.lake import catalog
from gpo_data.lake.reader import Reader, TrainGroup, batches
from gpo_data.recipe import Recipe, Train
from gpo_data.tasks import TASKS

GroupsOf = Callable[[int], Reader]  # the reader of an epoch


def snapshot_of(recipe: Recipe, dataset: str, where: str | None, keep_dead: bool = False) -> pa.Table:
    """`catalog.snapshot` of a dataset by the recipe's lake, reward, `relabel` and `train.members_per_group`."""
    return catalog.snapshot(
        catalog.connect(recipe.lake, dataset),
        dataset,
        recipe.reward,
        where,
        keep_dead,
        recipe.relabel,
        tuple(TASKS[recipe.task.kind].columns),
        recipe.train.members_per_group,
    )


class GroupLoader:
    """An iterable of lists of TrainGroup, one list a step of this rank."""

    def __init__(self, trainer: L.Trainer, reader: Reader, settings: Train, seed: int) -> None:
        self.trainer, self.reader, self.settings, self.seed = trainer, reader, settings, seed
        self.world, self.rank = trainer.world_size, trainer.global_rank
        if settings.groups_per_step % self.world:
            raise UsageError(
                f"train.groups_per_step: {settings.groups_per_step} groups a step do not divide among {self.world} "
                f"ranks; use a multiple of {self.world}"
            )
        # Raises where there are too few groups, before anything is loaded.
        self._steps = len(batches(len(reader), settings.groups_per_step, seed, 0, settings.num_inner_epochs))

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[TrainGroup]]:
        # A generator: all this is looked up at the first batch, when Lightning has settled where a resumed run is.
        epoch = self.trainer.current_epoch
        start = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        planned = batches(
            len(self.reader), self.settings.groups_per_step, self.seed, epoch, self.settings.num_inner_epochs
        )
        mine = [step[self.rank :: self.world] for step in planned[start:]]
        workers = self.settings.workers
        yield from torch.utils.data.DataLoader(
            self.reader,
            batch_sampler=mine,
            collate_fn=list,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            # `fork` would copy the threads' locks of torch and OpenMP.
            multiprocessing_context="forkserver" if workers else None,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "digest": self.reader.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state != self.state_dict():
            raise RunError(
                f"the checkpoint was made on the snapshot {state['digest']} with seed {state['seed']}; expected "
                f"{self.reader.digest} and {self.seed}: the groups, the reward or the condition changed; "
                f"start another run with --run NAME"
            )


class GroupDataModule(L.LightningDataModule):
    """`groups_of(epoch)` gives the epoch's reader: the same one for all, where the shards are frozen."""

    def __init__(self, groups_of: GroupsOf, settings: Train, seed: int) -> None:
        super().__init__()
        self.groups_of, self.settings, self.seed = groups_of, settings, seed

    def train_dataloader(self) -> GroupLoader:
        assert self.trainer is not None
        return GroupLoader(self.trainer, self.groups_of(self.trainer.current_epoch), self.settings, self.seed)
