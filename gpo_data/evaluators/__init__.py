"""Evaluators: image -> measurements; one file an evaluator."""

from gpo_data.evaluators.build import Evaluator, asked, build, columns_of, try_out

__all__ = ["Evaluator", "asked", "build", "columns_of", "try_out"]
