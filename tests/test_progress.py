"""What long work says of itself in a log."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from gpo_data import progress
from gpo_data.lake.verify import verify


def test_streams_and_widths_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, width in (("0", 160), ("abc", 160), ("", 160), ("44", 44)):
        monkeypatch.setenv("COLUMNS", said)
        assert progress.plain_console().width == width
    ascii = io.TextIOWrapper(io.BytesIO(), "ascii", line_buffering=True)
    monkeypatch.setattr(sys, "stdout", ascii)
    progress.plain_console().print("a \u00d7 b")
    assert ascii.buffer.getvalue() == b"a ? b\n"  # type: ignore[attr-defined]
    for name in ("stdin", "stdout"):
        monkeypatch.setattr(sys, name, None)  # closed before the command began
    progress.plain_console().print("nowhere")
    assert sys.stdin.read() == "" and not sys.stdin.isatty()


def test_a_log_says_what_is_done_and_what_is_left(drawn_lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    verify(drawn_lake / "dataset=small", Console(file=out))
    assert out.getvalue() == ""  # nothing was long
    monkeypatch.setattr(progress, "EVERY", -1.0)
    verify(drawn_lake / "dataset=small", Console(file=out))
    assert [line.rpartition("  left ")[0] for line in out.getvalue().splitlines()] == [
        f"verifying {number}/3 shards" for number in (1, 2, 3)
    ]
