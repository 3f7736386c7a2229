"""What a text encoder does not read of a prompt: diffusers writes all of it out, for every batch and encoder.

A record of a pipeline's logger that says "was truncated" is cut to its reason and said the first time in a process:

    prompts are longer than a text encoder reads, and the rest of them is not drawn: CLIP can only handle
    sequences up to 77 tokens
"""

from __future__ import annotations

import logging
import re

TRUNCATED = re.compile(r"part of your input was truncated because (?P<reason>.*?)(?: tokens)?:? *\[", re.DOTALL)


class SayOnce(logging.Filter):
    """Of a handler: what it lets through is changed for it and for the handlers after it."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        found = TRUNCATED.search(record.getMessage())
        if found is None:
            return True
        reason = " ".join(found["reason"].split())
        if reason in self.said:
            return False
        self.said.add(reason)
        record.msg = f"prompts are longer than a text encoder reads, and the rest of them is not drawn: {reason} tokens"
        record.args = ()
        return True


_ONCE = SayOnce()


def say_once() -> None:
    """On every handler that diffusers' loggers have now."""
    for handler in logging.getLogger("diffusers").handlers:
        handler.addFilter(_ONCE)  # a second time changes nothing
