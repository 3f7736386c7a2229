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
    watching,
)

__all__ = [
    "Evaluator",
    "asked",
    "build",
    "check_classes",
    "chosen",
    "close",
    "columns_of",
    "paid",
    "refuse_same_columns",
    "try_out",
    "watching",
]
