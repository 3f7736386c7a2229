"""What is said before a model is fetched from the hub: its licence and its size, as the hub states them."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Sequence
from typing import Any

SECONDS = 5.0  # that the hub may take to say it


def announce(key: str, repository: str, patterns: Sequence[str]) -> None:
    """One line on stderr; `patterns`: of the files that would do, of which the first that there is gets fetched.

    Raises what the hub's client raises where the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    info = HfApi().model_info(repository, files_metadata=True, timeout=SECONDS)
    print(f"{key}: fetching {repository}: {licence_and_size(info, patterns)}", file=sys.stderr)


def licence_and_size(info: Any, patterns: Sequence[str]) -> str:
    """Of the hub's ModelInfo."""
    licence = (info.card_data or {}).get("license") or "not stated, see its page"
    for pattern in patterns:
        sizes = [one.size or 0 for one in info.siblings or [] if fnmatch.fnmatch(one.rfilename, pattern)]
        if sizes:
            size = sum(sizes)
            return (
                f"licence {licence}, {size / 1e9:.1f} GB" if size >= 1e8 else f"licence {licence}, {size / 1e6:.1f} MB"
            )
    return f"licence {licence}"
