"""What is in a dataset: a page, a table in the terminal, picture grids."""

from gpo_data.audit.audit import run

__all__ = ["run"]
