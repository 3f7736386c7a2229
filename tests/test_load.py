"""Many datasets, many groups: what a question and a read cost does not grow with what they are not about."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from gpo_data.errors import UsageError
from gpo_data.lake import catalog
from gpo_data.lake.lake import Lake
from gpo_data.recipe import Recipe, Train
from gpo_train.snapshot import dataset_names
from tests.test_catalog import rows_of, write_shard


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    write_shard(str(tmp_path / "dataset=a"), 0, rows_of(0, [0.0, 1.0]) + rows_of(1, [0.5, 0.5]))
    write_shard(str(tmp_path / "dataset=a"), 1, rows_of(2, [0.0, None, 1.0, 0.5]))
    return tmp_path


def test_a_question_to_one_dataset_opens_no_other(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor does one to a dataset that is not there: in a lake of thousands that would be seconds."""
    write_shard(str(lake / "dataset=b"), 0, rows_of(0, [1.0, 0.0]))
    (lake / "dataset=b/shard-000000.parquet").write_bytes(b"no Parquet")
    query = "SELECT count(*) AS n FROM members"
    assert catalog.ask(str(lake), query, dataset=["a"])["n"].to_pylist() == [8]
    for ask in (
        lambda: catalog.ask(str(lake), query, dataset=["c"]),
        lambda: catalog.snapshot(catalog.connect(str(lake), "c"), "c"),
    ):
        with pytest.raises(UsageError, match="'c'.*: a, b"):
            ask()
    assert capsys.readouterr().err == ""
    assert catalog.ask(str(lake), query)["n"].to_pylist() == [8]
    assert "left out dataset b" in capsys.readouterr().err


@pytest.mark.slow
def test_questions_to_one_of_two_thousand_datasets_take_less_than_a_second(lake: Path) -> None:
    shutil.copy(lake / "dataset=a/shard-000000.parquet", lake / "dataset=a/shard-000002.parquet")
    for number in range(2000):
        shutil.copytree(lake / "dataset=a", lake / f"dataset=d{number:04d}")
    recipe = Recipe(lake=str(lake), evaluators=["color"], reward="1")
    name, query = "d0007", "SELECT count(*) FROM members"
    questions = {
        "sql": lambda: catalog.ask(str(lake), query, dataset=[name]),
        "members": lambda: Lake(str(lake))[name].members(),
        "connect": lambda: catalog.connect(str(lake), name).execute(query).fetchall(),
        "no such dataset": lambda: catalog.snapshot(catalog.connect(str(lake), "d"), "d"),
        "no such name": lambda: Lake(str(lake))["d"],
        "no such glob": lambda: dataset_names(recipe, Train(datasets="x*")),
    }
    for what, question in questions.items():
        began = time.process_time()
        try:
            question()
        except UsageError as error:
            assert len(str(error)) < 400 and "and 1,991 more" in str(error)
        assert time.process_time() - began < 1, what
