"""The YAML language: typed sections that check themselves, overrides, fingerprint."""

from gpo_data.recipe.files import nearest
from gpo_data.recipe.parse import RENAMED, key_names, load, split_overrides
from gpo_data.recipe.recipe import (
    EVALUATORS,
    NO_TRAINING,
    OWN_EVALUATOR,
    SECTIONS,
    Recipe,
    fingerprint_of,
)
from gpo_data.recipe.sections import Clip, Ocr, Ray, Sampler, Task, Yolo
from gpo_data.recipe.training import Eval, Online, Train

__all__ = [
    "EVALUATORS",
    "NO_TRAINING",
    "OWN_EVALUATOR",
    "RENAMED",
    "SECTIONS",
    "Clip",
    "Eval",
    "Ocr",
    "Online",
    "Ray",
    "Recipe",
    "Sampler",
    "Task",
    "Train",
    "Yolo",
    "fingerprint_of",
    "key_names",
    "load",
    "nearest",
    "split_overrides",
]
