"""What a sweep file says: strictly read, each key by one of its parts alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpo_data.errors import UsageError
from gpo_train.sweep.plan import read_plan


@pytest.fixture
def sweep_file(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(recipe_file.parent)
    return recipe_file.with_name("losses.yaml")


@pytest.mark.parametrize(
    "text, message",
    [
        ("recipe: small.yaml\nsed: [1]", r"losses.yaml: unknown key 'sed'; did you mean 'seeds'"),
        ("seeds: [1]", "recipe: expected a name or a file, found nothing"),
        ("recipe: small.yaml\ngrid: {train.lr: [1]}", r"recipe small.yaml: unknown key 'train.lr'"),
        ("recipe: small.yaml\ngrid: {train.beta: 3}", "grid.* expected .*list"),
        ("recipe: small.yaml\nrows: [{sett: {}}]", "unknown key 'rows.0.sett'; did you mean 'set'"),
        ("recipe: small.yaml\nrows: [{name: a}, {name: a}]", "rows: expected a name for each, found 'a' twice"),
        ("recipe: small.yaml\nrows: [{name: a b}, {name: A-B}]", "rows: 'a b' and 'A-B' are one run, losses-a-b-"),
        ("recipe: small.yaml\nseeds: [0, 1, 0]", "seeds: expected each once, found"),
        ("recipe: small.yaml\ngrid: {train.beta: []}", "grid: expected at least one value of each key"),
        ("recipe: small.yaml\nrows: [{grid: {train.beta: []}}]", "rows.grid: expected at least one value of each key"),
        (
            "recipe: small.yaml\nseeds: [0, 1, 2]\nmeans: {of: [2]}",
            "means.of: expected divisors of 3, the number",
        ),
        ("recipe: small.yaml\nmeans: {scales: [2]}", "means.of: expected how many seeds, found nothing"),
        ("recipe: small.yaml\nmeans: {of: [2], scale: [2]}", "unknown key 'means.scale'; did you mean 'scales'"),
        ("recipe: small.yaml\nmeans: {of: [2], scales: []}", "means.scales: expected at least one"),
        ("recipe: small.yaml\nmeans: {of: [1, 1]}", "means.of: expected at least one, each once, found"),
        ("recipe: small.yaml\nmeans: {of: [1], scales: [2.0, 2.0000001]}", "rows: .* are one run, losses-"),
        ("recipe: small.yaml\nmeans: {of: [1], last: [2]}", "means.last: expected null, or online at most the 0"),
        (
            "recipe: small.yaml\nmode: online\nset: {online.iterations: 3}\nmeans: {of: [1], last: [null, 4]}",
            "means.last: .* at most the 3 iterations of each, found 4",
        ),
        (
            "recipe: small.yaml\nset: {train.seed: 3}",
            "train.seed: expected none in set, grid and rows, .* use `seeds:`",
        ),
        ("recipe: small.yaml\ngrid: {train: [{seed: 3}]}", "train.seed: expected none in set"),
        ("recipe: small.yaml\nmode: online\nrows: [{set: {seed: 1}}]", "losses.yaml: seed: expected none in set"),
        ("recipe: small.yaml\nset: {train.loss: nft}", "train.reference: expected frozen or adapters"),
    ],
)
def test_what_a_sweep_file_can_have_wrong(sweep_file: Path, text: str, message: str) -> None:
    sweep_file.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_plan(sweep_file)


@pytest.mark.parametrize("key", ["train.clip_range", "train.seed"])
def test_what_the_rows_differ_in_is_not_one_for_all(sweep_file: Path, key: str) -> None:
    sweep_file.write_text("recipe: small.yaml\nset: {train.loss: awm}\ngrid: {train.clip_range: [0.01]}\n")
    whole = f"{{beta: 1, {key.removeprefix('train.')}: 1}}"
    for override in ([f"--{key}", "1"], [f"--{key}=1"], ["--train", whole], [f"--train={whole}"]):
        with pytest.raises(UsageError, match=f"--{key}: the sweep sets it row by row"):
            read_plan(sweep_file, override)
    sweep_file.write_text(
        "recipe: small.yaml\nset: {train.beta: 1}\nrows: [{set: {train: {beta: 2}}, grid: {train.beta: [3]}}]"
    )
    assert read_plan(sweep_file).rows[0].recipe.train.beta == 3


def test_a_label_is_cut_where_a_runs_name_would_be_too_long(sweep_file: Path) -> None:
    seeds, label = [2**63 - 1, 0], "a label that is far longer than a name"
    sweep_file.write_text(f"recipe: small.yaml\nname: {'n' * 24}\nseeds: {seeds}\nrows: [{{name: {label}}}]\n")
    long, short = (row.name for row in read_plan(sweep_file).rows)
    assert len(long) == 80 and long.startswith(f"{'n' * 24}-a-label-that-is-far-lon") and long.endswith(f"-s{seeds[0]}")
    assert short.startswith(f"{'n' * 24}-a-label-that-is-far-longer-tha-")
