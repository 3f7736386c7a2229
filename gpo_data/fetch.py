"""Before something is fetched from the hub: whether the hub has it, and what it says of its licence and size."""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

SECONDS = 5.0  # that the hub may take to say it


def expect_there(repository: str, file: str, revision: str | None = None) -> None:
    """Raise what the hub's client raises where a file is neither in its cache nor on a hub that answers: at once.

    The client itself asks six times within half a minute, and says so each time.
    """
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(repository, file, revision=revision), str):
        _ask_once(repository, file, revision=revision)


def load_dataset(name: str, **options: Any) -> Any:
    """`datasets.load_dataset`, which fails at once where there is no hub, unless the data set is in its cache."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not Path(name).exists() and not _cached(name):
        with suppress(HfHubHTTPError):  # it answers; the loader knows better what it says
            _ask_once(name, ".gitattributes", repo_type="dataset")
    return datasets.load_dataset(name, **options)


def _ask_once(repository: str, file: str, **where: str | None) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    get_hf_file_metadata(hf_hub_url(repository, file, **where), timeout=SECONDS)


def _cached(name: str) -> bool:
    """Whether `datasets` has it from an earlier time: Org/PickAPic as Org___pick_a_pic."""
    import datasets

    def letters(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    return any(letters(path.name) == letters(name) for path in Path(datasets.config.HF_DATASETS_CACHE).glob("*"))


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
