"""What long work says of itself in a log."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from gpo_data import progress
from gpo_data.lake.verify import verify


def test_a_log_says_what_is_done_and_what_is_left(drawn_lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    verify(drawn_lake / "dataset=small", Console(file=out))
    assert out.getvalue() == ""  # nothing was long
    monkeypatch.setattr(progress, "EVERY", -1.0)
    verify(drawn_lake / "dataset=small", Console(file=out))
    assert [line.rpartition("  left ")[0] for line in out.getvalue().splitlines()] == [
        f"verifying {number}/3 shards" for number in (1, 2, 3)
    ]
