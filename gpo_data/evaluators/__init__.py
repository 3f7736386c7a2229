"""Evaluators: image -> measurements; one file an evaluator."""

from gpo_data.evaluators.build import Evaluator, asked, build, chosen, columns_of, paid, try_out

__all__ = ["Evaluator", "asked", "build", "chosen", "columns_of", "paid", "try_out"]
