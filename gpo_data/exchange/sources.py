"""Pictures of anybody, with their captions: what `gpo-data import` reads.

    folder          pictures in it and below; the caption of a.png is a.txt, or its row in metadata.jsonl or
                    metadata.csv (file_name and a caption, as the ImageFolder of `datasets` has it)
    *.tar           WebDataset, one tar or a folder of tars: a.jpg with a.txt, or a.json with a caption
    *.parquet       a file, or a folder of them: rows with a picture and a caption
    datasets        a folder of `save_to_disk`, or an id

What a row says is in rows.py.

What always holds: the order is the source's own (file names sorted), and nothing is skipped without a word: rows whose
file is not there and pictures of a kind that is not read are told, and the others are read.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from gpo_data.errors import UsageError, few, words
from gpo_data.exchange.rows import (
    CAPTIONS,
    IMAGES,
    PAIR,
    Picture,
    caption_needed,
    caption_of,
    encodable,
    holds_bytes,
    of_row,
    others,
)
from gpo_data.fetch import load_dataset
from gpo_data.recipe import Task
from gpo_data.tasks import files

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
NOT_READ = re.compile(r"\.(avif|bmp|gif|hei[cf]|ico|jfif|jp2|jxl|p[bgp]m|psd|svg|tga|tiff?)", re.IGNORECASE)
Skipped = dict[str, list[str]]  # {what is wrong with them: their names}


def pictures(source: str, task: Task, console: Console) -> list[Picture]:
    """All of them; the console is told what was skipped. Raises UsageError: no such source, no caption, no picture."""
    skipped: Skipped = {}
    path = Path(source).expanduser()
    if path.is_dir() and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
        found = list(_rows_of_datasets(source, task))
    elif path.is_dir() and (tars := sorted(path.glob("*.tar"))):
        found = [one for tar in tars for one in _tar(tar, task, skipped)]
    elif path.is_dir() and (parts := sorted(path.glob("*.parquet"))):
        found = [one for file in parts for one in _parquet(file, task)]
    elif path.is_dir():
        found = list(_folder(path, task, skipped))
    elif path.suffix == ".tar" and path.is_file():
        found = list(_tar(path, task, skipped))
    elif path.suffix == ".parquet" and path.is_file():
        found = list(_parquet(path, task))
    elif path.exists() or path.suffix in (".tar", ".parquet") or source.startswith((".", "/", "~")):
        raise UsageError(f"import {source}: expected a folder of pictures, .tar, .parquet or a `datasets` id")
    else:
        found = list(_rows_of_datasets(source, task))
    for reason, names in skipped.items():
        said = f"warning: import {source}: skipped {len(names):,} {reason}: {few([repr(name) for name in names])}"
        console.print(said, soft_wrap=True, markup=False)
    if not found:
        raise UsageError(f"import {source}: no picture in it ({', '.join(PICTURES)}, .tar, .parquet)")
    return found


def _folder(path: Path, task: Task, skipped: Skipped) -> Iterator[Picture]:
    rows = _metadata(path, task)
    there = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
    _skip(skipped, "rows of metadata whose file is not there", [name for name in rows if name not in there])
    left = [name for name, file in there.items() if file.suffix.lower() not in PICTURES]
    unread = [name for name in left if name in rows or NOT_READ.fullmatch(there[name].suffix)]
    _skip(skipped, f"files that are not {', '.join(PICTURES)}", unread)
    without: list[str] = []
    for name, file in there.items():
        if file.suffix.lower() not in PICTURES:
            continue
        row = rows.get(name, {})
        if file.with_suffix(".txt").is_file():
            row = {**row, "caption": _text(file.with_suffix(".txt"))}
        if (caption := caption_of(row, task)) is None:
            without.append(name)
            continue
        yield Picture(name, caption[1], file.read_bytes, columns=others(row, caption[0], "file_name"))
    if without:
        raise UsageError(
            f"import {path}: {len(without)} pictures have no caption, neither a .txt of the same name nor a row in "
            f"metadata.jsonl or metadata.csv: {few(without)}"
        )


def _skip(skipped: Skipped, reason: str, names: list[str]) -> None:
    if names:
        skipped.setdefault(reason, []).extend(names)


def _metadata(path: Path, task: Task) -> dict[str, dict[str, Any]]:
    """{file name: its row}, read as `task.prompts` would be."""
    for file in (path / "metadata.jsonl", path / "metadata.csv"):
        if file.is_file():
            text = {"file_name", *CAPTIONS, *([task.target_column] if task.kind == "text" else [])}
            try:
                rows = list(files.rows(dataclasses.replace(task, prompts=str(file)), text))
            except UsageError as error:
                raise UsageError(f"import: {str(error).removeprefix('task.prompts: ')}") from None
            for row in rows:
                if row.problem or "file_name" not in row.values:
                    reason = row.problem or f"expected file_name and a caption, found {few(list(row.values))}"
                    raise UsageError(f"import {row.where}: {reason}")
                encodable(row.values, row.where)
            return {str(row.values["file_name"] or row.where): row.values for row in rows}
    return {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"import {path}: not UTF-8 ({error.reason} at byte {error.start})") from None


def _tar(path: Path, task: Task, skipped: Skipped) -> Iterator[Picture]:
    """Files of one key (the name up to its first dot) are one sample, as WebDataset has it."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for entry in archive:
                if entry.isreg() and (named := re.fullmatch(r"((?:.*/)?[^./][^.]*)\.(.+)", entry.name)):
                    samples.setdefault(named[1], {})[named[2].lower()] = entry

            def content(entry: tarfile.TarInfo) -> bytes:
                stream = archive.extractfile(entry)
                assert stream is not None
                return stream.read()

            for key, parts in samples.items():
                image = next((parts[kind[1:]] for kind in PICTURES if kind[1:] in parts), None)
                where = f"{path.name}/{key}"
                if image is None:
                    _skip(skipped, f"samples without {', '.join(PICTURES)}", [where])
                    continue
                row = _object(content(parts["json"]), f"{where}.json") if "json" in parts else {}
                if "txt" in parts:
                    row["caption"] = content(parts["txt"]).decode(errors="replace").strip()
                caption = caption_needed(row, task, where)
                read = functools.partial(_pread, path, image.offset_data, image.size)
                yield Picture(where, caption[1], read, columns=others(row, caption[0]))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UsageError(f"import {path}: not a tar that can be read to its end: {error}") from None


def _pread(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)


def _object(data: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise UsageError(f"import {where}: not JSON: {error}") from None
    return encodable(found, where) if isinstance(found, dict) else {}


def _parquet(path: Path, task: Task) -> Iterator[Picture]:
    try:
        file = pq.ParquetFile(path)
    except Exception as error:  # pyarrow raises many kinds
        raise UsageError(f"import {path}: not Parquet: {error}") from None
    names = file.schema_arrow.names
    binary = [n for n in (*PAIR[:2], *IMAGES) if n in names and holds_bytes(file.schema_arrow.field(n).type)]
    plain = [name for name in names if name not in binary]
    numbers = [(g, i) for g in range(file.num_row_groups) for i in range(file.metadata.row_group(g).num_rows)]
    rows = file.read(columns=plain).to_pylist() if plain else [{} for _ in numbers]

    @functools.lru_cache(maxsize=2)  # the pictures of a row group lie together, and are asked for in order
    def column(group: int, name: str) -> Any:
        return file.read_row_group(group, columns=[name])[name]

    for index, ((group, i), row) in enumerate(zip(numbers, rows, strict=True)):

        def read(name: str, group: int = group, i: int = i) -> Any:
            return column(group, name)[i].as_py()

        yield from of_row(f"{path.name}:{index}", row, binary, read, task)


def _rows_of_datasets(source: str, task: Task) -> Iterator[Picture]:
    import datasets

    path = Path(source).expanduser()
    try:
        loaded = datasets.load_from_disk(str(path)) if path.is_dir() else load_dataset(source)
        if isinstance(loaded, datasets.DatasetDict):
            loaded = loaded[task.dataset_split]
    except Exception as error:  # whatever the loader raises, the user needs the same thing: a source that opens
        reason = words(error)
        raise UsageError(
            f"import {source}: neither a folder or file on this machine nor a data set that opens here (split "
            f"{task.dataset_split!r}): {reason}"
        ) from None
    for name, kind in loaded.features.items():
        if isinstance(kind, datasets.Image):
            loaded = loaded.cast_column(name, datasets.Image(decode=False))
    types = {field.name: field.type for field in loaded.features.arrow_schema}
    binary = [
        name
        for name, kind in loaded.features.items()
        if isinstance(kind, datasets.Image) or (name in (*PAIR[:2], *IMAGES) and holds_bytes(types[name]))
    ]
    rows = loaded.remove_columns(binary)
    images = loaded.select_columns(binary)
    for index in range(len(loaded)):

        def read(name: str, index: int = index) -> Any:
            return images[index][name]

        yield from of_row(f"{source}:{index}", rows[index] if rows.features else {}, binary, read, task)
