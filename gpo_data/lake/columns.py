"""Columns of millions of rows: text kept as codes of its values, and no Python object for each row.

A snapshot's text is a few values that many members share (a group has one key, one prompt and one tar): as Arrow's
dictionaries it takes 4 bytes a row and column, where the text itself takes 20 to 40.

What always holds: the same rows give the same columns, bit for bit, in whatever pieces they came: a dictionary has the
values that occur, each once, sorted by their bytes as DuckDB sorts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

AT_ONCE = 100_000  # rows
Columns = dict[str, pa.Array]
DICTIONARY = pa.dictionary(pa.int32(), pa.string())


def encoded(pieces: Iterable[pa.RecordBatch], schema: pa.Schema, repeated: Sequence[str]) -> pa.Table:
    """One table of all pieces, the columns in `repeated` as dictionaries, tidy where they have no NULL."""
    found: dict[str, list[pa.Array]] = {name: [] for name in schema.names}
    for some in _gathered(pieces):
        for name, column in zip(schema.names, zip(*some, strict=True), strict=True):
            # A copy: while one column of DuckDB's is held, so is the text of all others that came with it.
            copied = pa.concat_arrays([*column, column[0][:0]])
            found[name].append(copied.dictionary_encode() if name in repeated else copied)
    whole = {}
    for name in schema.names:  # one at a time, so that no more than a column is there twice
        type = DICTIONARY if name in repeated else schema.field(name).type
        column = pa.chunked_array(found.pop(name), type).unify_dictionaries().combine_chunks()
        whole[name] = tidy(column) if name in repeated and not column.null_count else column
    return pa.table(whole)


def _gathered(pieces: Iterable[pa.RecordBatch]) -> Iterator[list[list[pa.Array]]]:
    """The columns of so many pieces that they have AT_ONCE rows: pieces may be as small as a shard."""
    waiting, rows = [], 0
    for piece in pieces:
        waiting.append(piece.columns)
        rows += piece.num_rows
        if rows >= AT_ONCE:
            yield waiting
            waiting, rows = [], 0
    if waiting:
        yield waiting


def taken_from(table: pa.Table) -> Columns:
    """A table's columns, to be changed one by one; each is one piece."""
    return {name: table[name].chunk(0) for name in table.column_names}


def tidy(column: pa.DictionaryArray) -> pa.DictionaryArray:
    """The same rows, with the values that occur, sorted."""
    indices = column.indices.to_numpy()
    used = np.bincount(indices, minlength=len(column.dictionary)) > 0
    order = pc.array_sort_indices(column.dictionary).to_numpy()
    order = order[used[order]]
    place = np.zeros(len(used), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    return pa.DictionaryArray.from_arrays(place[indices], column.dictionary.take(pa.array(order)))


def pick(columns: Columns, rows: np.ndarray) -> None:
    """Keep of each column these rows: a mask, or their numbers."""
    for name in list(columns):
        column = columns.pop(name)
        column = column.filter(pa.array(rows)) if rows.dtype == bool else column.take(pa.array(rows))
        columns[name] = tidy(column) if pa.types.is_dictionary(column.type) else column


def codes(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """[n]: numbers that are equal where a column of text has equal values."""
    column = pa.chunked_array([column]) if isinstance(column, pa.Array) else column
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    indices: np.ndarray = column.unify_dictionaries().combine_chunks().indices.to_numpy()
    return indices


def changes(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """[n]: whether a row's value is another than the one before; the first one's is."""
    numbers = column.to_numpy() if pa.types.is_integer(column.type) else codes(column)
    changed = np.ones(len(numbers), bool)
    np.not_equal(numbers[1:], numbers[:-1], out=changed[1:])
    return changed


def begins(table: pa.Table) -> np.ndarray:
    """The rows of a snapshot at which the members of another group begin."""
    return np.flatnonzero(changes(table["dataset"]) | changes(table["group_key"]))


def pieces_of_bytes(column: pa.ChunkedArray) -> Iterator[bytes | memoryview]:
    """What a checksum is taken of: numbers as they are, text with a zero between two rows."""
    for first in range(0, len(column), AT_ONCE):
        some = column.slice(first, AT_ONCE)
        if pa.types.is_string(some.type) or pa.types.is_dictionary(some.type):
            ended = pc.binary_join_element_wise(some.cast(pa.string()).combine_chunks(), "", "\0")
            _, ends, text = ended.buffers()
            size = int(np.frombuffer(ends, np.int32)[len(ended)])
            last = first + len(some) == len(column)
            yield memoryview(text)[: size - 1 if last else size]
        else:
            yield np.ascontiguousarray(some.to_numpy()).data.cast("B")
