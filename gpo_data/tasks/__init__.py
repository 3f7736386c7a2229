"""Tasks: what to draw and how it is known to be right. One file a task (base.py says what it makes) and a line here.

Prompts are distinct; a prompt is on one side of the split by a hash of its target (split.py), not of
its sentence (`align` alone has prompts without a target); fewer prompts than `task.num_prompts` is an error; more
prompts of the same recipe begin with the same prompts, so that a dataset can grow.
"""

from gpo_data.tasks import align, compose, count, text
from gpo_data.tasks.base import TaskKind

__all__ = ["TARGETS", "TASKS", "TaskKind"]

TASKS: dict[str, TaskKind] = {"text": text.TASK, "count": count.TASK, "align": align.TASK, "compose": compose.TASK}
# {column of any task: its type}
TARGETS = {name: type for kind in TASKS.values() for name, type in kind.columns.items()}
