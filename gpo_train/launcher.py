"""Who started the ranks of a training, and which of them this process is, before there is a trainer.

one device on one node    itself: the first rank of one, whatever number it has among a job's other processes
torchrun, SLURM (srun)    as these say; nothing is requeued, as SIGUSR1 asks a run to stop (gpo_data/signals.py)
RANK and WORLD_SIZE       any launcher that sets what torch's env:// asks for
else                      Lightning, for this machine; it knows LSF and MPI as well
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only

from gpo_data.errors import UsageError


class Alone(LightningEnvironment):
    """Of one rank: the job's numbers are not its own."""

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return 0


class TorchEnvironment(TorchElasticEnvironment):
    """torchrun's variables from another launcher, which may leave out LOCAL_RANK: env:// does not ask for it."""

    def __init__(self, devices: int) -> None:
        super().__init__()
        self.devices = devices

    def local_rank(self) -> int:
        return int(os.environ.get("LOCAL_RANK", self.global_rank() % self.devices))


def environment(trainer: dict[str, Any]) -> ClusterEnvironment | None:
    """For lightning.Trainer with these options; None: it finds it by itself. Raises UsageError."""
    devices = devices_of(trainer)
    every = str(trainer.get("devices", 1)) in ("auto", "-1") and torch.cuda.device_count() > 1
    if ranks_of(trainer) == 1 and not every:
        return Alone()
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect():
        _expect(["SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"], "SLURM: start a rank a device with srun")
        try:
            return SLURMEnvironment(auto_requeue=False)
        except RuntimeError as error:
            raise UsageError(f"SLURM: {error}") from None
    if {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        _expect(["MASTER_ADDR", "MASTER_PORT"], "RANK and WORLD_SIZE are set: set all that torch's env:// asks for")
        return TorchEnvironment(devices)
    return None


def take_rank(trainer: dict[str, Any]) -> None:
    """Have Lightning and its loggers know this process's rank from now on. Raises UsageError."""
    if (launched := environment(trainer)) is not None:
        cast(Any, rank_zero_only).rank = launched.global_rank()


def rank() -> int:
    return int(getattr(rank_zero_only, "rank", 0))


def ranks_of(trainer: dict[str, Any]) -> int:
    """Of all nodes, as far as it is said: of `devices: auto` one a node."""
    nodes = str(trainer.get("num_nodes", 1))
    return devices_of(trainer) * (int(nodes) if nodes.isdecimal() else 1)


def devices_of(trainer: dict[str, Any]) -> int:
    """Ranks on this machine that compute at once."""
    devices: Any = trainer.get("devices", 1)
    return len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdecimal() else 1


def _expect(names: Sequence[str], told: str) -> None:
    if missing := [name for name in names if name not in os.environ]:
        raise UsageError(f"{told}, or unset its variables; expected {', '.join(missing)}, found none")
