"""Evaluators: image -> measurements; one file an evaluator."""

from gpo_data.evaluators.build import Evaluator, asked, build, columns_of

__all__ = ["Evaluator", "asked", "build", "columns_of"]
