"""A recipe from a stranger is data: what of it is code runs where the user says so, and nowhere else."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

import gpo_data.cli
import gpo_train.cli
from gpo_data import recipe
from gpo_data.errors import UsageError
from gpo_data.generation.reward import expect_declared_reward
from gpo_data.recipe.files import known_names
from gpo_data.tasks import TASKS


class Evil:
    """Pickled, it makes a folder where it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a stranger's code would make, in a folder with such code."""
    monkeypatch.chdir(tmp_path)
    ran = tmp_path / "ran"
    Path("evil.pt").write_bytes(pickle.dumps(Evil(ran)))
    Path("evil_code.py").write_text(
        f"import os\n\nos.mkdir({str(ran)!r})\n\n\ndef score(images, targets):\n    return [1.0]\n"
    )
    return ran


OWN = ("--evaluators", "[color, 'evil_code:score']", "--reward", "score")
WEIGHTS = ("--task.kind", "count", "--evaluators", "[boxes]", "--yolo.weights", "evil.pt", "--reward", "1")
REFUSED = {
    "an own evaluator": (("shards", "SMALL", *OWN), "evaluators: evil_code:score imports and runs"),
    "in measure": (("measure", "SMALL", "--evaluator", "evil_code:score"), "evaluators: evil_code:score imports"),
    "weights": (("shards", "SMALL", *WEIGHTS), "yolo.weights: evil.pt is opened as pickled objects"),
    "weights in measure": (("measure", "SMALL", *WEIGHTS[4:6], "--evaluator", "yolo"), "yolo.weights: evil.pt"),
    "drawing again": (("verify", "SMALL", "--redraw", "1", *OWN), "evaluators: evil_code:score"),
    "online": (("fit", "SMALL", "--mode", "online", *OWN), "evaluators: evil_code:score"),
    "in an evaluation": (("eval", "SMALL", *WEIGHTS), "yolo.weights: evil.pt"),
    "a watcher": (("shards", "SMALL", "--watchers", "['evil_code:score']"), "evaluators: evil_code:score imports"),
    "a judge elsewhere": (
        ("shards", "SMALL", "--http.urls", "{far: 'http://example.org/score'}", "--evaluators", "[ocr, far]"),
        "evaluators: far sends pictures, prompts and what GPO_JUDGE_TOKEN holds to http://example.org/score",
    ),
    "a model elsewhere": (
        ("shards", "SMALL", "--vlm.url", "http://127.0.0.1.example.org/v1", "--evaluators", "[ocr, vlm]"),
        "evaluators: vlm sends pictures",
    ),
    "a kernel of the hub": (
        ("shards", "SMALL", "--sampler.attention_backend", "sage_hub"),
        "sampler.attention_backend",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_code_in_a_recipe_is_refused_in_one_line(
    kind: str, ran: Path, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, says = REFUSED[kind]
    line = [str(recipe_file) if one == "SMALL" else one for one in arguments]
    command = gpo_train.cli if line[0] in ("fit", "eval") else gpo_data.cli
    assert command.main(line) == 2
    said = capsys.readouterr().err
    assert says in said and "`--trust` allows it" in said and said.count("\n") == 1
    assert not ran.exists() and not (recipe_file.parent / "lake").exists()


@pytest.mark.parametrize("options", [OWN, WEIGHTS])
def test_the_users_word_runs_it(options: tuple[str, ...], ran: Path, recipe_file: Path) -> None:
    """That these are attacks: with --trust the folder is there, whatever comes of the rest."""
    gpo_data.cli.main(["shards", str(recipe_file), "--trust", "--task.num_prompts", "2", *options])
    assert ran.exists()


def test_in_python_a_file_is_trusted_by_argument(ran: Path, recipe_file: Path) -> None:
    with pytest.raises(UsageError, match=r"load\(\.\.\., trust=True\)"):
        recipe.load(recipe_file, OWN)
    assert recipe.load(recipe_file, OWN, trust=True).evaluators == ["color", "evil_code:score"]


def test_verbs_that_only_read_ask_for_no_trust(ran: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["sql", str(here), "SELECT 1"], ["show", str(here)], ["verify", str(here)]):
        assert gpo_data.cli.main([*verb, "--evaluators", "['evil_code:score']"]) == 0
    assert not ran.exists()


@pytest.mark.parametrize("name", [name for name in known_names() if name != "tiny"])
def test_shipped_recipes_need_no_trust_and_pay_for_what_is_seen(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = recipe.load(name)
    assert found.name == name
    if found.vlm.questions_column is None:  # else of a file's, which tests/test_benchmarks.py has
        expect_declared_reward(found, TASKS[found.task.kind].columns)
