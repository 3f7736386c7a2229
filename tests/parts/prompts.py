"""A task's prompts."""

from gpo_data.recipe import Task
from gpo_data.tasks import TASKS


def prompts(seed=0, **spec):
    task = Task(**spec)
    return TASKS[task.kind].prompts(task, seed)
