"""What the tests of the documentation share: a page's code blocks and its tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str = "python") -> list[str]:
    """The code blocks of docs/<page>, in order, each after as many empty lines as come before it on the page."""
    text = (DOCS / page).read_text()
    found = [match for match in FENCED.finditer(text) if match[1] == language]
    return ["\n" * text.count("\n", 0, match.start(2)) + match[2] for match in found]


def block(page: str, part: str, language: str = "python") -> str:
    """The one block that has `part` in it."""
    (found,) = [code for code in blocks(page, language) if part in code]
    return found


def run(page: str, code: str, namespace: dict[str, Any] | None = None) -> dict[str, Any]:
    """The names that there are after a block of the page has run; its line numbers are the page's."""
    names: dict[str, Any] = {"__name__": page} if namespace is None else namespace
    exec(compile(code, str(DOCS / page), "exec"), names)
    return names


def table(page: str, *header: str) -> list[list[str]]:
    """The rows of the table whose header begins with these cells; backticks are taken off."""
    rows = [_cells(line) if line.startswith("|") else [] for line in (DOCS / page).read_text().splitlines()]
    (start,) = [i for i, row in enumerate(rows) if row[: len(header)] == list(header)]
    end = next((i for i in range(start, len(rows)) if not rows[i]), len(rows))
    return rows[start + 2 : end]


def _cells(line: str) -> list[str]:
    cells = re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
    return [re.sub(r"^`([^`]*)`$", r"\1", cell.strip()) for cell in cells]
