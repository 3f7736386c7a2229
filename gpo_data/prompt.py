"""A prompt and its target; without torch, so that a recipe can be checked and help shown at once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

Value = str | int | float | bool


@dataclass(frozen=True)
class Prompt:
    """What to draw: `target` holds the target columns, for example {"target": "KITE", "color": "red"}.

    Those of the task, and whatever else the user's file says of the prompt (tasks/extras.py).
    """

    prompt_id: str
    text: str
    target: dict[str, Value]


def prompt_id(text: str) -> str:
    """12 hex digits of blake2b of the prompt's text."""
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
