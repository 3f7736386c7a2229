"""Files of a recipe that only this machine has go with it to a cluster, through Ray's object store.

    {recipe key: Files(path, digest, {name below the path: reference to its bytes})}

A machine that has a file or folder of the same path and content uses its own, and nothing is put into the store where
all have it. What is small and changes (a policy) lies in a worker's temporary folder, the rest in the user's cache,
`~/.cache/gpo/files/<digest>`, once a machine.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gpo_data.errors import RunError
from gpo_data.home import user_cache
from gpo_data.models.digests import files_digest
from gpo_data.recipe import SECTIONS, Recipe

KEYS = ("model", "policy", "weights", "recognition_model", "detection_model")
OURS = ("tiny", "rapidocr")  # of the package, wherever it is installed


@dataclass(frozen=True)
class Files:
    path: str
    digest: str
    parts: dict[str, Any]  # ObjectRefs; empty where every machine has them


def absolute(recipe: Recipe) -> Recipe:
    """The recipe with whole paths: a worker runs in another folder."""
    return _replaced(recipe, {key: str(path) for key, path in _local(recipe)})


def sent(recipe: Recipe, everywhere: bool) -> dict[str, Files]:
    """What of the recipe has to travel. `everywhere`: the workers are on this machine, where all is."""
    found: dict[str, Files] = {}
    for key, path in [] if everywhere else _local(recipe):
        digest = files_digest(path)
        lacking = key == "policy" or not all(ray.get(_asked(str(path), digest)))
        parts = {name: ray.put(np.fromfile(file, np.uint8)) for name, file in _files(path)} if lacking else {}
        found[key] = Files(str(path), digest, parts)
    return found


@contextmanager
def arrived(recipe: Recipe, files: dict[str, Files]) -> Iterator[Recipe]:
    """In a worker: the recipe with the paths where its files are here, a policy's for as long. Raises RunError."""
    with tempfile.TemporaryDirectory(prefix="gpo-") as scratch:
        folders = {key: Path(scratch) if key == "policy" else user_cache() / "files" for key in files}
        yield _replaced(recipe, {key: str(_place(one, folders[key])) for key, one in files.items()})


def _place(files: Files, folder: Path) -> Path:
    path = Path(files.path)
    if not files.parts:
        if has(files.path, files.digest):
            return path
        raise RunError(f"{path}: not on {os.uname().nodename}, which joined the cluster later; run the command again")
    place = folder / files.digest / path.name
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=place.parent)) / path.name
        for name, part in files.parts.items():
            target = temporary / name if name else temporary
            target.parent.mkdir(parents=True, exist_ok=True)
            ray.get(part).tofile(target)
        try:
            temporary.rename(place)
        except OSError:  # another worker was first
            if not place.exists():
                raise
        shutil.rmtree(temporary.parent, ignore_errors=True)
    return place


def has(path: str, digest: str) -> bool:
    return Path(path).exists() and files_digest(Path(path)) == digest


def _asked(path: str, digest: str) -> list[Any]:
    """Of every machine of the cluster: whether it has the same file or folder."""
    there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes() if node["Alive"]]
    return [ray.remote(has).options(num_cpus=0, scheduling_strategy=one).remote(path, digest) for one in there]


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield "", path
    else:
        yield from ((str(file.relative_to(path)), file) for file in sorted(path.rglob("*")) if file.is_file())


def _local(recipe: Recipe) -> Iterator[tuple[str, Path]]:
    """(key, path) of the recipe's values that are files or folders here."""
    for section, holder in [("", recipe), *((name, getattr(recipe, name)) for name in SECTIONS)]:
        for name in KEYS:
            value = getattr(holder, name, None)
            if isinstance(value, str) and value not in OURS and Path(value).expanduser().exists():
                yield f"{section}.{name}".lstrip("."), Path(value).expanduser().absolute()


def _replaced(recipe: Recipe, values: dict[str, str]) -> Recipe:
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        change: dict[str, Any] = {name: value}
        if section:
            change = {section: dataclasses.replace(getattr(recipe, section), **change)}
        recipe = dataclasses.replace(recipe, **change)
    return recipe
