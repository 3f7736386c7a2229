"""Evaluators: image -> measurements; one file an evaluator."""

from gpo_data.evaluators.build import (
    Evaluator,
    asked,
    build,
    check_classes,
    chosen,
    close,
    columns_of,
    on_driver,
    paid,
    refuse_same_columns,
    try_out,
    versions_of,
    watching,
)
from gpo_data.evaluators.questions import expect_questions

__all__ = [
    "Evaluator",
    "asked",
    "build",
    "check_classes",
    "chosen",
    "close",
    "columns_of",
    "expect_questions",
    "on_driver",
    "paid",
    "refuse_same_columns",
    "try_out",
    "versions_of",
    "watching",
]
