"""Evaluators: image -> measurements; one file an evaluator."""

from gpo_data.evaluators.build import (
    Evaluator,
    asked,
    build,
    check_classes,
    chosen,
    close,
    columns_of,
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
    "paid",
    "refuse_same_columns",
    "try_out",
    "versions_of",
    "watching",
]
