"""Tasks: what to draw and how it is known to be right. One file a task; a dict is the registry.

A task module has
    COLUMNS                   its target columns, {name: Arrow type}
    prompts(spec, seed)       recipe.Task -> list of group.Prompt, deterministic

What always holds: prompts are distinct; a prompt is on one side of the split by a hash of its target (split.py), not of
its sentence (`align` alone has prompts without a target); fewer prompts than `task.num_prompts` is an error; more
prompts of the same recipe begin with the same prompts, so that a dataset can grow.
"""

from gpo_data.tasks import align, count, text

TASKS = {"text": text, "count": count, "align": align}
