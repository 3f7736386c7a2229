"""What an evaluation is of: the part of the split, without what was trained on, failed pictures and all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import gpo_data.cli
from gpo_data import recipe
from gpo_data.errors import UsageError
from gpo_data.lake import catalog
from gpo_data.split import part_of
from gpo_data.tiny.words import ENGLISH, text_caption
from gpo_train import cli
from gpo_train.evaluation.prompts import choose
from gpo_train.evaluation.trained import trained_keys
from gpo_train.run import Run
from tests.parts.lake import COLUMNS, MANIFEST, rows_of, write_shard
from tests.parts.training import train

WORDS = {part: [w for w in ENGLISH if part_of(w) == part] for part in ("train", "validation", "heldout")}
MINE = [*WORDS["heldout"][:3], *WORDS["validation"][:2], WORDS["train"][0]]


def evaluated(path: Path, *options: str, run: str) -> dict[str, Any]:
    assert cli.main(["eval", str(path), "--run", run, "--eval.prompts", "8", *options]) == 0
    stem = "eval-validation" if "validation" in options else "eval"
    return json.loads(Path(f"runs/{run}/{stem}.json").read_text())


@pytest.fixture
def own(here: Path) -> list[str]:
    """Options of a recipe that trains on every part of a file of six words."""
    Path("own.txt").write_text("".join(text_caption("red", word) + "\n" for word in MINE))
    return ["--name", "own", "--task.prompts", "own.txt", "--task.split", "all", "--task.num_prompts", "null"]


def test_what_was_trained_on_is_left_out(here: Path, own: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert gpo_data.cli.main(["shards", str(here), *own]) == 0
    some = train(here, *own, "--where", f"target not in ('{MINE[2]}', '{MINE[3]}')", name="some")
    assert trained_keys(recipe.load(here), some) == {*MINE} - {MINE[2], MINE[3]}

    found = evaluated(here, *own, run="some")
    assert (found["split"], found["prompts"], found["targets"], found["left_out"]) == ("heldout", 1, 1, 2)
    assert found["difference"]["ci95"] == [-1, 1]
    drawn = catalog.connect("lake").execute(
        "SELECT DISTINCT target FROM members WHERE dataset = ?", [found["datasets"]["policy"]]
    )
    assert drawn.fetchall() == [(MINE[2],)]
    said = " ".join(capsys.readouterr().out.split())
    assert "1 held-out prompts of 1 targets, same seeds; 2 left out that were trained on" in said
    assert "2 left out that were trained on" in Path("runs/some/eval.html").read_text()

    found = evaluated(here, *own, "--eval.split", "validation", run="some")
    assert (found["split"], found["prompts"], found["left_out"]) == ("validation", 1, 1)
    assert "1 validation prompts" in capsys.readouterr().out

    found = evaluated(here, run="some")  # the grammar's own words: none of them was trained on
    assert (found["prompts"], found["left_out"]) == (8, 0)

    train(here, *own, name="every")
    assert cli.main(["eval", str(here), "--run", "every", *own]) == 2
    assert "eval.split: expected prompts of the part heldout" in " ".join(capsys.readouterr().err.split())
    train(here, "--policy", "runs/some/policy", name="after")
    assert trained_keys(recipe.load(here), Run(Path("runs/after"))) > trained_keys(recipe.load(here), some)


def test_a_run_is_evaluated_on_the_model_that_it_began_with(
    here: Path, random_sd3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpo_data.cli.main(["shards", str(here)]) == 0
    train(here, name="a")
    other = shutil.copytree(random_sd3, tmp_path / "other")
    (weights,) = other.glob("transformer/*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x3f")
    assert cli.main(["eval", str(here), "--run", "a", "--model", str(other)]) == 2
    assert "as when it began, found other files in" in capsys.readouterr().err


def test_an_online_run_was_trained_on_its_iterations(here: Path, own: list[str]) -> None:
    from rich.console import Console

    from gpo_train.fit import fit

    made = recipe.load(here, [*own, "--online.iterations", "1", "--online.grid_every", "0", "--online.prompts", "4"])
    run = fit(made, "live", Console(quiet=True), "online")
    assert trained_keys(made, run) == {*MINE[:4]}
    assert cli.main(["eval", str(here), "--run", "live", *own]) == 2
    assert cli.main(["compare", str(here), "--run", "live", *own]) == 2
    assert cli.main(["compare", str(here), "--run", "live", *own, "--eval.split", "validation"]) == 0
    found = json.loads(Path("runs/compare/compare.json").read_text())["live"]
    assert (found["split"], found["prompts"], found["targets"], found["left_out"]) == ("validation", 1, 1, 1)
    assert [point["iteration"] for point in found["points"]] == [0, 1]


def test_a_run_whose_prompts_are_unknown_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(here)
    assert cli.main(["eval", str(here), "--run", "a", "--lake", "another"]) == 2
    assert "was trained on small, and the lake another does not" in " ".join(capsys.readouterr().err.split())
    (run.folder / "snapshot.parquet").unlink()
    assert cli.main(["eval", str(here), "--run", "a"]) == 2
    assert "`gpo-train fit` makes it again" in " ".join(capsys.readouterr().err.split())


FLAKY = """
def flaky(images, targets):
    if any(image.std() and int(image.sum()) % 3 == 0 for image in images):
        raise ValueError("a picture of a kind")
    return [1.0] * len(images)
flaky.columns = {"flaky": float}
"""


def test_failed_pictures_are_wrong_and_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(here, "--train.learning_rate", "1e-3")
    Path("flaky.py").write_text(FLAKY)
    found = evaluated(here, "--evaluators", "[ocr, 'flaky:flaky']", "--trust", "--eval.group_size", "4", run="a")
    con = catalog.connect("lake")
    count = "SELECT count(*), count(*) FILTER (status <> 'ok') FROM members WHERE dataset = ?"
    for side in ("base", "policy"):
        drawn, failed = con.execute(count, [found["datasets"][side]]).fetchall()[0]
        assert found["n"] == drawn == 32 and found[side]["failed"] == failed > 0
    assert "failed pictures, wrong" in capsys.readouterr().out
    page = Path("runs/a/eval.html").read_text()
    assert "failed pictures, wrong" in page and "OCR accuracy" in page
    scored = "SELECT avg(CASE status WHEN 'ok' THEN text_edit_lenient(target, ocr_text) ELSE 0 END) FROM members"
    for side in ("base", "policy"):
        (expected,) = con.execute(f"{scored} WHERE dataset = ?", [found["datasets"][side]]).fetchall()[0]
        assert found[side]["scores"]["ocr_accuracy"] == pytest.approx(expected)


def test_what_failed_has_no_reward_beside_a_run_and_alone(here: Path) -> None:
    Path("flaky.py").write_text(FLAKY)
    found = alone(here, "--evaluators", "[ocr, 'flaky:flaky']", "--trust", "--eval.group_size", "4")
    paid = "SELECT avg(reward), count(*) FILTER (status <> 'ok'), count(*) FROM members WHERE dataset = ?"
    mean, failed, drawn = catalog.connect("lake").execute(paid, [found["dataset"]]).fetchall()[0]
    assert 0 < failed < drawn and found["all"]["failed"] == failed
    assert found["all"]["reward"] == pytest.approx(mean)


def test_a_failed_picture_counts_against_its_side(here: Path) -> None:
    """Beside a side where every picture is right, what one lacks to 100% is what failed."""
    from gpo_train.evaluation.evaluate import compare, members
    from gpo_train.evaluation.prompts import EvalPrompts

    Path("flaky.py").write_text(FLAKY)
    options = ["--name", "flaky", "--evaluators", "[ocr, 'flaky:flaky']"]
    assert gpo_data.cli.main(["shards", str(here), "--trust", *options]) == 0
    made = recipe.load(here, options, trust=True)
    perfect, own = members(made, made, made)
    for one in (*perfect.values(), *(one for one in own.values() if not one["failed"])):
        one["exact"] = 1.0
    chosen = EvalPrompts(made.task, keys=list("AABBCC"), left_out=0, part="train")
    found = compare(made, made, made, (perfect, own), chosen)
    assert found.difference.exact == -found.policy.failed / 24 < 0
    assert found.difference.ci95[0] < 0


@pytest.mark.parametrize("color", ["red", None])
def test_colour_is_counted_where_prompts_ask_for_one(tmp_path: Path, color: str | None) -> None:
    from gpo_train.evaluation.evaluate import members

    rows = [row | {"color": color, "color_seen": "red"} for row in rows_of(0, [1.0, 0.0])]
    write_shard(str(tmp_path / "dataset=d"), 0, rows, COLUMNS | {"color_seen": pa.string()})
    (tmp_path / "dataset=d/dataset.json").write_text(json.dumps(MANIFEST))
    made = recipe.Recipe(name="d", lake=str(tmp_path), evaluators=["ocr", "color"], reward="1")
    for side in members(made, made, made):
        assert [one.get("color_exact") for one in side.values()] == [None if color is None else 1.0] * 2
        assert all(("color_exact" in one) == (color is not None) for one in side.values())


BENCH = [("red", "KITE", "short"), ("blue", "KITE", "short"), ("red", "OPEN", "short")]
BENCH += [("red", "HARB", "long"), ("green", "MOUN", "long"), ("red", "SUMS", "long")]
SMALL = ["--eval.prompts", "bench.csv", "--eval.group_size", "2"]


def alone(here: Path, *more: str) -> dict[str, Any]:
    rows = [text_caption(color, word).replace('"', '""') + f'",{tag}' for color, word, tag in BENCH]
    Path("bench.csv").write_text("prompt,length\n" + "".join(f'"{row}\n' for row in rows))
    assert cli.main(["eval", str(here), "--base-only", *SMALL, *more]) == 0
    return json.loads(next(Path("runs").glob("*-base/eval-bench.json")).read_text())


def test_a_benchmark_is_drawn_whole_and_reported_by_its_tags(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = alone(here)
    assert (found["prompts"], found["targets"], found["all"]["n"], found["file"]) == (6, 5, 12, "bench.csv")
    tags = found["by_tag"]["length"]
    assert {value: one["n"] for value, one in tags.items()} == {"short": 6, "long": 6}
    low, high = found["all"]["exact95"]
    assert 0 <= low <= found["all"]["exact"] <= high <= 1
    rows = catalog.connect("lake").execute(
        "SELECT length, avg(exact::int) FROM members WHERE dataset = ? GROUP BY 1", [found["dataset"]]
    )
    assert dict(rows.fetchall()) == pytest.approx({value: one["exact"] for value, one in tags.items()})
    assert found["all"]["reward95"][0] <= found["all"]["reward"] <= found["all"]["reward95"][1]
    assert "all 6 prompts of bench.csv" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_run_is_compared_on_a_benchmark_with_the_base_that_was_drawn(here: Path) -> None:
    base = alone(here)
    assert gpo_data.cli.main(["shards", str(here)]) == 0
    train(here, name="run")
    assert cli.main(["eval", str(here), "--run", "run", *SMALL]) == 0
    found = json.loads(Path("runs/run/eval-bench.json").read_text())
    assert found["datasets"]["base"] == base["dataset"] and found["base"]["exact"] == base["all"]["exact"]
    assert {value: one["n"] for value, one in found["by_tag"]["length"].items()} == {"short": 6, "long": 6}
    assert "exact of length short (n=6)" in Path("runs/run/eval-bench.html").read_text()


def test_what_is_wrong_with_a_benchmark_names_its_own_key(here: Path) -> None:
    (here.parent / "bench.csv").write_text('prompt\n"nothing in quotes"\n')
    for file, told in (("bench.csv", "bench.csv:2: "), ("gone.csv", "gone.csv: no such file")):
        with pytest.raises(UsageError, match=f"^eval.prompts: {told}"):
            choose(recipe.load(here, ["--eval.prompts", file]), set(), here.parent)
