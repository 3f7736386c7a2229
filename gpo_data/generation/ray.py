"""Ray: jobs done by actors, on this machine or on a cluster. Imported only where a recipe asks for it.

    workers = Workers(settings, ...)
    workers.open(work, *arguments)          each actor calls work(*arguments), which gives a function: job -> result
    for job, result in workers.run(jobs):   in the order in which they arrive

An actor has two jobs at a time, so that it may begin one while the last of another is measured: what waits is bounded
by that, and a slow actor gets fewer jobs.

What always holds: results come to this process, which alone writes; so actors and nodes may die at any moment, and need
neither the lake nor its locks. A job whose actor died is handed to another, for what is left of it. At the end an actor
that has nothing to do repeats a job that takes another one more than twice the usual time; what comes first counts, and
being a function of the job it is the same. A job that three actors died of is an error. Actors end with this process.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError
from rich.console import Console

import gpo_data
from gpo_data import hardware
from gpo_data.errors import Interrupted, RunError, UsageError
from gpo_data.generation import cluster
from gpo_data.generation.actors import Work, Worker
from gpo_data.generation.remote import Job
from gpo_data.recipe import Ray

LOST = (RayActorError, ObjectLostError, WorkerCrashedError, OutOfMemoryError)
DEATHS = 3  # of actors at one job, or of one actor after another before they are open
AT_ONCE = 2  # jobs that an actor has
PATIENCE = 30.0  # seconds without any actor before a word is said


@dataclass(eq=False)
class Hand:
    """An actor as this process sees it; `of`: what its last job was a part of."""

    actor: Any
    calls: int = 0
    ready: bool = False
    of: Any = None


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
        self._calls: dict[Any, tuple[Hand, Job]] = {}
        self._opening = _opening(None)
        self._failures = 0
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
            expect_room("GPU", "ray.num_gpus", number, gpus, taken, there.get("GPU", 0))
            expect_room("core", "ray.num_cpus", number, self.threads, sum(n for n, _ in beside), there.get("CPU", 0))
        except BaseException:
            self.close()
            raise
        self.number, self.gpus = number, gpus

    def open(self, work: Callable[..., Work], *arguments: Any) -> None:
        """Have every actor call `work(*arguments)`; returns when the first one has. Raises what it raises."""
        self._opening, self._failures = _opening(ray.put((work, arguments))), 0  # there once for all actors
        for hand in self._hands:
            hand.ready = False
        self._hands = self._hands or [self._begun() for _ in range(self.number)]
        waited = time.monotonic()
        while not any(hand.ready for hand in self._hands):
            self._open()
            for _ in self._settled([]):
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

    def run(self, jobs: list[Job], stop: threading.Event | None = None) -> Iterator[tuple[Job, Any]]:
        """(job, result) as they arrive, until all jobs are done. Raises Interrupted and what actors raise."""
        todo, seconds = list(jobs), list[float]()
        try:
            while todo or not all(job.done for _, job in self._calls.values()):
                self._open()
                for number in range(AT_ONCE):  # all have one before any has two
                    for hand in [hand for hand in self._hands if hand.ready and hand.calls == number]:
                        self._hand_out(hand, todo, seconds)
                for job, result in self._settled(todo, stop):
                    job.done = True
                    seconds.append(time.monotonic() - job.since)
                    yield job, result
        finally:
            for job in jobs:  # what still comes is of no use
                job.done = True

    def close(self) -> None:
        """End the actors, and the Ray that was begun here."""
        atexit.unregister(self.close)
        for actor in chain((hand.actor for hand in self._hands), *self.beside.values()):
            if actor is not None and ray.is_initialized():
                ray.kill(actor)
        self._ray.close()
        self._hands, self._calls, self.beside = [], {}, {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _begun(self) -> Hand:
        """A new actor; Ray starts it where there is room."""
        kind = ray.remote(Worker).options(
            num_cpus=self.threads, num_gpus=self.gpus, scheduling_strategy="SPREAD", max_concurrency=AT_ONCE
        )
        return Hand(kind.remote())

    def _open(self) -> None:
        """Have those open it that are neither ready nor at work on something of before."""
        for hand in self._hands:
            if not hand.ready and not hand.calls:
                of = self._opening.of
                self._call(hand, self._opening, hand.actor.open.remote(gpo_data.__version__, self.threads, of))

    def _call(self, hand: Hand, job: Job, call: Any) -> None:
        self._calls[call] = hand, job
        hand.calls += 1
        job.hands += 1

    def _hand_out(self, hand: Hand, todo: list[Job], seconds: list[float]) -> None:
        """Give it a job: one of the same thing as its last, or the first; where none is left, one that is late."""
        while todo or not hand.calls:
            job = next((job for job in todo if job.of is hand.of), todo[0]) if todo else self._late(seconds)
            if job is None:
                return
            if job in todo:
                todo.remove(job)
            given = None if job.done else job.make()
            if given is None:
                job.done = True
                continue
            job.since, hand.of = time.monotonic(), job.of
            self._call(hand, job, hand.actor.do.remote(given))
            return

    def _late(self, seconds: list[float]) -> Job | None:
        """A job that takes an actor more than twice the usual time, and that no other has."""
        usual = sum(seconds) / len(seconds) if seconds else float("inf")
        held = [job for _, job in self._calls.values() if not job.done and job.hands == 1]
        return next((job for job in held if time.monotonic() - job.since > 2 * usual), None)

    def _settled(self, todo: list[Job], stop: threading.Event | None = None) -> Iterator[tuple[Job, Any]]:
        """Of calls that have ended, but for jobs that are done; an actor that died is replaced, its jobs are to do."""
        ended, _ = ray.wait(list(self._calls), timeout=0.5) if self._calls else ([], [])
        self.tick()
        if stop is not None and stop.is_set():
            raise Interrupted
        for call in ended:
            hand, job = self._calls.pop(call)
            hand.calls -= 1
            job.hands -= 1
            try:
                result = ray.get(call)
            except LOST as error:
                self._replace(hand, job, todo, error)
            except RayTaskError as error:
                if job is self._opening or not job.done:
                    raise cause_of(error) from None
            else:
                hand.ready |= job is self._opening  # and not one of before
                if not job.done:
                    yield job, result

    def _replace(self, hand: Hand, job: Job, todo: list[Job], error: Exception) -> None:
        """Another actor in the place of one that died, or lost a result; its jobs are to do if no other has them."""
        reason = " ".join(str(error).split())[:300]
        self.console.print("a worker died; another takes its place and what it had in hand", soft_wrap=True)
        lost = [job]
        for call, (_, other) in [(call, of) for call, of in self._calls.items() if of[0] is hand]:
            del self._calls[call]
            other.hands -= 1
            lost.append(other)
        lost = sorted((job for job in lost if not job.done), key=lambda job: job.since)
        if not hand.ready:
            self._failures += 1
            if self._failures >= DEATHS * self.number:
                raise RunError(f"ray: workers die before they have opened the model: {reason}")
        elif lost:
            lost[0].deaths += 1
            if lost[0].deaths >= DEATHS:
                raise RunError(
                    f"{lost[0].name}: {DEATHS} workers died of it; what is finished is kept. If it is memory, lower "
                    f"sampler.batch_size or take fewer --workers. The last: {reason}"
                )
        todo[:0] = [job for job in lost if not job.hands]
        ray.kill(hand.actor)  # also where only a result was lost
        self._hands[self._hands.index(hand)] = self._begun()


def _opening(of: Any) -> Job:
    """A call that opens: nothing to hand out again."""
    return Job("opening", lambda: None, of, done=True)


def expect_room(what: str, key: str, number: int, each: float, beside: float, there: float) -> None:
    """Raises UsageError where `number` of `each` GPUs or cores, and what is taken `beside` them, are not there."""
    if number < 1 or number * each + beside > there + 1e-6:
        more = f", and {beside:g} for evaluators" if beside else ""
        raise UsageError(
            f"ray.workers: {number} of {each:g} {what}s each asked for{more}, and there are {there:g}; take fewer "
            f"with --workers, or lower {key}"
        )


def cause_of(error: RayTaskError) -> BaseException:
    """What an actor raised: a user's error as it was, another with where it was raised."""
    cause = error.cause
    if isinstance(cause, UsageError | RunError):
        return cause
    if type(cause).__name__ == "OutOfMemoryError":
        return RunError(f"a worker is out of memory: {str(cause).splitlines()[0]} Lower sampler.batch_size")
    return error
