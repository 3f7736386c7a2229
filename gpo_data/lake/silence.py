"""When a store that says nothing at all is given up on.

s3fs tries five times what botocore has tried five times, and five times again to read an object, 15 s each: a host that
takes a connection and never answers would be waited for for half an hour. What counts is how long nothing was heard
from the store, by any request: one that is slow, refuses or stumbles is heard.
"""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlsplit

import fsspec

FIRST = 30.0  # seconds after the first try that failed, where the store has never answered: its address may be wrong
LATER = 300.0  # where it has: a long run outlives a restart of its store
SLOWEST = 100_000  # bytes a second of what is written
FORGOTTEN = 60.0  # seconds after which a failure says nothing of the next one


class Silence:
    """A handler of botocore's event `needs-retry`, which comes after each try of each request."""

    def __init__(self) -> None:
        self.answered = False
        self.since = self.last = float("-inf")  # the first and the last try that failed in a row

    def __call__(self, response: Any, request_dict: dict[str, Any], **told: Any) -> None:
        """Raise ConnectionError, which neither botocore nor s3fs tries again."""
        now = time.monotonic()
        if response is not None:
            self.answered, self.last = True, float("-inf")
            return
        if now - self.last > FORGOTTEN:
            self.since = now
        self.last = now
        if now - self.since > (LATER if self.answered else FIRST):
            host = urlsplit(request_dict["url"]).netloc
            raise ConnectionError(f"{host} said nothing at all, {now - self.since:.0f} s after the first try failed")


def patience(length: int) -> float:
    """Seconds for writing so many bytes, all tries together.

    aiohttp has no limit for a body that nobody takes, nor for the `100 Continue` that botocore has it wait for.
    """
    return LATER + length / SLOWEST


def bound(store: fsspec.AbstractFileSystem) -> None:
    """Give up on a silent S3 store in time."""
    from aiobotocore.session import AioSession

    store.session = AioSession(**store.kwargs)  # as s3fs makes it at the first request
    store.session.register("needs-retry.s3", Silence())
