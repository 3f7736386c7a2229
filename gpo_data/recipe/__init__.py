"""The YAML language: typed sections, one validator, overrides, fingerprint."""

from gpo_data.recipe.recipe import (
    CLIP_SCORERS,
    EVALUATORS,
    OPEN_SECTIONS,
    OWN_EVALUATOR,
    SECTIONS,
    Recipe,
    explain,
    fingerprint_of,
    key_names,
    load,
    nearest,
    parse,
    split_overrides,
)
from gpo_data.recipe.sections import Clip, Ocr, Sampler, Task, Yolo

__all__ = [
    "CLIP_SCORERS",
    "EVALUATORS",
    "OPEN_SECTIONS",
    "OWN_EVALUATOR",
    "SECTIONS",
    "Clip",
    "Ocr",
    "Recipe",
    "Sampler",
    "Task",
    "Yolo",
    "explain",
    "fingerprint_of",
    "key_names",
    "load",
    "nearest",
    "parse",
    "split_overrides",
]
