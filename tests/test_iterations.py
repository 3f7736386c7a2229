"""What an iteration draws, and what is left of old ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gpo_data import recipe
from gpo_data.errors import UsageError
from gpo_data.evaluators import ocr
from gpo_data.evaluators.pool import Measure
from gpo_data.lake import catalog
from gpo_data.lake.shard import dataset_folder
from gpo_data.recipe import Online
from gpo_train import cli
from gpo_train.online.choose import choose
from gpo_train.online.iterations import Iteration, history
from gpo_train.run import Run
from tests.parts.online import here as here
from tests.parts.online import online


def test_prompts_are_chosen_by_what_the_lake_knows(here: Path) -> None:
    made = recipe.load(here)
    run = Path("runs/a")
    first = choose(made, Online(prompt_selection="unmastered", prompts=2, pool=4), Iteration(run, 0))
    assert first == choose(made, Online(prompts=2), Iteration(run, 0))
    online(
        here,
        "--online.prompt_selection",
        "unmastered",
        "--online.prompts",
        "2",
        "--online.pool",
        "4",
        "--online.iterations",
        "3",
    )
    con = catalog.connect("lake")
    spread = dict(con.execute("SELECT prompt, std FROM groups WHERE dataset IN ('a-it0000', 'a-it0001')").fetchall())
    third = {row[0] for row in con.execute("SELECT prompt FROM groups WHERE dataset = 'a-it0002'").fetchall()}
    assert len(spread) == 4  # never drawn comes first
    assert third == set(sorted(spread, key=lambda prompt: -spread[prompt])[:2])
    shutil.rmtree(dataset_folder("lake", "a-it0001"))  # never chosen as if it had not been drawn
    with pytest.raises(UsageError, match="run runs/a: it has drawn a-it0001, and lake .* it no longer: put it back"):
        choose(made, Online(prompt_selection="unmastered", prompts=2, pool=4), Iteration(run, 2))
    same = choose(made, Online(prompt_selection="same"), Iteration(run, 3))
    assert same == choose(made, Online(), Iteration(run, 0)) != choose(made, Online(), Iteration(run, 1))


def test_a_run_opens_its_evaluators_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def load(settings: ocr.Settings, threads: int) -> Measure:
        opened.append(settings)
        return real(settings, threads)

    real = ocr.load
    monkeypatch.setattr(ocr, "load", load)
    online(here, "--online.iterations", "2", "--online.grid_every", "1")
    assert len(opened) == 1


def test_prompts_that_end_come_round_again(here: Path) -> None:
    made = recipe.load(here, ["--task.kind", "count"])
    found = [choose(made, Online(prompts=70), Iteration(Path("runs/a"), i)) for i in range(2)]
    assert len(set(p.text for p in found[0] + found[1])) < 140 and found[1][-1] in found[0]
    first = Iteration(Path("runs/a"), 0)
    assert len(choose(made, Online(prompt_selection="unmastered", prompts=70), first)) == 70
    for selection in ("next", "same", "unmastered"):
        with pytest.raises(UsageError, match="online.prompts: expected at most [0-9]+, which .* found 1000"):
            choose(made, Online(prompts=1000, prompt_selection=selection), first)
    with pytest.raises(UsageError, match="online.pool: expected at most [0-9]+, which .* found 1000"):
        choose(made, Online(prompts=10, pool=1000, prompt_selection="unmastered"), first)


def test_old_iterations_lose_their_tars_and_keep_their_rows(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    online(here, "--online.keep_last", "1", "--online.grid_every", "2", name="small-online")
    assert [len(list(dataset_folder("lake", f"small-online-it{i:04d}").glob("*.tar"))) for i in range(3)] == [0, 0, 2]
    rows = catalog.connect("lake").execute("SELECT dataset, count(*) FROM members GROUP BY 1").fetchall()
    assert sorted(n for _, n in rows) == [16, 16, 16]
    run = Run(Path("runs/small-online"))
    assert [(Iteration(run.folder, i).folder / "grid.png").is_file() for i in range(3)] == [True, False, True]
    assert cli.main(["watch", str(here)]) == 0
    assert "small-online" in capsys.readouterr().out and (run.folder / "watch.png").stat().st_size > 10_000
    seconds = history(run.folder)[1].seconds
    assert seconds["draw"] > seconds["write"] > 0 and seconds["train"] > 0 and seconds["catalog"] > 0
