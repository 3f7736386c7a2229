"""Progress of long work: a live bar on a terminal, a line every few seconds in a log. Both say how much is left."""

from __future__ import annotations

import os
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

EVERY = 10.0  # seconds between two lines of a log


def plain_console() -> Console:
    """For people: no markup, since what users name may have brackets; in a file or a pipe tables have room."""
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    return Console(highlight=False, markup=False, width=wide)


class Bar:
    """Use as a context; call `step` when something is done.

    Args:
        what: the work, "measuring".
        unit: what is counted, "groups".
    """

    def __init__(self, what: str, total: int, unit: str, console: Console) -> None:
        self.what, self.total, self.unit, self.console, self.done = what, total, unit, console, 0
        self.started = self.printed = time.monotonic()
        self._bar = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{unit}  {{task.fields[line]}}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total, line="")

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def step(self, number: int = 1, line: str = "") -> None:
        """So many more are done; `line` stands beside the numbers."""
        self.done += number
        self._bar.update(self._task, completed=self.done, line=line)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.printed > EVERY and self.done:
            self.printed = now
            left = (self.total - self.done) * (now - self.started) / self.done
            said = "  ".join(part for part in (f"{self.what} {self.done}/{self.total} {self.unit}", line) if part)
            self.console.print(f"{said}  left {left:.0f} s", soft_wrap=True, markup=False)
