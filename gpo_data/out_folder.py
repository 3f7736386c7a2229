"""The folder of a command's `--out`: one that can be made, and of some commands one with nothing in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpo_data.errors import FAILING, RunError, UsageError


def expect_empty(out: Path) -> None:
    """Raise UsageError unless nothing is there, or a folder with nothing in it."""
    with _explained(out, "cannot read"):
        if not out.exists():
            return
        if not out.is_dir():
            raise UsageError(f"--out {out}: expected a new or empty folder, found a file")
        if any(out.iterdir()):
            raise UsageError(f"--out {out}: expected a new or empty folder, found files in it")


def make_folder(out: Path) -> None:
    """With its parents, or as it is there. Raises UsageError, and RunError where the disk fails."""
    with _explained(out, "cannot make"):
        out.mkdir(parents=True, exist_ok=True)


@contextmanager
def _explained(out: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = RunError if error.errno in FAILING else UsageError
        raise kind(f"--out {out}: {what} this folder: {error.strerror}; give another --out") from None
