"""Datasets that cannot be read beside the others: they are left out, and do not stop the questions about the rest."""

from __future__ import annotations

import sys
from collections import defaultdict

import pyarrow.parquet as pq

from gpo_data.errors import UsageError, few
from gpo_data.lake.files import SHARDS, Files, dataset_of
from gpo_data.lake.sidecar import REPAIR, broad_kind_of, problem_of

SIMPLE = ("text", "whole number", "number")


def leave_out(files: Files, whole: bool = False) -> Files:
    """The other datasets; says on stderr what is left out and why. Raises UsageError where none is left.

    Args:
        whole: read every row, and not only what a sidecar says of itself.
    """
    problems = _damaged(files, whole)
    problems |= conflicting(files.of([name for name in files.datasets() if name not in problems]))
    names = [name for name in files.datasets() if name not in problems]
    if not names:
        raise UsageError(f"lake: {few(list(problems.values()))}; {REPAIR}")
    for name, problem in problems.items():
        print(f"left out dataset {name}: {problem}; {REPAIR} on it", file=sys.stderr)
    return files.of(names)


def conflicting(files: Files) -> dict[str, str]:
    """{dataset with a column of another kind than the same column has in most others: what it is}."""
    kinds: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path in files.found(SHARDS):
        with files.store.open(path, "rb") as stream:
            for column in pq.read_schema(stream):
                kinds[column.name][broad_kind_of(column.type)].add(dataset_of(path))
    found: dict[str, str] = {}
    for column_name, by_kind in kinds.items():
        usual = max(by_kind, key=lambda kind: (len(by_kind[kind]), kind in SIMPLE))
        for kind in by_kind.keys() - {usual}:
            for name in by_kind[kind]:
                found[name] = f"its column {column_name} is {kind}, in other datasets {usual}"
    return found


def _damaged(files: Files, whole: bool) -> dict[str, str]:
    """{dataset that cannot be read: its first problem}.

    Args:
        whole: read every row, and not only what a sidecar says of itself.
    """
    problems: dict[str, str] = {}
    for path in files.found(SHARDS):
        name = dataset_of(path)
        if name not in problems:
            try:
                with files.store.open(path, "rb") as stream:
                    problem = problem_of(stream, whole)
            except OSError as error:
                problem = f"cannot read: {error.strerror or error}"
            if problem:
                problems[name] = f"{path}: {problem}"
    return problems


def can_be_read(files: Files, path: str) -> bool:
    """Whether every row of a Parquet file can be."""
    try:
        with files.store.open(path, "rb") as stream, pq.ParquetFile(stream, page_checksum_verification=True) as file:
            for _ in file.iter_batches():
                pass
    except Exception:  # pyarrow raises many kinds on damaged bytes
        return False
    return True
