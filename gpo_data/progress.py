"""Progress of long work: a live bar on a terminal, a line every few seconds in a log. Both say how much is left."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

EVERY = 10.0  # seconds between two lines of a log


def plain_console() -> Console:
    """For people: no markup, since what users name may have brackets; in a file or a pipe tables have room."""
    _usable_streams()
    said = os.environ.get("COLUMNS", "")
    asked = int(said) if said.isdecimal() and int(said) else None
    return _Piped(highlight=False, markup=False, width=asked or (None if sys.stdout.isatty() else 160))


class _Piped(Console):
    def on_broken_pipe(self) -> None:
        """Whoever runs the work decides what it means that nobody reads on; rich would end the process in silence."""
        raise BrokenPipeError


def _usable_streams() -> None:
    """Streams that were closed before the command began lead nowhere, and a letter that one has not is a `?`."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - for as long as the process lives
        elif mode == "w" and getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


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
