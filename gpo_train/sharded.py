"""Full fine-tuning of what does not fit on one device: the denoiser sharded over all ranks (torch's FSDP2).

    --train.trainer.strategy fsdp2 --train.trainer.devices 8

Every block of the denoiser is a unit: its weights are gathered for its own forward and backward pass and let go again;
gradients, AdamW's moments and a frozen reference stay sharded. It is Lightning's ModelParallelStrategy with one shard a
rank, which, unlike `fsdp`, runs on the CPU too, so that tests can try it. Checkpoints hold whole tensors: a run goes
on with another number of ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from gpo_train.module import GPOModule


class FSDP2Strategy(ModelParallelStrategy):
    """All ranks are one data-parallel group; checkpoints are one file of whole tensors."""

    def __init__(self) -> None:
        super().__init__(data_parallel_size="auto", tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


StrategyRegistry.register("fsdp2", FSDP2Strategy, description=FSDP2Strategy.__doc__ or "")


class ShardedGPOModule(GPOModule):
    """GPOModule whose denoisers are sharded before training begins."""

    def configure_model(self) -> None:
        self.strict_loading = False  # a checkpoint holds what trains; the rest is as the model's folder has it
        mesh = self.device_mesh
        assert mesh is not None
        for denoiser in (self.policy.denoiser, self.policy.frozen):
            if denoiser is not None and not isinstance(denoiser, FSDPModule):
                shard(denoiser, mesh["data_parallel"])

    def most(self, members: int) -> int:
        found: Any = self.trainer.strategy.reduce(torch.tensor(members, device=self.device), reduce_op="max")
        return int(found)


def shard(denoiser: nn.Module, mesh: DeviceMesh) -> None:
    """Shard in place: each of the blocks that diffusers names for its class, innermost first, then what is left."""
    model: Any = denoiser
    blocks = {*(model._no_split_modules or []), *(model._repeated_blocks or [])}
    for module in reversed(list(denoiser.modules())):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    fully_shard(denoiser, mesh=mesh)


def whole_state(denoiser: nn.Module) -> dict[str, Tensor]:
    """Whole tensors of a denoiser, sharded or not. Of a sharded one all ranks have to ask; rank 0 gets what trains."""
    if not isinstance(denoiser, FSDPModule):
        return denoiser.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    found: dict[str, Any] = get_model_state_dict(denoiser, options=options)
    return found


def class_name(denoiser: nn.Module) -> str:
    """Of the denoiser as diffusers knows it; sharding derives a class of its own from it."""
    return next(kind.__name__ for kind in type(denoiser).__mro__ if not issubclass(kind, FSDPModule))
