"""The two commands' tables of verbs: help out of the dataclasses, and where runs lie."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import gpo_data.cli
import gpo_train.cli
from gpo_data import recipe
from gpo_data.recipe import Recipe


def help_of(main: Callable[[list[str]], int], *arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--help"])
    assert done.value.code == 0
    return capsys.readouterr().out


def test_help_has_every_verb_and_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    said = help_of(gpo_data.cli.main, capsys=capsys)
    assert [
        verb for verb in ("shards", "audit", "sql", "measure", "verify", "show") if f"    {verb} " not in said
    ] == []
    shards = help_of(gpo_data.cli.main, "shards", capsys=capsys)
    keys = [key for key in recipe.key_names(Recipe) if key not in recipe.SECTIONS]
    assert [key for key in keys if f"--{key} (" not in shards] == []
    assert "sampler: How the model draws." in shards and "classifier-free guidance; 1 is off." in shards
    fit = help_of(gpo_train.cli.main, "fit", capsys=capsys)
    assert "--train.kl (number, 0 or more; default 0.0)" in fit and "--online.pool (" in fit and "--ocr.mode" not in fit
    assert "--eval.group_size (" in help_of(gpo_train.cli.main, "eval", capsys=capsys)


@pytest.mark.parametrize("command", ["gpo_data.cli", "gpo_train.cli"])
def test_help_comes_at_once(command: str) -> None:
    code = f"""
import sys, {command}
try:
    {command}.main(["--help"])
except SystemExit:
    print([name for name in ("torch", "pyarrow", "numpy", "docstring_parser") if name in sys.modules])
"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.splitlines()[-1] == "[]"


def test_runs_lie_where_the_command_line_says(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = ["--runs", "elsewhere"]
    assert gpo_train.cli.main(["fit", str(here), "--train.epochs", "1", *there]) == 0
    assert gpo_train.cli.main(["export", str(here), "--out", "exported", *there]) == 0
    assert Path("elsewhere/small-offline/run.json").is_file() and Path("exported").is_dir()
    assert not Path("runs").exists()
    capsys.readouterr()
    assert gpo_train.cli.main(["compare", str(here), "--run", "small-offline", *there]) == 2
    assert "run elsewhere/small-offline: expected an online run" in capsys.readouterr().err
    assert gpo_train.cli.main(["eval", str(here)]) == 2
    assert "runs: no offline run of small" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "arguments", "says"),
    [
        (gpo_data.cli.main, ["show", "x", "--limit", "0"], "--limit: expected a whole number, 1 or more, found 0"),
        (
            gpo_data.cli.main,
            ["verify", "x", "--redraw", "-1"],
            "--redraw: expected a whole number, 0 or more, found -1",
        ),
        (gpo_data.cli.main, ["verify", "x", "--redraw", "9" * 99], "--redraw: expected a whole number, 0 or more"),
        (gpo_train.cli.main, ["compare", "x", "--run", "a", "--every", "0"], "--every: expected a whole number"),
        (gpo_train.cli.main, ["watch", "x", "--mode", "on"], "--mode: invalid choice: 'on'"),
    ],
)
def test_arguments_of_a_verb_are_checked(
    main: Callable[[list[str]], int], arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 2 and f"error: argument {says}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", "--run", "a/b"],
        ["eval", "--run", ""],
        ["compare", "--run", "a" * 300],
        ["watch", "--run", ".."],
        ["average", "--last", "2", "--out", "../b"],
    ],
)
def test_a_run_has_a_name_and_lies_in_its_folder(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert gpo_train.cli.main([arguments[0], "text-tiny", *arguments[1:]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --run: expected 1 to 80 letters") and error.count("\n") == 1
