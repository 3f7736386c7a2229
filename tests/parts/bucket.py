"""A bucket of a real S3 server on loopback, and a lake in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from gpo_data import recipe
from gpo_data.lake.remote import place
from gpo_data.recipe import Recipe
from tests.parts.lives import lives
from tests.parts.s3 import Proxy, Server, connected, make_bucket, server

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def s3() -> Iterator[Server]:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with server() as running:
        yield running


@pytest.fixture
def proxy(s3: Server, tmp_path: Path) -> Iterator[Proxy]:
    """Before the server; this process talks to it."""
    with Proxy(s3.port) as running, connected(running.url, tmp_path / "scratch"):
        yield running


@pytest.fixture
def bucket(s3: Server, tmp_path: Path) -> str:
    name = f"b-{abs(hash(tmp_path)):x}"
    make_bucket(s3.url, name)
    return f"s3://{name}/some/lake"


def recipe_of(recipe_file: Path, lake: str) -> Recipe:
    return recipe.load(recipe_file, ["--lake", lake])


def objects(lake: str) -> dict[str, bytes]:
    """What lies in the dataset, but for the pages and the manifest (which has a time in it)."""
    folder = place(lake) / "dataset=small"
    return {one.name: one.read_bytes() for one in folder.glob("shard-*")}


def on_disk(drawn_lake: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (drawn_lake / "dataset=small").glob("shard-*")}


def copied(drawn_lake: Path, lake: str) -> None:
    """A lake that was drawn on a disk, in the bucket."""
    for path in (drawn_lake / "dataset=small").glob("[!.]*.*"):
        (place(lake) / "dataset=small" / path.name).write_bytes(path.read_bytes())


def life(recipe_file: str, lake: str, env: dict[str, str]) -> None:
    import torch

    from gpo_data.generation.generate import draw

    os.environ.update(env)
    torch.set_num_threads(1)
    draw(recipe_of(Path(recipe_file), lake), QUIET)


def draw_at_once(recipe_file: Path, lake: str, environments: list[dict[str, str]]) -> None:
    """As many machines draw the same dataset; each comes to its end, and nothing is wrong with what lies there."""
    from gpo_data.lake.verify import verify

    context = lives()
    drawing = [context.Process(target=life, args=(str(recipe_file), lake, env)) for env in environments]
    for process in drawing:
        process.start()
    for process in drawing:
        process.join(120)
    assert {process.exitcode for process in drawing} == {0}
    assert not verify(place(lake) / "dataset=small").problems
