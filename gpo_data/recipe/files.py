"""Recipe files: YAML 1.2, one file an experiment, found by path or, as `text-tiny`, by name."""

from __future__ import annotations

import contextlib
import difflib
import math
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gpo_data.errors import UsageError, few

PACKAGE = Path(__file__).parents[1]
MOST_VALUES = 100_000  # of a recipe


def find(name: str | Path) -> Path:
    """The file of a path or a name. Raises UsageError.

    A name has neither folder nor suffix. There may be a file that is called so; then the recipes in ./recipes count,
    then those that came with the package.
    """
    path = Path(name)
    with contextlib.suppress(OSError):  # a name too long for the system
        if path.is_file():
            return path
    known = known_names()
    if str(path) in known:
        return known[str(path)]
    listed = ", ".join(sorted(known)) or "none"
    raise UsageError(f"recipe {name!s:.200}: no such file{did_you_mean(path.stem, [*known])}; known by name: {listed}")


def known_names() -> dict[str, Path]:
    """{name: file} of the recipes here and in the package; one here hides one of the same name in the package."""
    inside = PACKAGE / "recipes"  # in a wheel; a checkout has them beside the packages
    shipped = inside if inside.is_dir() else PACKAGE.parent / "recipes"
    files = [
        *shipped.glob("*-*.yaml"),
        *shipped.glob("benchmarks/*.yaml"),
        *Path("recipes").glob("*.yaml"),
        *Path("recipes").glob("benchmarks/*.yaml"),
    ]
    return {path.stem: path for path in files}


def read(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises UsageError."""
    try:
        content = yaml_value(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"recipe {path}: expected a file that can be read, found: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"recipe {path}: expected UTF-8, found byte {error.object[error.start]:#04x}") from None
    except ValueError as error:
        raise UsageError(f"recipe {path}: not YAML: {error}") from None
    if not isinstance(content, dict | None):
        raise UsageError(f"recipe {path}: expected keys and values, found {type(content).__name__}")
    return content or {}


def yaml_value(text: str) -> Any:
    """Raises ValueError, in one line."""
    try:
        value = YAML(typ="safe", pure=True).load(text)
        if _size(value, {}) > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} values, or an alias that holds itself")
    except (YAMLError, RecursionError, ValueError) as error:  # ValueError: a date that there is not
        raise ValueError(" ".join(str(error).split())[:300]) from None
    return value


def _size(value: Any, sizes: dict[int, float]) -> float:
    """Values in it when aliases are written out, which a few lines can make millions of."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = math.inf  # until it is counted: only what holds itself is met again before
        inner = value.values() if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(_size(one, sizes) for one in inner)
    return sizes[id(value)]


def nearest(key: str, known: list[str]) -> str:
    """What may have been meant, else what there is."""
    return did_you_mean(key, known) or f"; known: {few(known)}"


def did_you_mean(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
