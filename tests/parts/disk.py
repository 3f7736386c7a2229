"""A small disk of its own, mounted, that can be full."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_mount = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk needs root on Linux"
)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], object]]:
    """Gives a function that makes it another size. Skips the test where root may not mount."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        yield lambda other: subprocess.run(["mount", "-o", f"remount,size={other}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=False)
