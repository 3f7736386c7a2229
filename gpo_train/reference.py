"""Stored reference errors: of the reference, s_i needs one scalar a member and noise sample, so it can be asked once.

    runs/<run>/reference/epoch-0003.rank-0-of-2.safetensors      <group key>: float32 [k, n]
                                                                 metadata: epoch, snapshot, checksum

What always holds: an epoch's errors are computed before the policy takes its first step away from the reference and
read from the files ever after, so a resumed run sees the same ones. Each rank asks its share of the groups. A file that
is damaged, or of another epoch or snapshot, is no file: what it lacks is asked again where that is exact. At the
beginning of an epoch that settles them it is, because the policy that begins it is in the checkpoint; later it is of a
reference that never moves, which is the base (module.py). Else it is an error.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from gpo_data.errors import Interrupted, RunError
from gpo_data.lake.durable import write_atomic
from gpo_data.lake.reader import Reader, TrainGroup

Errors = dict[str, torch.Tensor]


class StoredErrors:
    """Of the run whose `folder` they lie in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._epoch, self._snapshot, self._errors = -1, "", Errors()

    def compute(
        self,
        epoch: int,
        reader: Reader,
        ask: Callable[[TrainGroup], torch.Tensor],
        rank: int,
        world: int,
        stopping: Callable[[], bool],
        barrier: Callable[[], object],
    ) -> None:
        """Ask the reference for what an epoch's files lack; all ranks call it. Raises Interrupted.

        Args:
            ask: errors [k, n] of a group at the epoch's noise samples.
        """
        have = self._read(epoch, reader.digest)
        lacking = [i for i, key in enumerate(reader.places.keys) if key not in have]
        barrier()  # before anybody writes: all ranks have seen the same
        # Each rank asks as many, the last ones some twice: what is sharded is gathered by all of them together.
        mine = [lacking[i % len(lacking)] for i in range(rank, -(-len(lacking) // world) * world, world)]
        found = Errors()
        quiet = rank > 0 or not os.isatty(2)
        groups = reader.ahead(mine)
        for group in track(groups, "reference errors", len(mine), disable=quiet, transient=True):
            if stopping():
                raise Interrupted
            found[group.key] = ask(group).float().contiguous()
        if found:
            self._write(f"epoch-{epoch:04d}.rank-{rank}-of-{world}.safetensors", epoch, reader.digest, have | found)
        barrier()

    def look_up(self, epoch: int, snapshot: str, group: TrainGroup) -> torch.Tensor:
        """[k, n] of a group in an epoch on a snapshot."""
        if (epoch, snapshot) != (self._epoch, self._snapshot):
            self._epoch, self._snapshot, self._errors = epoch, snapshot, self._read(epoch, snapshot)
        if group.key not in self._errors:
            raise RunError(
                f"{self.folder}: no stored reference errors of {group.key} in epoch {epoch}: their file is gone or "
                f"damaged, and of this reference they can only be computed before the policy moves. The checkpoint "
                f"before this epoch, if it is there, computes them again when the later one is removed; else start "
                f"another run with --run NAME"
            )
        return self._errors[group.key]

    def _read(self, epoch: int, snapshot: str) -> Errors:
        """What the whole files of an epoch hold."""
        found = Errors()
        for file in sorted(self.folder.glob(f"epoch-{epoch:04d}.*.safetensors")):
            try:
                with safe_open(file, "pt") as stored:
                    facts, errors = (
                        stored.metadata() or {},
                        {key: stored.get_tensor(key) for key in sorted(stored.keys())},
                    )
            except (SafetensorError, OSError):
                continue
            if facts == _facts(epoch, snapshot, errors):
                found |= errors
        return found

    def _write(self, name: str, epoch: int, snapshot: str, errors: Errors) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / name, save(errors, _facts(epoch, snapshot, errors)))


def _facts(epoch: int, snapshot: str, errors: Errors) -> dict[str, str]:
    state = hashlib.blake2b(digest_size=16)
    for key in sorted(errors):
        state.update(f"{key} {tuple(errors[key].shape)}\n".encode())
        state.update(errors[key].numpy().tobytes())
    return {"epoch": str(epoch), "snapshot": snapshot, "checksum": state.hexdigest()}
