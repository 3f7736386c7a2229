"""An evaluator of the user's own: one Python function, named in the recipe as `evaluators: [module:function]`.

The module is any that Python imports, the current folder first. With this in sharpness.py

    import numpy as np

    def sharpness(images, targets):
        return [float(np.abs(np.diff(image.astype(float), axis=0)).mean()) for image in images]

`evaluators: [ocr, "sharpness:sharpness"]` gives a column `sharpness` to rewards (`text_edit(target, ocr_text) +
0.01 * sharpness`), to SQL and to audits; `gpo-data measure RECIPE --trust --evaluator sharpness:sharpness` adds it to
what is drawn already. A recipe file that names a function is run with `--trust` only (recipe/trust.py).

    images    uint8 [H, W, 3] RGB arrays, one a member
    targets   as many dicts: the task's target columns, and `prompt`, the text
    returns   a number an image (a list, an array, a tensor): a column named after the function; or
              a dict an image: a column a key. None is NULL, "not measured".

The columns are those of the attribute `columns`, as in `score.columns = {"sharp": float, "word": str}` (float, int,
str, bool or an Arrow type); without it the function is called once on a grey picture, and numbers become DOUBLE.

What always holds: a result of another length or type stops the run with a UsageError; an exception of the function
costs the members that it cannot measure, not the run. The version is `<attribute version, or 0>-<hash of the source>`,
so a changed function measures again. What it calls (helpers, weights) is not looked at: raise `score.version` with it.
Where a lake has measurements of several versions SQL shows those that were measured last.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gpo_data.errors import UsageError
from gpo_data.evaluators.build import asked
from gpo_data.evaluators.protocol import not_finite
from gpo_data.recipe import Recipe
from gpo_data.tasks import TASKS

TYPES: dict[Any, pa.DataType] = {float: pa.float64(), int: pa.int64(), str: pa.string(), bool: pa.bool_()}
GREY = np.full((64, 64, 3), 128, np.uint8)


def _is_stored(kind: pa.DataType) -> bool:
    """Whether a group's JSON can hold such values."""
    if pa.types.is_struct(kind):
        return all(_is_stored(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_stored(kind.value_type)
    return any(
        test(kind)
        for test in (
            pa.types.is_boolean,
            pa.types.is_integer,
            pa.types.is_floating,
            pa.types.is_string,
            pa.types.is_large_string,
        )
    )


class FunctionEvaluator:
    @classmethod
    def of(cls, name: str, recipe: Recipe, threads: int | None) -> FunctionEvaluator:
        return cls(name, lambda: asked(TASKS[recipe.task.kind].prompts(recipe.task, recipe.seed)[0]))

    def __init__(self, setting: str, example: Callable[[], dict[str, Any]]) -> None:
        """Imports the function, or raises UsageError.

        Args:
            setting: `module:function`.
            example: a target to try the function on, asked for where it has no attribute `columns`.
        """
        self.setting = setting
        self.name = name_of(setting)
        self.version = version_of(setting)
        self.function = find(setting)
        self.columns = self._declared() or self._inferred(example())

    def measure(self, images: list[np.ndarray], targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """images: uint8 [H, W, 3] RGB; targets: the target columns and `prompt`, each."""
        if not images:
            return []
        rows = self._rows(self.function(images, targets), len(images))
        for row in rows:
            if row.keys() != self.columns.keys():
                raise self._error(f"expected the columns {', '.join(self.columns)}, found {', '.join(row) or 'none'}")
        typed = {name: self._typed(name, [row[name] for row in rows]) for name in self.columns}
        return [{name: values[i] for name, values in typed.items()} for i in range(len(rows))]

    def _declared(self) -> dict[str, pa.DataType]:
        columns = getattr(self.function, "columns", {})
        if not isinstance(columns, dict):
            raise self._error(f"columns: expected names and types, found {columns!r}")
        found = {}
        for name, kind in columns.items():
            found[self._named(name)] = TYPES.get(kind) if isinstance(kind, type) else kind
            if not isinstance(found[name], pa.DataType) or not _is_stored(found[name]):
                raise self._error(
                    f"columns: {name}: expected float, int, str, bool, or an Arrow type of these, lists and structs of "
                    f"them, found {kind!r}"
                )
        return found

    def _inferred(self, target: dict[str, Any]) -> dict[str, pa.DataType]:
        hint = f'; or say what it measures: {self.function.__name__}.columns = {{"name": float}}'
        try:
            found = self.function([GREY], [target])
        except Exception as error:  # the user's code may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise self._error(f"it raised {reason} on a grey picture and {target}{hint}") from error
        (row,) = self._rows(found, 1)
        columns = {}
        for name, value in row.items():
            kind = pa.array([value]).type
            if pa.types.is_null(kind):
                raise self._error(f"no type for {name}: it is None for a grey picture{hint}")
            if not _is_stored(kind):
                raise self._error(f"{name}: expected numbers, text or lists of them, found {kind}{hint}")
            number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
            columns[self._named(name)] = pa.float64() if number else kind
        if not columns:
            raise self._error(f"it measures nothing: an empty dict for a grey picture{hint}")
        return columns

    def _rows(self, found: Any, number: int) -> list[dict[str, Any]]:
        """The function's result as a dict an image, of plain Python values."""
        found = found.tolist() if hasattr(found, "tolist") else found  # a numpy array, a tensor
        if not isinstance(found, list | tuple):
            raise self._error(f"expected a list with a number or a dict an image, found {type(found).__name__}")
        if len(found) != number:
            raise self._error(f"expected {number} results for {number} images, found {len(found)}")
        named = [one if isinstance(one, dict) else {self.function.__name__: one} for one in found]
        return [{name: _plain(value) for name, value in row.items()} for row in named]

    def _typed(self, name: str, values: list[Any]) -> list[Any]:
        try:
            found: list[Any] = pa.array(values, self.columns[name]).to_pylist()
        except (pa.ArrowException, OverflowError) as error:
            raise self._error(f"{name}: expected {self.columns[name]}, found {values[:4]!r} ({error})") from None
        for value in found:
            if (wrong := not_finite(value)) is not None:
                raise ValueError(f"{name} is {wrong}")  # the member's status, not the run's end
        return found

    def _named(self, name: Any) -> str:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise self._error(f"expected letters, digits and _ in a column's name, found {name!r}")
        return name

    def _error(self, what: str) -> UsageError:
        return UsageError(f"evaluators: {self.setting}: {' '.join(what.split())}")


def name_of(setting: str) -> str:
    """`my_module:score` -> `my_module.score`, fit for the name of a folder."""
    return setting.replace(":", ".")


def version_of(setting: str) -> str:
    """`<attribute version>-<hash of the function's source and columns>`. Raises UsageError."""
    function = find(setting)
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        raise UsageError(f"evaluators: {setting}: no Python source to tell its version by; wrap it in a def") from None
    version, columns = str(getattr(function, "version", 0)), getattr(function, "columns", None)
    if not re.fullmatch(r"[A-Za-z0-9._]+", version):
        raise UsageError(f"evaluators: {setting}: version: expected letters, digits, '.' and '_', found {version!r}")
    return f"{version}-{hashlib.blake2b(f'{source} {columns}'.encode(), digest_size=4).hexdigest()}"


def find(setting: str) -> Any:
    """The function of `module:function`. Raises UsageError."""
    module_name, _, function_name = setting.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # the console script's path begins with its own folder
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UsageError(
                f"evaluators: {setting}: no module {module_name!r}; expected {module_name.replace('.', '/')}.py in "
                f"{here}, or an installed package"
            ) from None
        raise UsageError(f"evaluators: {setting}: {module_name} imports {error.name}, which is not installed") from None
    except Exception as error:  # the user's code may raise anything
        raise UsageError(f"evaluators: {setting}: importing it raised {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if inspect.isroutine(function):
        return function
    own = [name for name, value in inspect.getmembers(module, inspect.isfunction) if value.__module__ == module_name]
    what = "no function" if function is None else "not a function:"
    listed = ", ".join(own) or "none"
    raise UsageError(f"evaluators: {setting}: {what} {function_name!r} in {module.__file__}; its functions: {listed}")


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value  # numpy and torch scalars and arrays
