"""Batches -> policy: the training half of Group Preference Optimization. It imports gpo_data, never the reverse.

from gpo_train import Policy, Train, Online, sample_noise, group_loss, GPOModule, GroupDataModule, OnlineRegeneration
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpo_data.recipe import Online, Train
    from gpo_train.data import GroupDataModule
    from gpo_train.module import GPOModule
    from gpo_train.noise import sample_noise
    from gpo_train.objectives.group import group_loss
    from gpo_train.online.callback import OnlineRegeneration
    from gpo_train.policy import Policy

__all__ = [
    "GPOModule",
    "GroupDataModule",
    "Online",
    "OnlineRegeneration",
    "Policy",
    "Train",
    "group_loss",
    "sample_noise",
]

_PUBLIC = {
    "GPOModule": "gpo_train.module",
    "GroupDataModule": "gpo_train.data",
    "Online": "gpo_data.recipe",
    "OnlineRegeneration": "gpo_train.online.callback",
    "Policy": "gpo_train.policy",
    "Train": "gpo_data.recipe",
    "group_loss": "gpo_train.objectives.group",
    "sample_noise": "gpo_train.noise",
}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'gpo_train' has no attribute {name!r}")
