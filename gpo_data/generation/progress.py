"""Progress of drawing: members/s, time left, the running mean reward and dead groups (std 0, nothing to learn from)."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from gpo_data.errors import RunError
from gpo_data.group import Group
from gpo_data.lake.advantage import is_dead
from gpo_data.progress import Bar


class Clock:
    """Seconds by name. Parts in different threads overlap, so they may sum up to more than the wall's."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


ENOUGH = 64  # members, before a share of failed ones says something


class DrawProgress:
    """Use as a context; call `group(group)` for each one that is staged. Thread-safe.

    Args:
        staged: groups of the same shards that were drawn before.
        max_failed: share of the members of these shards; where more failed, `group` raises RunError.
    """

    def __init__(
        self, total_groups: int, group_size: int, console: Console, staged: int = 0, max_failed: float = 1.0
    ) -> None:
        self.size, self.console = group_size, console
        self.before, self.max_failed = staged * group_size, max_failed
        self.groups = self.members = self.dead = self.failed = 0
        self.reward_sum, self.rewards = 0.0, 0
        self.reasons: Counter[str] = Counter()
        self.started = time.monotonic()
        self._lock = threading.Lock()
        self._bar = Bar("drawing", total_groups, "groups", console)

    def __enter__(self) -> DrawProgress:
        self._bar.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.__exit__(*exc)

    def group(self, group: Group) -> None:
        with self._lock:
            rewards = [r for r in group.rewards if r is not None]
            self.groups += 1
            self.members += group.size
            self.failed += group.size - len(rewards)
            self.reasons.update(reason for reason in group.reasons if reason)
            self.dead += bool(is_dead(min(rewards), max(rewards))) if rewards else True
            self.reward_sum, self.rewards = self.reward_sum + sum(rewards), self.rewards + len(rewards)
            self._bar.step(line=self.line())
            members = self.before + self.members
            if members >= ENOUGH and self.failed > self.max_failed * members:
                raise RunError(
                    f"{self.failed} of {members} members failed, more than max_failed: {self.max_failed:g} allows, "
                    f"most often: {self.reasons.most_common(1)[0][0]}; what was drawn is kept, and the same command "
                    f"goes on from there; a higher --max_failed lets more fail"
                )

    def report(self) -> None:
        """What was drawn, and why members failed."""
        seconds = time.monotonic() - self.started
        self.console.print(
            f"drew {self.groups} groups ({self.members} images) in {seconds:.0f} s: {self.line()}", soft_wrap=True
        )
        for reason, count in self.reasons.most_common(5):
            self.console.print(f"  {count} members failed: {reason}", soft_wrap=True, markup=False)

    def line(self) -> str:
        rate = self.members / max(time.monotonic() - self.started, 1e-9)
        mean = self.reward_sum / self.rewards if self.rewards else float("nan")
        failed = f"  failed {self.failed}" if self.failed else ""
        return f"{rate:.1f} images/s  reward {mean:.3f}  dead {self.dead}{failed}"
