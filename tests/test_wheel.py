"""What is installed works without the checkout: in the wheel is all that the package reads, recipes by name too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gpo_data import recipe
from gpo_data.errors import UsageError

ROOT = Path(__file__).parents[1]
PACKAGES = ("gpo_data", "gpo_train")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a wheel that is built without network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):  # a copy: building writes beside the sources
        shutil.copy2(ROOT / name, source)
    for name in (*PACKAGES, "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "-w", str(out), str(source)], check=True)
    zipfile.ZipFile(next(out.glob("*.whl"))).extractall(out / "files")
    return out / "files"


def run(unpacked: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_wheel_has_all_that_the_packages_read(unpacked: Path) -> None:
    def files(root: Path, name: str) -> set[str]:
        return {
            str(path.relative_to(root))
            for path in (root / name).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    for package in PACKAGES:
        assert files(ROOT, package) <= files(unpacked, package)
    wanted = {path for path in files(ROOT, "recipes") if path.startswith("recipes/benchmarks/")}
    wanted |= {f"recipes/{path.name}" for path in (ROOT / "recipes").glob("*-*.yaml")}
    assert files(unpacked / "gpo_data", "recipes") == wanted
    assert next(unpacked.glob("*.dist-info/licenses/LICENSE")).read_text() == (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("command", ["gpo_data.cli", "gpo_train.cli"])
def test_a_recipe_goes_by_its_name_in_an_empty_folder(unpacked: Path, tmp_path: Path, command: str) -> None:
    code = "import sys, {0}; assert {0}.__file__.startswith(sys.argv[1]); sys.exit({0}.main(sys.argv[2:]))"
    verb = "verify" if command == "gpo_data.cli" else "watch"  # each reads the recipe, and misses what it is about
    arguments = ("-c", code.format(command), str(unpacked), verb)
    known = run(unpacked, tmp_path, *arguments, "text-tiny")
    assert known.returncode == 2 and "text-tiny" in known.stderr
    assert ("no dataset here" in known.stderr) or ("no online run of text-tiny" in known.stderr)
    unknown = run(unpacked, tmp_path, *arguments, "text-tinny")
    assert unknown.returncode == 2 and unknown.stderr.count("\n") == 1
    assert "recipe text-tinny: no such file; did you mean 'text-tiny'?; known by name: align-tiny, " in unknown.stderr


def test_a_file_comes_before_a_recipe_here_and_that_before_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text-tiny-folder").mkdir()
    content = "evaluators: [ocr]\nreward: '1'\nseed: {}\n"
    assert recipe.load("text-tiny").name == "text-tiny"
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "text-tiny.yaml").write_text(content.format(1))
    assert recipe.load("text-tiny").seed == 1
    (tmp_path / "recipes" / "mine.yaml").write_text(content.format(2))
    assert (recipe.load("mine").seed, recipe.load("mine").name) == (2, "mine")
    (tmp_path / "text-tiny").write_text(content.format(3))
    assert recipe.load("text-tiny").seed == 3
    for name in ("text-tiny.yaml", "recipes/count-tiny", "text-tiny-folder", ""):
        with pytest.raises(UsageError, match="no such file.*known by name: align-tiny, .*mine"):
            recipe.load(name)
