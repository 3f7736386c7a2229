"""What asks long work to stop, so that it keeps what is finished: Ctrl-C, SIGTERM, the terminal's end, and SIGUSR1,
which SLURM sends before a job's time is over (`#SBATCH --signal=SIGUSR1@90`)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def answer(handler: Callable[[int, FrameType | None], None]) -> None:
    """Have `handler` called for each. What nohup ignores stays ignored; in another thread than the main one, whose
    signals they are, nothing happens."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def same_signals() -> Iterator[None]:
    """Afterwards they are the caller's again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
