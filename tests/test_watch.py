"""The table of iterations that `gpo-train watch` prints."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gpo_train.online.iterations import Summary
from gpo_train.online.watch import table

SECONDS = dict.fromkeys(("draw", "train", "measure", "write"), 1234.567)


@pytest.mark.parametrize("iteration", [0, 123])
def test_nothing_is_cut_in_80_columns(iteration: int) -> None:
    one = Summary(iteration, 128, 128, 4096, 0.987, 0.512, SECONDS, exact=1.0, distance=-0.00123)
    console = Console(file=io.StringIO(), width=80)
    console.print(table([one], "small"))
    told = console.file.getvalue()
    assert "…" not in told and "128/128" in told and "-0.0012" in told and "1235" in told
