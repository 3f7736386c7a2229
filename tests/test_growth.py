"""A dataset grows: more prompts of the same recipe go on in it; other prompts do not."""

from pathlib import Path

import pytest
from rich.console import Console

from gpo_data import recipe
from gpo_data.errors import UsageError
from gpo_data.generation.generate import draw
from gpo_data.lake.manifest import read_manifest
from gpo_data.lake.sidecar import read_rows
from gpo_train.snapshot import drawn_otherwise


def drawn(path: Path, lake: Path, *overrides: str) -> Path:
    settings = ["--lake", str(lake), "--task.prompts", str(path), "--task.num_prompts", "null", "--task.split", "all"]
    settings += [
        "--group_size",
        "2",
        "--groups_per_shard",
        "2",
        "--sampler.num_inference_steps",
        "2",
        "--name",
        "grows",
    ]
    settings += ["--evaluators", "[color]", "--reward", "color_share", *overrides]
    return draw(recipe.load("text-tiny", settings), Console(quiet=True))


def rows_of(folder: Path) -> dict[tuple[str, int], dict[str, object]]:
    rows = [row for sidecar in sorted(folder.glob("shard-*.parquet")) for row in read_rows(sidecar)]
    return {(row["group_key"], row["member"]): row for row in rows}


def test_lines_added_to_a_file_go_on_in_the_dataset(tmp_path: Path) -> None:
    path, lake = tmp_path / "own.csv", tmp_path / "lake"
    lines = [f'"a sign that says ""{word}""",{n}\n' for n, word in enumerate(("KITE", "OPEN", "MOON", "SALE"), start=1)]
    path.write_text("prompt,page\n" + "".join(lines[:3]))
    folder = drawn(path, lake)
    before, manifest = rows_of(folder), read_manifest(folder)
    assert [len({k for k, _ in before}), sorted({row["page"] for row in before.values()})] == [3, [1, 2, 3]]
    path.write_text("prompt,page\n" + "".join(lines))
    drawn(path, lake)
    after, grown = rows_of(folder), read_manifest(folder)
    assert len(after) == 8 and {k: after[k]["crc32"] for k in before} == {k: before[k]["crc32"] for k in before}
    assert grown.fingerprint == manifest.fingerprint and grown.fields == manifest.fields
    assert grown.grown is not None and grown.grown.prompts == 4
    # What it has grown by counts as well: another fourth line is another dataset.
    path.write_text("prompt,page\n" + "".join([*lines[:3], lines[3].replace("SALE", "BEES"), lines[3]]))
    with pytest.raises(UsageError, match="It differs in prompts_digest"):
        drawn(path, lake)
    path.write_text("prompt,page\n" + "".join(lines[1:]))
    with pytest.raises(UsageError, match="It differs in prompts_digest"):
        drawn(path, lake)


def test_more_prompts_of_a_grammar(tmp_path: Path) -> None:
    made = [
        recipe.load(
            "text-tiny",
            [
                "--lake",
                str(tmp_path),
                "--group_size",
                "2",
                "--task.num_prompts",
                n,
                "--sampler.num_inference_steps",
                "1",
                "--evaluators",
                "[color]",
                "--reward",
                "color_share",
            ],
        )
        for n in ("1", "3")
    ]
    folder = draw(made[0], Console(quiet=True))
    assert draw(made[1], Console(quiet=True)) == folder and len(rows_of(folder)) == 6
    assert drawn_otherwise(made[1]) is None
    assert "recipe says, and is trained on as it is: task.num_prompts: 3 there, 1 in the recipe;" in str(
        drawn_otherwise(made[0])
    )
    assert draw(made[0], Console(quiet=True)) == folder and len(rows_of(folder)) == 6
