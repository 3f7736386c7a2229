"""Ray: jobs done by actors, on this machine or on a cluster. Imported only where a recipe asks for it.

    workers = Workers(settings, ...)
    workers.open(work, *arguments)          each actor calls work(*arguments), which gives a function: jobs -> results
    for job, result in workers.run(jobs):   in the order in which they arrive

An actor's function is a generator over its jobs, so that it may begin the next while the last of one is measured. This
process calls `next` of each actor, at most twice ahead, and hands out another job when little of the last is left: what
waits is bounded by that, and a slow actor gets fewer jobs.

What always holds: results come to this process, which alone writes; so actors and nodes may die at any moment, and need
neither the lake nor its locks. A job whose actor died is handed to another, for what is left of it. At the end an actor
that has nothing to do repeats a job that takes another one more than twice the usual time; what comes first counts, and
being a function of the job it is the same. A job that three actors died of is an error. Actors end with this process.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError
from rich.console import Console

import gpo_data
from gpo_data import hardware
from gpo_data.errors import RunError, UsageError
from gpo_data.generation import cluster
from gpo_data.generation.actors import Work, Worker
from gpo_data.generation.worker import Interrupted
from gpo_data.recipe import Ray

LOST = (RayActorError, ObjectLostError, WorkerCrashedError, OutOfMemoryError)
DEATHS = 3  # of actors at one job, or of one actor after another before they are open
AHEAD = 2  # calls of `next` that wait at an actor
PATIENCE = 30.0  # seconds without any actor before a word is said


class Job(Protocol):
    """`name` is for people; `done`: nothing is left of it."""

    name: str
    done: bool

    def hand_out(self) -> tuple[int, Any] | None:
        """(how many results, what the actor gets) of what is left of it; None: nothing, or not for this process."""


@dataclass
class Held:
    """A job at an actor: results that it owes, and since when."""

    job: Job
    owed: int
    since: float


@dataclass
class Hand:
    """An actor as this process sees it: its jobs, oldest first, and those that it was not told of yet."""

    actor: Any
    held: deque[Held] = field(default_factory=deque)
    untold: list[Any] = field(default_factory=list)
    calls: int = 0
    ready: bool = False

    @property
    def owed(self) -> int:
        return sum(held.owed for held in self.held)


class Workers:
    """Actors, each with a GPU or a share of the cores.

    Args:
        on_gpu: whether the work takes a GPU where `ray.num_gpus` does not say.
        evaluators: {name: (actors of its own, GPUs of each)}, which are counted in; see remote.py.
        tick: called twice a second while results are waited for.

    Raises UsageError: no cluster there, or fewer GPUs or cores than asked.
    """

    def __init__(
        self,
        settings: Ray,
        console: Console,
        on_gpu: bool = False,
        evaluators: dict[str, tuple[int, float]] | None = None,
        tick: Callable[[], object] = lambda: None,
    ) -> None:
        self.settings, self.console, self.tick = settings, console, tick
        beside = list((evaluators or {}).values())
        self.beside: dict[str, list[Any]] = {}  # evaluators' own actors
        self._hands: list[Hand] = []
        self._pending: dict[Any, Hand] = {}
        self._opening: tuple[Any, ...] = ()
        self._failures = 0
        self._deaths: dict[int, int] = {}
        self._ray = ExitStack()
        number = settings.workers or 0
        self.threads = settings.num_cpus or (1 if settings.address else hardware.threads(number))
        atexit.register(self.close)
        try:
            if not ray.is_initialized():
                cores = number * self.threads + sum(actors for actors, _ in beside)
                address = settings.address
                self._ray.enter_context(cluster.own(cores) if address is None else cluster.joined(address))
            there = ray.cluster_resources()
            gpus = settings.num_gpus if settings.num_gpus is not None else float(on_gpu and there.get("GPU", 0) > 0)
            taken = sum(actors * each for actors, each in beside)
            if settings.workers is None:
                free = there.get("GPU", 0) - taken
                number = int(free / gpus) if gpus else len([node for node in ray.nodes() if node["Alive"]])
            _expect("GPU", "ray.num_gpus", number, gpus, taken, there.get("GPU", 0))
            _expect("core", "ray.num_cpus", number, self.threads, sum(n for n, _ in beside), there.get("CPU", 0))
        except BaseException:
            self.close()
            raise
        self.number, self.gpus = number, gpus

    def open(self, work: Callable[..., Work], *arguments: Any) -> None:
        """Have every actor call `work(*arguments)`; returns when the first one has. Raises what it raises."""
        self._opening, self._pending, self._failures = (gpo_data.__version__, self.threads, work, *arguments), {}, 0
        self._deaths = {}
        self._hands = [Hand(hand.actor) for hand in self._hands] or [Hand(None) for _ in range(self.number)]
        for hand in self._hands:
            self._open(hand)
        waited = time.monotonic()
        while not any(hand.ready for hand in self._hands):
            for _ in self._settled(threading.Event(), deque()):
                pass
            if time.monotonic() - waited > PATIENCE:
                waited += 10 * PATIENCE
                free = ray.available_resources()
                self.console.print(
                    f"waiting for Ray to start the first of {self.number} workers of {self.threads} cores and "
                    f"{self.gpus:g} GPUs; the machines have {free.get('CPU', 0):g} cores and {free.get('GPU', 0):g} "
                    f"GPUs free",
                    soft_wrap=True,
                )

    def run(self, jobs: list[Any], stop: threading.Event | None = None) -> Iterator[tuple[Any, Any]]:
        """(job, result) as they arrive, until all jobs are done. Raises Interrupted and what actors raise."""
        todo, stop, seconds = deque(jobs), stop or threading.Event(), list[float]()
        self._deaths = {}
        while todo or any(not held.job.done for hand in self._hands for held in hand.held):
            for hand in self._hands:
                self._hand_out(hand, todo, seconds)
            for hand, result in self._settled(stop, todo):
                held = hand.held[0]
                held.owed -= 1
                if not held.owed:
                    hand.held.popleft()
                if not held.job.done:
                    if not held.owed:
                        held.job.done = True
                        seconds.append(time.monotonic() - held.since)
                    yield held.job, result

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function says where a worker may be; before `open`, which takes the GPUs."""
        there = ray.remote(function).options(num_cpus=self.threads, num_gpus=self.gpus)
        try:
            return ray.get(there.remote(*arguments))
        except RayTaskError as error:
            raise _cause(error) from None

    def close(self) -> None:
        """End the actors, and the Ray that was begun here."""
        atexit.unregister(self.close)
        for actor in chain((hand.actor for hand in self._hands), *self.beside.values()):
            if actor is not None and ray.is_initialized():
                ray.kill(actor)
        self._ray.close()
        self._hands, self.beside = [], {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _open(self, hand: Hand) -> None:
        if hand.actor is None:
            kind = ray.remote(Worker).options(
                num_cpus=self.threads, num_gpus=self.gpus, scheduling_strategy="SPREAD", max_restarts=0
            )
            hand.actor = kind.remote()
        self._pending[hand.actor.open.remote(*self._opening)] = hand

    def _hand_out(self, hand: Hand, todo: deque[Job], seconds: list[float]) -> None:
        """Give it a job if it has little left to do, and call for as many results as it may owe."""
        while hand.ready and hand.owed <= AHEAD and (todo or not hand.held):
            job = todo.popleft() if todo else self._late(seconds)
            if job is None:
                break
            if (found := job.hand_out()) is None:
                job.done = True
                continue
            number, given = found
            hand.held.append(Held(job, number, time.monotonic()))
            hand.untold.append(given)
        while hand.ready and hand.calls < min(AHEAD, hand.owed):
            self._pending[hand.actor.next.remote(*hand.untold)] = hand
            hand.untold, hand.calls = [], hand.calls + 1

    def _late(self, seconds: list[float]) -> Job | None:
        """A job that takes an actor more than twice the usual time, and that no other has."""
        held = [one for hand in self._hands for one in hand.held if not one.job.done]
        usual = sum(seconds) / len(seconds) if seconds else float("inf")
        late = [one for one in held if time.monotonic() - one.since > 2 * usual]
        return next((one.job for one in late if sum(other.job is one.job for other in held) == 1), None)

    def _settled(self, stop: threading.Event, todo: deque[Any]) -> Iterator[tuple[Hand, Any]]:
        """(actor, result) of the calls that have ended; those that died are replaced, their jobs are to do again."""
        done, _ = ray.wait(list(self._pending), num_returns=1, timeout=0.5)
        self.tick()
        if stop.is_set():
            raise Interrupted
        for call in done:
            hand = self._pending.pop(call, None)
            if hand is None:  # of an actor that died meanwhile
                continue
            try:
                result = ray.get(call)
            except LOST as error:
                self._replace(hand, todo, error)
                continue
            except RayTaskError as error:
                raise _cause(error) from None
            if hand.ready:
                hand.calls -= 1
                yield hand, result
            hand.ready = True

    def _replace(self, hand: Hand, todo: deque[Job], error: Exception) -> None:
        """Another actor in the place of one that died; Ray starts it where there is room."""
        reason = " ".join(str(error).split())[:300]
        first = next((held.job for held in hand.held if not held.job.done), None)
        self._failures += not hand.ready
        if self._failures >= DEATHS * self.number:
            raise RunError(f"ray: workers die before they have opened the model: {reason}")
        if first is not None:
            self._deaths[id(first)] = self._deaths.get(id(first), 0) + 1
            if self._deaths[id(first)] >= DEATHS:
                raise RunError(
                    f"{first.name}: {DEATHS} workers died of it; what is finished is kept. If it is memory, lower "
                    f"sampler.batch_size or take fewer --workers. The last: {reason}"
                )
        self.console.print("a worker died; another takes its place and what it had in hand", soft_wrap=True)
        others = [held.job for other in self._hands if other is not hand for held in other.held]
        again = [held.job for held in hand.held if not held.job.done and held.job not in others]
        todo.extendleft(reversed(again))
        self._pending = {call: other for call, other in self._pending.items() if other is not hand}
        ray.kill(hand.actor)  # also where only a result was lost
        new = Hand(None)
        self._hands[self._hands.index(hand)] = new
        self._open(new)


def _expect(what: str, key: str, number: int, each: float, beside: float, there: float) -> None:
    if number < 1 or number * each + beside > there + 1e-6:
        more = f", and {beside:g} for evaluators" if beside else ""
        raise UsageError(
            f"ray.workers: {number} of {each:g} {what}s each asked for{more}, and there are {there:g}; take fewer "
            f"with --workers, or lower {key}"
        )


def _cause(error: RayTaskError) -> BaseException:
    """What an actor raised: a user's error as it was, another with where it was raised."""
    cause = error.cause
    if isinstance(cause, UsageError | RunError):
        return cause
    if type(cause).__name__ == "OutOfMemoryError":
        return RunError(f"a worker is out of memory: {str(cause).splitlines()[0]} Lower sampler.batch_size")
    return error
