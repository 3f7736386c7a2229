"""The folder of what this package keeps for a user between commands: nothing that cannot be made again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """$XDG_CACHE_HOME/gpo, else ~/.cache/gpo. Raises RuntimeError for a user without a home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpo"
