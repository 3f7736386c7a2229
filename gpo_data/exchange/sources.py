"""Pictures of anybody, with their captions: what `gpo-data import` reads.

    folder          pictures in it and below; the caption of a.png is a.txt, or its row in metadata.jsonl or
                    metadata.csv (file_name and a caption, as the ImageFolder of `datasets` has it)
    *.tar           WebDataset, one tar or a folder of tars: a.jpg with a.txt, or a.json with a caption
    *.parquet       a file, or a folder of them: rows with a picture and a caption
    datasets        a folder of `save_to_disk`, or an id

A row with jpg_0, jpg_1 and label_0 is one of Pick-a-Pic's: a pair, whose labels are 1 and 0, or 0.5 each. Other columns
of a row travel with it: the task takes its target from them. Captions are looked for as task.prompt_column, then
caption, text and prompt.

What always holds: the order is the source's own (file names sorted), nothing is skipped without a word, and pictures
are opened one by one when they are needed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from gpo_data.errors import UsageError, few, words
from gpo_data.fetch import load_dataset
from gpo_data.recipe import Task
from gpo_data.tasks import files

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
CAPTIONS = ("caption", "text", "prompt")
IMAGES = ("image", "jpg", "png", "webp", "jpeg")
PAIR = ("jpg_0", "jpg_1", "label_0")


@dataclass(frozen=True)
class Picture:
    """Args:
    where: its name, for people.
    caption: one line.
    read: its bytes.
    label: of a pair.
    pair: the pair's own name; None: a picture goes with all others of its caption.
    columns: what else its row says.
    """

    where: str
    caption: str
    read: Callable[[], bytes]
    label: float | None = None
    pair: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)


def pictures(source: str, task: Task) -> list[Picture]:
    """All of them. Raises UsageError: no such source, no caption, no picture."""
    path = Path(source).expanduser()
    if path.is_dir() and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
        found = list(_rows_of_datasets(source, task))
    elif path.is_dir() and (tars := sorted(path.glob("*.tar"))):
        found = [one for tar in tars for one in _tar(tar, task)]
    elif path.is_dir() and (parts := sorted(path.glob("*.parquet"))):
        found = [one for file in parts for one in _parquet(file, task)]
    elif path.is_dir():
        found = list(_folder(path, task))
    elif path.suffix == ".tar" and path.is_file():
        found = list(_tar(path, task))
    elif path.suffix == ".parquet" and path.is_file():
        found = list(_parquet(path, task))
    elif path.exists() or path.suffix in (".tar", ".parquet") or source.startswith((".", "/", "~")):
        raise UsageError(f"import {source}: expected a folder of pictures, .tar, .parquet or a `datasets` id")
    else:
        found = list(_rows_of_datasets(source, task))
    if not found:
        raise UsageError(f"import {source}: no picture in it ({', '.join(PICTURES)}, .tar, .parquet)")
    return found


def _folder(path: Path, task: Task) -> Iterator[Picture]:
    rows = _metadata(path, task)
    without: list[str] = []
    for file in sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES):
        name = file.relative_to(path).as_posix()
        row = rows.get(name, {})
        if file.with_suffix(".txt").is_file():
            row = {**row, "caption": _text(file.with_suffix(".txt"))}
        if (caption := caption_of(row, task)) is None:
            without.append(name)
            continue
        yield Picture(name, caption[1], file.read_bytes, columns=_others(row, caption[0], "file_name"))
    if without:
        raise UsageError(
            f"import {path}: {len(without)} pictures have no caption, neither a .txt of the same name nor a row in "
            f"metadata.jsonl or metadata.csv: {few(without)}"
        )


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
            return {str(row.values["file_name"]): row.values for row in rows}
    return {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"import {path}: not UTF-8 ({error.reason} at byte {error.start})") from None


def _tar(path: Path, task: Task) -> Iterator[Picture]:
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
                if image is None:
                    continue
                where = f"{path.name}/{key}"
                row = _object(content(parts["json"]), where) if "json" in parts else {}
                if "txt" in parts:
                    row["caption"] = content(parts["txt"]).decode(errors="replace").strip()
                caption = _needed(row, task, where)
                read = functools.partial(_pread, path, image.offset_data, image.size)
                yield Picture(where, caption[1], read, columns=_others(row, caption[0]))
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
        raise UsageError(f"import {where}.json: not JSON: {error}") from None
    return found if isinstance(found, dict) else {}


def _parquet(path: Path, task: Task) -> Iterator[Picture]:
    try:
        file = pq.ParquetFile(path)
    except Exception as error:  # pyarrow raises many kinds
        raise UsageError(f"import {path}: not Parquet: {error}") from None
    names = file.schema_arrow.names
    binary = [name for name in (*PAIR[:2], *IMAGES) if name in names]
    plain = [name for name in names if name not in binary]
    numbers = [(g, i) for g in range(file.num_row_groups) for i in range(file.metadata.row_group(g).num_rows)]
    rows = file.read(columns=plain).to_pylist() if plain else [{} for _ in numbers]

    @functools.lru_cache(maxsize=2)  # the pictures of a row group lie together, and are asked for in order
    def column(group: int, name: str) -> Any:
        return file.read_row_group(group, columns=[name])[name]

    for index, ((group, i), row) in enumerate(zip(numbers, rows, strict=True)):

        def read(name: str, group: int = group, i: int = i) -> Any:
            return column(group, name)[i].as_py()

        yield from _row(f"{path.name}:{index}", row, binary, read, task)


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
    names = list(loaded.features)
    binary = [
        name for name in names if name in (*PAIR[:2], *IMAGES) or isinstance(loaded.features[name], datasets.Image)
    ]
    rows = loaded.remove_columns(binary)
    images = loaded.select_columns(binary)
    for index in range(len(loaded)):

        def read(name: str, index: int = index) -> Any:
            return images[index][name]

        yield from _row(f"{source}:{index}", rows[index] if rows.features else {}, binary, read, task)


def _row(
    where: str, row: dict[str, Any], binary: list[str], read: Callable[[str], Any], task: Task
) -> Iterator[Picture]:
    """A pair, or a picture."""
    name, caption = _needed(row, task, where)
    columns = _others(row, name)
    if {*PAIR[:2]} <= {*binary} and row.get("label_0") is not None:
        try:
            first = float(row["label_0"])
            second = 1 - first if row.get("label_1") is None else float(row["label_1"])
        except (TypeError, ValueError):
            raise UsageError(f"import {where}: label_0: expected a number, found {row['label_0']!r}") from None
        for i, label in enumerate((first, second)):
            data = functools.partial(_image_bytes, functools.partial(read, PAIR[i]), f"{where} {PAIR[i]}")
            yield Picture(f"{where}/{i}", caption, data, label, pair=where, columns=columns)
        return
    image = next((one for one in binary if one not in PAIR), None)
    if image is None:
        raise UsageError(
            f"import {where}: expected a column with pictures ({', '.join(IMAGES)}) or Pick-a-Pic's "
            f"{', '.join(PAIR)}, found {few([*row, *binary])}"
        )
    yield Picture(
        where, caption, functools.partial(_image_bytes, functools.partial(read, image), where), columns=columns
    )


def _image_bytes(read: Callable[[], Any], where: str) -> bytes:
    """Of bytes, or of the {bytes, path} of `datasets`."""
    found = read()
    data = found.get("bytes") if isinstance(found, dict) else found
    if data is None and isinstance(found, dict) and found.get("path"):
        data = Path(found["path"]).read_bytes()
    if not isinstance(data, bytes):
        raise UsageError(f"import {where}: expected a picture's bytes, found {type(data).__name__}")
    return data


def caption_of(row: dict[str, Any], task: Task) -> tuple[str, str] | None:
    """(column, the caption in one line) of a row."""
    for name in dict.fromkeys((task.prompt_column, *CAPTIONS)):
        if isinstance(value := row.get(name), str) and value.strip():
            return name, " ".join(value.split())
    return None


def _needed(row: dict[str, Any], task: Task, where: str) -> tuple[str, str]:
    if (found := caption_of(row, task)) is None:
        raise UsageError(
            f"import {where}: no caption (task.prompt_column, {', '.join(CAPTIONS)}); its columns are {few(list(row))}"
        )
    return found


def _others(row: dict[str, Any], *taken: str) -> dict[str, Any]:
    """What else a row says, as far as a line of JSON holds it."""
    plain = (str, int, float, bool)
    return {name: value for name, value in row.items() if name not in taken and isinstance(value, plain)}
