"""Prompts -> groups -> shards -> catalog -> batches: the data half of Group Preference Optimization.

from gpo_data import Lake, Recipe, Task, Sampler, Group, Evaluator
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpo_data.evaluators import Evaluator
    from gpo_data.group import Group
    from gpo_data.lake.lake import Lake
    from gpo_data.recipe import Recipe, Sampler, Task

__version__ = "0.2.0"
__all__ = ["Evaluator", "Group", "Lake", "Recipe", "Sampler", "Task"]

# Name -> module, imported when it is asked for: torch alone takes seconds.
_PUBLIC = {
    "Evaluator": "gpo_data.evaluators",
    "Group": "gpo_data.group",
    "Lake": "gpo_data.lake.lake",
    "Recipe": "gpo_data.recipe",
    "Sampler": "gpo_data.recipe",
    "Task": "gpo_data.recipe",
}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'gpo_data' has no attribute {name!r}")
