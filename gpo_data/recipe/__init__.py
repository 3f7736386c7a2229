"""The YAML language: typed sections that check themselves, overrides, fingerprint."""

from gpo_data.recipe.evaluation import Eval
from gpo_data.recipe.evaluators import Clip, Http, Ocr, Vlm, Yolo
from gpo_data.recipe.files import nearest
from gpo_data.recipe.online import Online
from gpo_data.recipe.parse import RENAMED, key_names, load, split_overrides
from gpo_data.recipe.recipe import (
    BEHIND_HTTP,
    EVALUATORS,
    NO_TRAINING,
    OWN_EVALUATOR,
    SECTIONS,
    Recipe,
    fingerprint_of,
    section_of,
)
from gpo_data.recipe.sections import Ray, Sampler, Task
from gpo_data.recipe.training import Train
from gpo_data.recipe.trust import expect_no_code

__all__ = [
    "BEHIND_HTTP",
    "EVALUATORS",
    "NO_TRAINING",
    "OWN_EVALUATOR",
    "RENAMED",
    "SECTIONS",
    "Clip",
    "Eval",
    "Http",
    "Ocr",
    "Online",
    "Ray",
    "Recipe",
    "Sampler",
    "Task",
    "Train",
    "Vlm",
    "Yolo",
    "expect_no_code",
    "fingerprint_of",
    "key_names",
    "load",
    "nearest",
    "section_of",
    "split_overrides",
]
