"""An evaluator of the user's own: a function in a module of the current folder, named in the recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from gpo_data import cli, recipe
from gpo_data.errors import UsageError
from gpo_data.evaluators import build
from gpo_data.evaluators.function import FunctionEvaluator, version_of
from gpo_data.generation.generate import draw
from gpo_data.lake import catalog
from gpo_data.recipe import Recipe

MODULE = """
import numpy as np
import pyarrow as pa

def sharpness(images, targets):
    return [float(np.abs(np.diff(image.astype(float), axis=0)).mean()) for image in images]

def words(images, targets):
    return [{"letters": len(t["prompt"]), "first": t["target"][0], "even": image.mean() > 99}
            for image, t in zip(images, targets)]

def array(images, targets):
    return np.array([image.mean() for image in images], np.float32)

def typed(images, targets):
    return [{"n": np.int64(3), "note": None} for _ in images]

typed.columns = {"n": int, "note": str}

def fragile(images, targets):
    if any(image.mean() > 200 for image in images):
        raise ValueError("too bright")
    return [{"x": float("nan") if image.mean() < 50 else 1} for image in images]

def few(images, targets):
    return [1.0]

def moody(images, targets):
    return [{"x": 1.0} if image.mean() == 128 else {"y": 1.0} for image in images]

def wordy(images, targets):
    return [1.0 if image.mean() == 128 else "much" for image in images]

def scalar(images, targets):
    return 1.0

def nothing(images, targets):
    return [None] * len(images)

def reward(images, targets):
    return [1.0] * len(images)

def raises(images, targets):
    return [images[0].no_such_thing]

def listed(images, targets):
    return [{"x": [1.0, float("nan") if image.mean() < 99 else 2.0]} for image in images]

def raw(images, targets):
    return [{"x": b"1"} for _ in images]

def dated(images, targets):
    return [{"x": None} for _ in images]

dated.columns = {"x": pa.date32()}

NOT_A_FUNCTION = 3
"""
TARGET = {"prompt": 'a red sign that says "KITE"', "target": "KITE", "color": "red"}
IMAGES = [np.full((8, 8, 3), value, np.uint8) for value in (100, 90)]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """own.py in the current folder, which is not on Python's path."""
    path = tmp_path / "own.py"
    path.write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "own", raising=False)
    yield path
    sys.modules.pop("own", None)


def evaluator(name: str) -> FunctionEvaluator:
    return FunctionEvaluator(f"own:{name}", lambda: TARGET)


def measured(name: str, images: list[np.ndarray] = IMAGES) -> list[dict[str, Any]]:
    return evaluator(name).measure(images, [TARGET] * len(images))


def test_numbers_and_dicts_become_columns(own: Path) -> None:
    assert measured("sharpness") == [{"sharpness": 0.0}] * 2 and evaluator("sharpness").name == "own.sharpness"
    assert measured("words") == [{"letters": 27.0, "first": "K", "even": even} for even in (True, False)]
    assert evaluator("words").columns == {"letters": pa.float64(), "first": pa.string(), "even": pa.bool_()}
    assert measured("array") == [{"array": 100.0}, {"array": 90.0}]
    assert measured("typed") == [{"n": 3, "note": None}] * 2
    assert evaluator("typed").columns == {"n": pa.int64(), "note": pa.string()}
    assert measured("sharpness", []) == []


def test_a_number_that_json_has_not_costs_its_member_alone(own: Path) -> None:
    assert measured("listed", IMAGES[:1]) == [{"x": [1.0, 2.0]}]
    with pytest.raises(ValueError, match="x is nan"):
        measured("listed", IMAGES[1:])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("few", "own:few: expected 2 results for 2 images, found 1"),
        ("moody", "own:moody: expected the columns x, found y"),
        ("wordy", "own:wordy: wordy: expected double, found"),
        ("scalar", "own:scalar: expected a list with a number or a dict an image, found float"),
        ("nothing", "own:nothing: no type for nothing: it is None for a grey picture.*nothing.columns ="),
        ("raw", "own:raw: x: expected numbers, text or lists of them, found binary; or say what it measures"),
        ("dated", r"own:dated: columns: x: expected float, int, str, bool, or an Arrow type of these, .*date32"),
        ("raises", "own:raises: it raised AttributeError: .*no_such_thing"),
        ("NOT_A_FUNCTION", "own:NOT_A_FUNCTION: not a function: .* in .*own.py; its functions: array, dated, few"),
        ("sharpnes", "own:sharpnes: no function 'sharpnes' in"),
    ],
)
def test_mistakes_name_the_function(own: Path, name: str, says: str) -> None:
    with pytest.raises(UsageError, match=f"^evaluators: {says}") as error:
        measured(name)
    assert "\n" not in str(error.value)


def test_modules_that_do_not_import(own: Path) -> None:
    own.with_name("needs.py").write_text("import no_such_package_at_all")
    own.with_name("broken.py").write_text("1 / 0")
    for setting, says in (
        ("absent:score", r"no module 'absent'; expected absent\.py in "),
        ("needs:score", "needs imports no_such_package_at_all, which is not installed"),
        ("broken:score", "importing it raised ZeroDivisionError"),
        ("math:sqrt", "no Python source"),
    ):
        with pytest.raises(UsageError, match=f"evaluators: {setting}: {says}"):
            FunctionEvaluator(setting, lambda: TARGET)


def test_a_column_that_is_taken_is_refused(own: Path) -> None:
    with pytest.raises(UsageError, match=r"own.reward: the column 'reward' is one of every dataset already"):
        build(Recipe(evaluators=["own:reward"], reward="1"))
    own.write_text("def f(images, targets): return [{'Entropy': 1.0}] * len(images)")
    with pytest.raises(UsageError, match=r"own.f: the column 'Entropy' is one of image_stats already"):
        sys.modules.pop("own")
        build(Recipe(evaluators=["own:f"], reward="1"))


def test_the_version_is_the_source(own: Path) -> None:
    before = {name: version_of(f"own:{name}") for name in ("sharpness", "words")}
    own.write_text(MODULE.replace("axis=0", "axis=1"))
    sys.modules.pop("own")
    assert version_of("own:words") == before["words"] and version_of("own:sharpness") != before["sharpness"]
    assert before["words"].startswith("0-")
    own.write_text(MODULE + "words.version = 'a b'")
    sys.modules.pop("own")
    with pytest.raises(UsageError, match=r"own:words: version: expected letters"):
        version_of("own:words")


def test_draws_and_measures_with_it(own: Path, recipe_file: Path) -> None:
    changes = ["--evaluators", "[own:words]", "--reward", "letters / 100"]
    made = recipe.load(recipe_file, changes, trust=True)
    folder = draw(made, Console(quiet=True))
    rows = pq.read_table(folder / "shard-000000.parquet").to_pylist()
    assert [row["letters"] for row in rows] == [len(row["prompt"]) for row in rows]
    assert all(row["reward"] == row["letters"] / 100 and row["status"] == "ok" for row in rows)

    def sharpness() -> list[float]:
        query = "SELECT sharpness FROM members ORDER BY group_key, member"
        return [value for (value,) in catalog.connect(made.lake).execute(query).fetchall()]

    assert cli.main(["measure", str(recipe_file), "--trust", "--evaluator", "own:sharpness"]) == 0
    assert len(before := sharpness()) == 24 and None not in before
    # Without names: the recipe's evaluators, which the shards were drawn with as long as the source is the same.
    assert cli.main(["measure", str(recipe_file), "--trust", *changes]) == 0
    assert not list(folder.glob("measures/own.words@*"))
    own.write_text(MODULE.replace('len(t["prompt"])', "1").replace("axis=0", "axis=1") + "sharpness.version = 2")
    sys.modules.pop("own")
    with pytest.raises(UsageError, match=r"own\.words\.version"):
        draw(made, Console(quiet=True))
    assert cli.main(["measure", str(recipe_file), "--trust", *changes]) == 0
    assert len(list(folder.glob("measures/own.words@*/*.parquet"))) == 3
    assert cli.main(["measure", str(recipe_file), "--trust", "--evaluator", "own:sharpness"]) == 0
    assert len(list(folder.glob("measures/own.sharpness@*"))) == 2 and sharpness() != before


def test_an_exception_costs_its_members_only(own: Path) -> None:
    from gpo_data.generation.worker import measure_each

    images: list[np.ndarray | None] = [np.full((8, 8, 3), value, np.uint8) for value in (100, 250, 20, 110)]
    found, raised = measure_each(evaluator("fragile"), images, TARGET)
    assert found == {0: {"x": 1.0}, 3: {"x": 1.0}} and raised.keys() == {1, 2}
    assert "ValueError: too bright" in raised[1] and "x is nan" in raised[2]
