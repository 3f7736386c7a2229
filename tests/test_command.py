"""The two commands' tables of verbs: help out of the dataclasses, and where runs lie."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import gpo_data.cli
import gpo_train.cli
from gpo_data import recipe
from gpo_data.errors import Interrupted
from gpo_data.recipe import Recipe

NO_FOLDERS = ("afile", "afile/there", "/proc/x/y", "/proc/x", "a" * 300)


def killed(*rest: object) -> None:
    raise ValueError("killed")


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
    ("main", "arguments", "says"),
    [
        (gpo_data.cli.main, ["shards", "x", "--worker", "2"], "'gpo-data shards', .*; did you mean '--workers'"),
        (gpo_data.cli.main, ["shards", "x", "--trian.loss=nft"], "--trian.loss=nft: .*; did you mean '--train.loss'"),
        (gpo_data.cli.main, ["shards", "x", "y"], "y: expected an option of 'gpo-data shards', or --key value"),
        (gpo_data.cli.main, ["shards", "x", "--borrow", "2"], "--borrow: the key is 'relabel' now"),
        (gpo_train.cli.main, ["eval", "x", "--runn", "a"], "--runn: expected an option of .*; did you mean '--run'"),
        (gpo_train.cli.main, ["sweep", "x", "--lst"], "--lst: expected an option of .*; did you mean '--list'"),
    ],
)
def test_what_no_verb_and_no_recipe_knows_is_named_as_it_was_typed(
    main: Callable[[list[str]], int], arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert re.search(says, capsys.readouterr().err)


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


def test_what_was_stopped_says_so_whatever_verb_it_was(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*rest: object, **named: object) -> None:
        raise Interrupted

    said = "stopped; the same command goes on from here\n"
    monkeypatch.setattr("gpo_train.evaluation.alone.draw", stopped)
    assert gpo_train.cli.main(["eval", str(here), "--base-only"]) == 130 and capsys.readouterr().err == said
    monkeypatch.setattr("gpo_data.generation.generate.draw", stopped)
    assert gpo_data.cli.main(["shards", str(here)]) == 130 and capsys.readouterr().err == said
    monkeypatch.setattr("gpo_train.fit._fit", stopped)
    assert gpo_train.cli.main(["fit", str(here)]) == 130 and capsys.readouterr().err == said


def test_an_export_that_fails_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpo_train.cli.main(["fit", str(here), "--train.epochs", "1"]) == 0
    export = ["export", str(here), "--out", "new/plain"]
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="killed"):
        patch.setattr("gpo_train.export.shutil.copy2", killed)
        gpo_train.cli.main(export)
    assert not Path("new/plain").exists() and not list(Path("new").iterdir())
    Path("afile").touch()
    for out in NO_FOLDERS:
        assert gpo_train.cli.main([*export[:-1], out]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: --out /") and error.count("\n") == 1
    assert gpo_train.cli.main(export) == 0 and Path("new/plain/model_index.json").is_file()


def test_whoever_reads_may_go(here: Path) -> None:
    """`sql | head` is answered; work that nobody reads on about says that it is not done."""
    members = ["sql", str(here), "SELECT * FROM range(100000)"]
    drawing = ["shards", str(here), "--name", "more", "--task.num_prompts", "2"]
    for arguments, code, told in (
        (members, 0, ""),
        ([*members, "--format", "csv"], 0, ""),
        (drawing, 1, "nobody reads the output any more; the same command goes on from here\n"),
    ):
        command = [sys.executable, "-P", "-m", "gpo_data.cli", *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
            assert started.stdout and started.stderr
            started.stdout.close()
            assert (started.stderr.read(), started.wait()) == (told, code), arguments


def test_a_file_where_a_folder_is_wanted_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("afile").touch()
    assert gpo_train.cli.main(["fit", str(here), "--runs", "afile"]) == 2
    assert capsys.readouterr().err.startswith("error: afile")


def test_a_folder_that_cannot_be_made_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("afile").touch()
    for out in NO_FOLDERS:
        for verb, asked in (("export-pairs", out), ("show", f"{out}/x.png")):
            assert gpo_data.cli.main([verb, str(here), "--out", asked]) == 2
            error = capsys.readouterr().err
            assert error.startswith(f"error: --out {out}: ") and error.count("\n") == 1


def test_nothing_is_drawn_where_nothing_would_say_what_is_right(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blind = ["--evaluators", "[color]", "--reward", "color_share"]
    assert gpo_train.cli.main(["eval", str(here), "--base-only", *blind]) == 2
    said = capsys.readouterr()
    assert "which nothing measured" in said.err and "drew" not in said.out


def test_pictures_are_shown_with_the_reward_of_the_command_line(here: Path) -> None:
    show = ["show", str(here), "--limit", "1", "--out"]
    assert gpo_data.cli.main([*show, "new/folder/stored.png"]) == 0
    assert gpo_data.cli.main([*show, "stored.jpg"]) == 2
    assert gpo_data.cli.main([*show, "mine.png", "--reward", "-1.0 * member"]) == 0
    stored, mine = Path("new/folder/stored.png").read_bytes(), Path("mine.png").read_bytes()
    assert stored[1:4] == mine[1:4] == b"PNG" and stored != mine


def test_a_first_try_that_is_refused_leaves_the_name_free(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpo_train.cli.main(["fit", str(here), "--train.groups_per_step", "100"]) == 2
    assert "train.groups_per_step: 100 groups a step" in capsys.readouterr().err
    assert gpo_train.cli.main(["fit", str(here), "--train.epochs", "1"]) == 0


ENDING = """
import atexit, sys, threading, time
from gpo_data.command import Command
command = Command("x", None)
command.verb(reads=("what", "", lambda *given: given[0]))(lambda what, options: {does} or 7)
{run}
"""
PROMISED = "atexit.register(print, 'finished', end='');"


def test_a_command_that_ends_waits_for_its_threads_and_finishes_what_was_promised() -> None:
    does = "threading.Thread(target=lambda: (time.sleep(0.3), print('waited'))).start() or print('said', end=' ')"
    code = ENDING.format(does=does, run=PROMISED + "command.run()")
    ended = subprocess.run([sys.executable, "-c", code, "<lambda>", "y"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "said waited\nfinished", "")


def test_a_command_is_profiled_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(ENDING.format(does="None", run=PROMISED + "command.run()"))
    profiler = [sys.executable, "-m", "cProfile", str(tmp_path / "script.py"), "<lambda>", "y"]
    ended = subprocess.run(profiler, capture_output=True, text=True)
    assert "function calls" in ended.stdout and ended.stdout.endswith("finished")


@pytest.mark.parametrize("where", ["</dev/null >&-", "| true", ">/dev/full"])
def test_a_command_that_nobody_listens_to_ends_as_python_does(where: str, tmp_path: Path) -> None:
    codes = []
    for run in ("command.run()", "sys.exit(command.main())"):
        (tmp_path / "script.py").write_text(ENDING.format(does="time.sleep(0.3) or print('said')", run=run))
        line = f'"{sys.executable}" "{tmp_path}/script.py" "<lambda>" y {where}; exit ${{PIPESTATUS[0]}}'
        ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
        codes.append((ended.returncode, ended.stderr))
    assert codes[0] == codes[1]
