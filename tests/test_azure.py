"""A lake in an Azure container: a real Azurite on loopback, where there is one. S3 is in test_remote*.py."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from gpo_data.cli import main
from gpo_data.generation.generate import draw
from gpo_data.lake import catalog
from gpo_data.lake.remote import place
from tests.parts.azure import PROGRAM, connected, environment, server
from tests.parts.bucket import draw_at_once, objects, on_disk, recipe_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"needs {PROGRAM}: npm install azurite"),
]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    pytest.importorskip("adlfs")
    with server(tmp_path_factory.mktemp("azurite")) as port:
        yield port


@pytest.fixture
def container(azurite: int, tmp_path: Path) -> Iterator[str]:
    """A lake in a container of its own; this process talks to the server."""
    import fsspec

    name = f"b-{abs(hash(tmp_path)):x}"
    with connected(azurite, tmp_path / "scratch"):
        fsspec.filesystem("az").mkdir(name)
        yield f"az://{name}/some/lake"


def test_a_lake_in_a_container(container, recipe_file, drawn_lake, capsys):
    recipe = recipe_of(recipe_file, container)
    draw(recipe, QUIET)
    assert objects(container) == on_disk(drawn_lake)
    late = next(iter((place(container) / "dataset=small").glob("shard-000001.parquet")))
    content = late.read_bytes()
    late.unlink()
    draw(recipe, QUIET)
    assert late.read_bytes() == content and objects(container) == on_disk(drawn_lake)
    assert not late.create(b"another") and late.create(content) and late.read_bytes() == content
    for lake in (container, container.replace("az://", "abfs://")):
        table = catalog.ask(lake, "SELECT count(*) AS n, count(DISTINCT group_key) AS g FROM members")
        assert table.to_pylist() == [{"n": 24, "g": 6}]
    for verb, more in (("audit", []), ("tag", ["v1"]), ("verify", ["--tag", "v1"]), ("show", [])):
        assert main([verb, str(recipe_file), *more, "--lake", container]) == 0, capsys.readouterr()
    assert (place(container) / "dataset=small" / "audit.html").read_bytes().startswith(b"<!")


def test_two_machines_draw_at_once(azurite, container, recipe_file, drawn_lake, tmp_path):
    draw_at_once(recipe_file, container, [environment(azurite, tmp_path / f"scratch-{i}") for i in range(2)])
    assert objects(container) == on_disk(drawn_lake)


def test_what_is_wrong_is_one_line(azurite, container, recipe_file, tmp_path, capsys):
    def said(lake: str, verb: str = "sql") -> str:
        query = ["select 1"] if verb == "sql" else []
        assert main([verb, str(recipe_file), *query, "--lake", lake]) == 2
        told = capsys.readouterr().err.strip().splitlines()
        assert len(told) == 1 and told[0].startswith("error: "), told
        return told[0]

    assert "no bucket az://nowhere" in said("az://nowhere/lake", "shards")
    assert "gpo-data shards RECIPE" in said("az://nowhere/lake") and "gpo-data shards RECIPE" in said(container)
    with connected(azurite, tmp_path / "scratch", "ABC" + "A" * 83 + "=="):
        assert "no credentials that az://" in said(container)
