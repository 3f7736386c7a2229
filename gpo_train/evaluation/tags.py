"""The tags of a file of prompts: columns that sort its prompts into a few kinds, as `tag`, `category`, `length` do.

A column is one where it travels with the prompts (gpo_data/tasks/extras.py), has 2 to MOST values, and each value has
MEMBERS prompts on average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from gpo_data.prompt import Prompt

MOST, MEMBERS = 60, 3
T = TypeVar("T")


def tags_of(prompts: Sequence[Prompt], own: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """{column: {value: indices of its prompts}}, the values in the order of the file.

    `own`: the task's target columns, which say what to draw and not which kind it is.
    """
    names = sorted({name for prompt in prompts for name in prompt.target} - set(own))
    found: dict[str, dict[str, list[int]]] = {}
    for name in names:
        values: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            if name in prompt.target:
                values.setdefault(str(prompt.target[name]), []).append(index)
        if 2 <= len(values) <= MOST and sum(map(len, values.values())) >= MEMBERS * len(values):
            found[name] = values
    return found


def by_tag(
    tags: dict[str, dict[str, list[int]]], prompt_of: np.ndarray, one: Callable[[np.ndarray], T]
) -> dict[str, dict[str, T]]:
    """What `one` makes of the pictures of each value.

    Args:
        prompt_of: [n] the prompt's index of each picture.
    """
    return {
        name: {value: one(np.isin(prompt_of, indices)) for value, indices in values.items()}
        for name, values in tags.items()
    }
