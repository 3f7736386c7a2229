"""`gpo-data sql`: one query over the catalog, or a prompt to ask many.

    table      for reading, the first TABLE_ROWS rows
    csv, json  every row; nested values of a CSV cell are JSON, JSON is one array of objects, NaN is null
    parquet    every row, to `--out FILE`

The prompt connects again for every query, so shards that were committed meanwhile are seen. A query that DuckDB
refuses is a `UsageError` of one line that ends with the views there are. A query reads the lake and nothing else, and
writes nothing, unless `unsafe`.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpo_data.errors import UsageError
from gpo_data.lake import catalog, rewards
from gpo_data.lake.durable import write_atomic
from gpo_data.lake.files import matching
from gpo_data.progress import plain_console

FORMATS = ("table", "csv", "json", "parquet")
TABLE_ROWS = 200
HELP = """.tables  the views and their columns
.help    this text
.quit    leave (or Ctrl-D)
Anything else is SQL on one line; Alt-Enter begins a new line."""


def run(
    lake: str,
    query: str | None = None,
    format: str | None = None,
    out: str | Path | None = None,
    reward: str | None = None,
    unsafe: bool = False,
    dataset: list[str] | None = None,
) -> None:
    """Print the answer to `query`, or write it to the file `out`. Without a query: a prompt, or all of a piped stdin.

    Args:
        format: one of FORMATS; None is what the name of `out` ends in, else a table.
        reward: expression in the place of the stored reward.
        dataset: the views show these alone, names or patterns such as text-tiny-online-it*; None shows all.
        unsafe: any SQL, which may read and write other files.
    """
    ending = Path(out or "").suffix.removeprefix(".").lower()
    format = format or (ending if ending in FORMATS else "table")
    if format not in FORMATS:
        raise UsageError(f"--format: expected one of {', '.join(FORMATS)}, found {format!r}")
    if dataset is not None:
        dataset = [name for pattern in dataset for name in _named(lake, pattern)]
    if query is None and sys.stdin.isatty():
        return prompt(lake, format, reward, unsafe, dataset)
    if format == "parquet" and out is None:
        raise UsageError("--format parquet: expected --out FILE, found none; a terminal cannot show Parquet")
    query = sys.stdin.read() if query is None else query
    if not query.strip(" \n\t;"):
        raise UsageError('query: expected SQL such as "select * from groups", found nothing')
    write(ask(lake, query, reward, unsafe, dataset), format, out)


def _named(lake: str, pattern: str) -> list[str]:
    # A name is not looked for among all: a lake may have thousands.
    return matching(lake, pattern, "--dataset") if {*pattern} & {*"*?["} else [pattern]


def ask(
    lake: str, query: str, reward: str | None = None, unsafe: bool = False, dataset: list[str] | None = None
) -> pa.Table:
    """The answer to one query; UsageError with DuckDB's reason and the views."""
    try:
        return catalog.ask(lake, query, reward=reward, unsafe=unsafe, dataset=dataset)
    except UsageError as error:
        raise UsageError(f"{error}; views: {', '.join(catalog.VIEWS)}") from None


def write(table: pa.Table, format: str, out: str | Path | None = None) -> None:
    """To the terminal, or to a file, whole or not at all. Raises UsageError, RunError, OSError."""
    if out is None:
        stream = sys.stdout
        if format == "table":
            show(table, plain_console())
        else:
            if hasattr(stream, "reconfigure"):  # what a program reads, whatever the terminal's letters are
                stream.reconfigure(encoding="utf-8")
            stream.write(text_of(table, format))
        return
    target = Path(out)
    if target.is_dir() or not target.parent.is_dir():
        found = "a folder" if target.is_dir() else f"no folder {target.parent}"
        raise UsageError(f"--out {out}: expected a file's name, found {found}")
    content = _parquet(table) if format == "parquet" else text_of(table, format).encode()
    if target.exists() and not target.is_file():  # /dev/stdout, which nothing may take the place of
        target.write_bytes(content)
    else:
        write_atomic(target.resolve(), content)


def _parquet(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    try:
        pq.write_table(table, stream)
    except pa.ArrowNotImplementedError as error:
        raise UsageError(f"--format parquet: {error}; CAST the column in the query, such as to VARCHAR") from None
    return stream.getvalue()


def _distinct(table: pa.Table) -> pa.Table:
    """With a number behind the names of columns that are there twice, as DuckDB has them in a subquery."""
    names: list[str] = []
    for name in table.column_names:
        new = next(one for n in itertools.count() if (one := f"{name}_{n}" if n else name) not in names)
        names.append(new)
    return table.rename_columns(names)


def text_of(table: pa.Table, format: str) -> str:
    """The rows as CSV, JSON or a plain table."""
    stream = io.StringIO()
    if format == "table":
        show(table, Console(file=stream, width=200), len(table))
    elif format == "json":
        json.dump(
            [{k: _plain(v) for k, v in row.items()} for row in _distinct(table).to_pylist()],
            stream,
            indent=1,
            ensure_ascii=False,
            default=str,
        )
        stream.write("\n")
    else:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(table.column_names)
        columns = [column.to_pylist() for column in table.columns]
        writer.writerows([_cell(v) for v in row] for row in zip(*columns, strict=True))
    return stream.getvalue()


def show(table: pa.Table, console: Console, rows: int = TABLE_ROWS) -> None:
    if not table.num_columns:
        console.print("done")
        return
    grid = Table()
    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    for field in table.schema:
        right = any(test(field.type) for test in numeric)
        grid.add_column(Text(field.name), justify="right" if right else "left", overflow="fold")
    columns = [column.to_pylist() for column in table.slice(0, rows).columns]
    for row in zip(*columns, strict=True):
        # Text, not str: what OCR read may look like rich's markup.
        grid.add_row(*(Text(f"{v:.6g}" if isinstance(v, float) else _cell(v)) for v in row))
    console.print(grid)
    left = table.num_rows - min(rows, table.num_rows)
    more = f"; {left} more not shown, `--format csv` writes them all" if left else ""
    console.print(f"{table.num_rows} row{'s' if table.num_rows != 1 else ''}{more}")


def prompt(
    lake: str,
    format: str = "table",
    reward: str | None = None,
    unsafe: bool = False,
    dataset: list[str] | None = None,
) -> None:
    """Read queries until Ctrl-D or `.quit`; the history is kept between sessions."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory

    console = plain_console()
    try:
        path = history_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
        history: History = FileHistory(str(path))
    except (OSError, RuntimeError):  # no home, or none that can be written: it is kept as long as the prompt
        history = InMemoryHistory()
    words = sorted({*catalog.VIEWS, *rewards.named(), *columns_of(lake, dataset)})
    session: PromptSession[str] = PromptSession(
        history=history, completer=WordCompleter(words), complete_while_typing=False
    )
    console.print("SQL over the views " + ", ".join(catalog.VIEWS) + "; .help for help")
    while True:
        try:
            line = session.prompt("gpo> ").strip()
        except KeyboardInterrupt:  # Ctrl-C drops the line, as in other shells
            continue
        except EOFError:
            return
        if line in (".quit", ".exit"):
            return
        if line:
            answer(lake, line, format, reward, console, unsafe, dataset)


def answer(
    lake: str,
    line: str,
    format: str,
    reward: str | None,
    console: Console,
    unsafe: bool = False,
    dataset: list[str] | None = None,
) -> None:
    """One line of the prompt; an error is shown, not raised."""
    try:
        if line == ".tables":
            listed = ask(
                lake,
                "SELECT table_name AS view, string_agg(column_name, ', ' ORDER BY ordinal_position) "
                f"AS columns FROM information_schema.columns WHERE table_name IN {catalog.VIEWS} "
                "GROUP BY 1 ORDER BY 1",
                dataset=dataset,
            )
            show(listed, console)
        elif line == ".help":
            console.print(HELP)
        elif line.startswith("."):
            console.print(Text(f"unknown command {line}; .tables, .help or .quit"))
        elif format in ("table", "parquet"):
            show(ask(lake, line, reward, unsafe, dataset), console)
        else:
            console.out(text_of(ask(lake, line, reward, unsafe, dataset), format), end="", highlight=False)
    except UsageError as error:
        console.print(Text(str(error)))
    except KeyboardInterrupt:  # of the question, not of the prompt
        console.print("stopped")


def columns_of(lake: str, dataset: list[str] | None = None) -> list[str]:
    query = "SELECT DISTINCT column_name FROM information_schema.columns"
    names = ask(lake, query, dataset=dataset)["column_name"]
    return [str(name) for name in names.to_pylist()]


def history_file() -> Path:
    """In the user's state folder: $XDG_STATE_HOME, else ~/.local/state."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "gpo-data" / "sql_history"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict | list):
        return json.dumps(_plain(value), ensure_ascii=False, default=str)
    return str(value)


def _plain(value: Any) -> Any:
    """NaN and infinity are not JSON; a sum of whole numbers, which is a decimal, is."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value
