"""Stored reference errors: of the reference, s_i needs one scalar a member and draw, so it can be asked once.

    runs/<run>/reference/epoch-0003.rank-0.safetensors      <group key>: float32 [k, n]

What always holds: an epoch's errors are computed before the policy takes its first step away from the reference and
read from the file ever after, so a resumed run sees the same ones. Each rank asks its share of the groups.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.progress import track
from safetensors.torch import load_file, save

from gpo_data.errors import RunError
from gpo_data.generation.worker import Interrupted
from gpo_data.lake.reader import Reader, TrainGroup
from gpo_data.lake.shard import write_atomic

if TYPE_CHECKING:
    from gpo_train.module import GPOModule


class StoredErrors:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._epoch, self._errors = -1, dict[str, torch.Tensor]()

    def compute(self, epoch: int, reader: Reader, module: GPOModule) -> None:
        """Ask the reference for all groups' errors at the epoch's draws, unless that was done."""
        rank, world = module.global_rank, module.trainer.world_size
        path = self.folder / f"epoch-{epoch:04d}.rank-{rank}.safetensors"
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            found = {}
            quiet = rank > 0 or not os.isatty(2)
            for index in track(range(rank, len(reader), world), "reference errors", disable=quiet, transient=True):
                if module.stopping():
                    raise Interrupted
                group = reader[index]
                errors = module.policy.reference_errors(group, module.noise_of(epoch, group))
                found[group.key] = errors.float().contiguous()
            write_atomic(path, save(found))
        module.trainer.strategy.barrier("reference errors")

    def look_up(self, epoch: int, group: TrainGroup) -> torch.Tensor:
        """[k, n] of a group in an epoch."""
        if epoch != self._epoch:
            self._errors = {}
            for file in sorted(self.folder.glob(f"epoch-{epoch:04d}.rank-*.safetensors")):
                self._errors |= load_file(file)
            self._epoch = epoch
        if group.key not in self._errors:
            raise RunError(
                f"{self.folder}: no stored reference errors of {group.key} in epoch {epoch}; they can only be computed "
                f"before the policy moves: start another run with --run NAME"
            )
        return self._errors[group.key]
