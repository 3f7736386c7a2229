"""A diffusers repository of the hub, in the client's cache."""

from __future__ import annotations

from pathlib import Path

from gpo_data.fetch import SECONDS, expect_there
from gpo_data.models.files import INDEX, needed
from gpo_data.models.folder import read_json


def fetched(model: str, revision: str | None = None) -> Path:
    """The folder with the files that a pipeline opens, and no others of the repository.

    Raises what the hub's client raises where they are neither there nor to be had.
    """
    from huggingface_hub import HfApi, get_cached_repo_tree, hf_hub_download, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    expect_there(model, INDEX, revision)
    index = read_json(Path(hf_hub_download(model, INDEX, revision=revision)))
    there: list[str] | None
    try:
        info, reached = HfApi().model_info(model, revision=revision, timeout=SECONDS), True
        there = [one.rfilename for one in info.siblings or []]
    except Exception:  # of many kinds, and those of the client beneath: what is in the cache has to do
        reached = False
        try:
            there = [one.path for one in get_cached_repo_tree(model, revision=revision)]
        except CachedRepoTreeNotFoundError:  # fetched by an older client
            there = None
    names = None if there is None else needed(there, index)
    return Path(snapshot_download(model, revision=revision, local_files_only=not reached, allow_patterns=names))
