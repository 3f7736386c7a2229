"""What an evaluator's version is made of: letters that fit into the name of a folder, measures/<name>@<version>/."""

from __future__ import annotations

import re


def as_version(text: str) -> str:
    """Each letter that does not fit becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)
