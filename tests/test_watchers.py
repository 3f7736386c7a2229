"""Watchers: measured, shown beside the reward by audit, watch and eval, and never paid."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gpo_data import cli, recipe
from gpo_data.errors import UsageError
from gpo_data.lake import locked
from gpo_data.lake.manifest import read_manifest
from gpo_data.lake.watched import refuse_watched, watched_columns
from gpo_data.recipe import Recipe

COLOR = ["color_seen", "color_share", "color_distance", "color_rgb"]


def test_columns_that_an_expression_reads() -> None:
    read = locked.columns_in("text_edit(target, OCR_text) + 2 * things[1].confidence")
    assert {"target", "ocr_text", "things"} <= read <= {"target", "ocr_text", "things", "confidence"}
    assert locked.columns_in("CASE WHEN m.score > 1 THEN 'clip_score' ELSE \"Clip_Score\" END") == {
        "m",
        "score",
        "clip_score",
    }
    assert locked.columns_in("length('clip_score') + 1") == set()
    assert locked.columns_in("(SELECT max(x) FROM unnest(list_transform(color_rgb, v -> v + entropy)) t(x))") >= {
        *("color_rgb", "entropy")
    }


def test_a_reward_that_reads_what_is_watched_is_refused() -> None:
    refuse_watched("text_exact(target, ocr_text)", COLOR)
    with pytest.raises(UsageError, match="reads color_share, which is only watched; move its evaluator from watchers"):
        refuse_watched("0.5 + Color_Share", COLOR)
    with pytest.raises(UsageError, match=r"watchers: expected names that are not in evaluators, found \['ocr'\]"):
        Recipe(evaluators=["ocr"], watchers=["ocr"], reward="1")
    with pytest.raises(UsageError, match=r"watchers: expected ocr, yolo, .*found 'colour'"):
        Recipe(evaluators=["ocr"], watchers=["colour"], reward="1")


def test_drawn_with_a_watcher(recipe_file: Path, capsys: Any) -> None:
    recipe_file.write_text(recipe_file.read_text() + "watchers: [color]\n")
    assert cli.main(["shards", str(recipe_file), "--reward", "color_share"]) == 2
    assert "reads color_share, which is only watched" in capsys.readouterr().err
    assert cli.main(["shards", str(recipe_file)]) == 0
    folder = recipe_file.parent / "lake/dataset=small"
    assert read_manifest(folder).watched == {"color": COLOR}
    shares = [row["color_share"] for path in folder.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    capsys.readouterr()
    assert cli.main(["audit", str(recipe_file)]) == 0
    told = capsys.readouterr().out
    mean = sum(shares) / len(shares)
    assert re.search(rf"only watched, mean +color_share {mean:.3f}", told)
    assert re.search(rf"color share +{mean:.3f}", told)
    assert "Color share" in (folder / "audit.html").read_text()
    assert cli.main(["audit", str(recipe_file), "--reward", "color_share"]) == 2
    assert "only watched" in capsys.readouterr().err
    # Without the watcher in the recipe the dataset still knows.
    assert cli.main(["audit", str(recipe_file), "--watchers", "[]", "--reward", "color_share"]) == 2


def test_watched_later(here: Path, capsys: Any) -> None:
    here.write_text(here.read_text() + "watchers: [color]\n")
    assert cli.main(["measure", str(here), "--evaluator", "color"]) == 0
    folder = here.parent / "lake/dataset=small"
    assert watched_columns(folder, {}, ["color"]) == COLOR
    assert cli.main(["audit", str(here)]) == 0
    assert "color_distance" in capsys.readouterr().out
    assert cli.main(["audit", str(here), "--reward", "color_share"]) == 2


def test_training_pays_for_nothing_that_is_watched_and_evaluation_shows_it(here: Path, capsys: Any) -> None:
    from gpo_train import cli as train
    from gpo_train.data import snapshot_of
    from gpo_train.online.iterations import summarise
    from gpo_train.online.watch import table

    here.write_text(here.read_text() + "watchers: [color]\n")
    assert cli.main(["measure", str(here), "--evaluator", "color"]) == 0
    assert train.main(["fit", str(here), "--reward", "color_share"]) == 2
    assert "only watched" in capsys.readouterr().err
    made = recipe.load(here)
    assert snapshot_of(made, "small").num_rows
    assert train.main(["fit", str(here), "--train.epochs", "1"]) == 0
    assert train.main(["eval", str(here)]) == 0
    found = json.loads((here.parent / "runs/small-offline/eval.json").read_text())
    for side in ("base", "policy"):
        assert 0 <= found[side]["statistics"]["watched/color_share"] <= 1
    assert "only watched: color share" in capsys.readouterr().out
    summary = summarise(made, "small")
    assert 0 <= summary.watched["color_share"] <= 1
    assert "color_share" in [column.header for column in table([summary], "small").columns]
