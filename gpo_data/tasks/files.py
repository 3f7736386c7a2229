"""Files of prompts as rows with named columns: what people have, read as it is.

    .txt              a prompt a line; a folder of them: every line of every file, with its `file`
    .csv .tsv         a header, quoted fields (also over several lines)
    .json             a list of objects, or an object that holds one
    .jsonl .ndjson    an object a line
    .parquet          a row a prompt
    folder, id        of `datasets`: written by `save_to_disk`, or what `load_dataset` opens

Extensions in any case, UTF-8 with or without a byte order mark, any line ends. Pictures, sounds and bytes are not read:
a broken image in a column that nobody names stops nothing. In .csv and .tsv, whose fields are all text, a column that
holds only numbers is one of numbers, besides those that `text` names.

What always holds: the order is the source's; where a row comes from is `file:line`, or `source, row n`; a row that
cannot be read is a `Row` with a `problem`, and the others are read.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from gpo_data.errors import UsageError, words
from gpo_data.fetch import load_dataset
from gpo_data.recipe import Task

Values = dict[str, Any]
SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True)
class Row:
    """Args:
    where: `file:line`, for people.
    values: by column; of a .txt file the prompt alone.
    problem: why there are none.
    """

    where: str
    values: Values = field(default_factory=dict)
    problem: str | None = None


def rows(spec: Task, text: Collection[str] = ()) -> Iterator[Row]:
    """The rows of `task.prompts`. Raises UsageError where it does not open.

    Args:
        text: columns of a .csv or .tsv file that stay text: a word to draw may be `2024`.
    """
    assert spec.prompts is not None
    path = Path(spec.prompts).expanduser()
    suffix = path.suffix.lower()
    if path.is_dir() and (lines := _text_files(path)):
        for file in lines:
            for row in _lines(file, spec.prompt_column):
                yield Row(row.where, row.values | {"file": file.stem}, row.problem)
    elif path.is_dir() or (suffix not in SUFFIXES and not path.is_file()):
        yield from _dataset(spec, path)
    elif not path.is_file():
        raise UsageError(f"task.prompts: {path}: no such file; paths are relative to the current folder")
    elif suffix == ".txt":
        yield from _lines(path, spec.prompt_column)
    elif suffix in (".csv", ".tsv"):
        yield from _table(path, "," if suffix == ".csv" else "\t", {spec.prompt_column, *text})
    elif suffix in (".jsonl", ".ndjson"):
        yield from _json_lines(path)
    elif suffix == ".json":
        yield from _json(path)
    elif suffix == ".parquet":
        yield from _parquet(path)
    else:
        raise UsageError(
            f"task.prompts: {path}: expected a file that ends in {', '.join(SUFFIXES)}, a folder or a `datasets` id"
        )


def is_text(spec: Task) -> bool:
    """Whether the source has sentences and no columns."""
    path = Path(spec.prompts or "").expanduser()
    return path.suffix.lower() == ".txt" or (path.is_dir() and bool(_text_files(path)))


def column_of(names: Collection[str], name: str) -> str | None:
    """The column of this name; where there is none, the only one that differs in upper and lower case."""
    if name in names:
        return name
    found = [one for one in names if one.lower() == name.lower()]
    return found[0] if len(found) == 1 else None


def _text_files(folder: Path) -> list[Path]:
    """Of a folder that holds .txt files and nothing of `datasets`; in the order of their numbers and names."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return []
    files = [file for file in folder.iterdir() if not file.name.startswith(".")]
    if any(file.suffix.lower() in SUFFIXES[1:] for file in files):
        return []
    found = [file for file in files if file.suffix.lower() == ".txt" and file.is_file()]
    return sorted(
        found, key=lambda file: [(not p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in _parts(file)]
    )


def _parts(file: Path) -> list[str]:
    return [part for part in re.split(r"(\d+)", file.name) if part]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"task.prompts: {path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise UsageError(f"task.prompts: {path}: cannot be read: {error.strerror}") from None


def _lines(path: Path, column: str) -> Iterator[Row]:
    # split on line ends only: splitlines() would also cut at a form feed or U+2028 inside a prompt
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            yield Row(f"{path}:{number}", {column: line})


def _table(path: Path, delimiter: str, text: Collection[str]) -> Iterator[Row]:
    content = _read(path)
    try:
        names, found = _fields(path, content, delimiter, csv.QUOTE_MINIMAL)
    except csv.Error as error:
        if delimiter != "\t":
            raise UsageError(f"task.prompts: {path}: not a table with quoted fields: {error}") from None
        names, found = _fields(path, content, delimiter, csv.QUOTE_NONE)  # many write tabs and no quotes
    kept = {column_of(names, name) for name in text}
    numbers = {name: kind for name in names if name not in kept and (kind := _kind(found, name)) is not None}
    for row in found:
        for name, kind in numbers.items():
            if (value := row.values.get(name)) is not None:
                row.values[name] = kind(value)
        yield row


def _fields(path: Path, content: str, delimiter: str, quoting: Literal[0, 3]) -> tuple[list[str], list[Row]]:
    """(columns, rows of text). Raises csv.Error."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    names, found, line = list[str](), list[Row](), 1
    for fields in reader:
        where, line = f"{path}:{line}", reader.line_num + 1
        if not any(fields):
            continue
        if not names:
            names = [name.strip() for name in fields]
            if len(set(names)) < len(names):
                raise UsageError(f"task.prompts: {where}: expected columns of different names, found {names}")
        elif len(fields) != len(names):
            found.append(Row(where, problem=f"expected {len(names)} fields as in the header, found {len(fields)}"))
        else:
            found.append(Row(where, dict(zip(names, (one or None for one in fields), strict=True))))
    return names, found


def _kind(found: list[Row], name: str) -> type[int] | type[float] | None:
    """What a column of text holds, where every value of it is a number as one writes it (007 is a name)."""
    values = [value for row in found if (value := row.values.get(name)) is not None]
    if values and all(re.fullmatch(r"-?(0|[1-9]\d{0,17})", value) for value in values):
        return int
    if values and all(re.fullmatch(r"-?(0|[1-9]\d{0,17})(\.\d+)?([eE][-+]?\d{1,3})?", value) for value in values):
        return float
    return None


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                yield _object(json.loads(line), where)
            except (ValueError, RecursionError) as error:
                yield Row(where, problem=f"not JSON: {error}")


def _json(path: Path) -> Iterator[Row]:
    try:
        found = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"task.prompts: {path}: not JSON: {error}") from None
    if isinstance(found, dict):
        lists = [name for name, value in found.items() if isinstance(value, list)]
        if len(lists) != 1:
            raise UsageError(
                f"task.prompts: {path}: expected a list of objects, or an object that holds one list, found an object "
                f"of {', '.join(found) or 'nothing'}"
            )
        found = found[lists[0]]
    if not isinstance(found, list):
        raise UsageError(f"task.prompts: {path}: expected a list of objects, found {type(found).__name__}")
    for number, one in enumerate(found, start=1):
        yield _object(one, f"{path}, row {number}")


def _object(found: Any, where: str) -> Row:
    if not isinstance(found, dict):
        return Row(where, problem=f"expected an object with named columns, found {found!s:.100}")
    return Row(where, found)


def _parquet(path: Path) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            names = [f.name for f in file.schema_arrow if _plain(f.type)]
            number = 0
            for batch in file.iter_batches(columns=names):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}, row {number}", values)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"task.prompts: {path}: not Parquet: {' '.join(str(error).split())[:200]}") from None


def _plain(kind: pa.DataType) -> bool:
    """Text, numbers, and lists and structs of these; no bytes."""
    if pa.types.is_struct(kind):
        return all(_plain(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _plain(kind.value_type)
    return not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _dataset(spec: Task, path: Path) -> Iterator[Row]:
    """The rows of a `datasets` folder or id, of the columns that hold no pictures, sounds or bytes."""
    found = _opened(spec, path)
    names = [f.name for f in found.features.arrow_schema if _plain(f.type)]
    for number, values in enumerate(found.select_columns(names), start=1):
        yield Row(f"{spec.prompts}, row {number}", values)


def _opened(spec: Task, path: Path) -> Any:
    """Imported here because it is slow and may touch the network."""
    import datasets

    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(str(path))
            if not isinstance(loaded, datasets.DatasetDict):
                return loaded
            if spec.dataset_split not in loaded:
                raise UsageError(f"task.dataset_split: {path} has {', '.join(loaded)}, not {spec.dataset_split!r}")
            return loaded[spec.dataset_split]
        return load_dataset(str(spec.prompts), split=spec.dataset_split)
    except UsageError:
        raise
    except Exception as error:  # whatever the loader raises, the user needs the same thing: a source that opens
        reason = words(error)
        raise UsageError(
            f"task.prompts: {spec.prompts}: neither a local file ({', '.join(SUFFIXES)}) or folder, nor a data set "
            f"that opens here (split {spec.dataset_split!r}): {reason}. Without a network, save it where there is one "
            f"with `datasets.load_dataset(id, split=...).save_to_disk(folder)` and give the folder"
        ) from None
