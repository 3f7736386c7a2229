"""Ray: jobs done by actors, on this machine or on a cluster. Imported only where a recipe asks for it.

    with on_ray(settings, ...) as workers:
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

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
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
DEATHS = 3  # of actors at one job, or in the place of each before they are open
AT_ONCE = 2  # jobs that an actor has
PATIENCE = 30.0  # seconds without any actor before a word is said


@dataclass(eq=False)
class Hand:
    """An actor as this process sees it; `of`: what its last job was a part of."""

    actor: Any
    ready: bool = False
    of: Any = None


@contextmanager
def on_ray(
    settings: Ray,
    console: Console,
    on_gpu: bool = False,
    beside: Collection[tuple[int, float]] = (),
    tick: Callable[[], object] = lambda: None,
) -> Iterator[Workers]:
    """Workers, and the Ray that is begun for them; both end with the context.

    Args:
        on_gpu: whether the work takes a GPU where `ray.num_gpus` does not say.
        beside: of evaluators (actors of its own, GPUs of each), which are counted in; see remote.py.
        tick: called twice a second while results are waited for.

    Raises UsageError: no cluster there, or fewer GPUs or cores than asked.
    """
    number = settings.workers or 0
    threads = settings.num_cpus or (1 if settings.address else hardware.threads(number))
    cores, taken = sum(actors for actors, _ in beside), sum(actors * each for actors, each in beside)
    with ExitStack() as stack:
        if not ray.is_initialized():
            address = settings.address
            stack.enter_context(cluster.own(number * threads + cores) if address is None else cluster.joined(address))
        there = ray.cluster_resources()
        gpus = settings.num_gpus if settings.num_gpus is not None else float(on_gpu and there.get("GPU", 0) > 0)
        if settings.workers is None:
            free = there.get("GPU", 0) - taken
            number = int(free / gpus) if gpus else len([node for node in ray.nodes() if node["Alive"]])
        expect_room("GPU", "ray.num_gpus", number, gpus, taken, there.get("GPU", 0))
        expect_room("core", "ray.num_cpus", number, threads, cores, there.get("CPU", 0))
        workers = Workers(console, tick, number, threads, gpus)
        stack.callback(workers.close)
        yield workers


class Workers:
    """So many actors, each with so many threads and GPUs."""

    def __init__(self, console: Console, tick: Callable[[], object], number: int, threads: int, gpus: float) -> None:
        self.console, self.tick, self.number, self.threads, self.gpus = console, tick, number, threads, gpus
        self.beside: dict[str, list[Any]] = {}  # evaluators' own actors
        self._hands: list[Hand] = []
        self._calls: dict[Any, tuple[Hand, Job]] = {}

    def open(self, work: Callable[..., Work], *arguments: Any) -> None:
        """Have every actor call `work(*arguments)`; returns when the first one has. Raises what it raises."""
        opening = ray.put((work, arguments))  # once for all actors
        self._opening = Job("opening model and evaluators", lambda: None, opening, done=True)
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
                    busy = self._busy()
                    for hand in [hand for hand in self._hands if hand.ready and busy[hand] == number]:
                        self._hand_out(hand, todo, seconds, idle=number == 0)
                for job, result in self._settled(todo, stop):
                    job.done = True
                    seconds.append(time.monotonic() - job.since)
                    yield job, result
        finally:
            for job in jobs:  # what still comes is of no use
                job.done = True

    def close(self) -> None:
        """End the actors."""
        for actor in chain((hand.actor for hand in self._hands), *self.beside.values()):
            if ray.is_initialized():
                ray.kill(actor)

    def _begun(self) -> Hand:
        """A new actor; Ray starts it where there is room."""
        kind = ray.remote(Worker).options(
            num_cpus=self.threads, num_gpus=self.gpus, scheduling_strategy="SPREAD", max_concurrency=AT_ONCE
        )
        return Hand(kind.remote())

    def _open(self) -> None:
        """Have those open it that are neither ready nor at work on something of before."""
        busy = self._busy()
        for hand in self._hands:
            if not hand.ready and not busy[hand]:
                call = hand.actor.open.remote(gpo_data.__version__, self.threads, self._opening.of)
                self._calls[call] = hand, self._opening

    def _busy(self) -> Counter[Hand]:
        """How many calls of each have not ended."""
        return Counter(hand for hand, _ in self._calls.values())

    def _hand_out(self, hand: Hand, todo: list[Job], seconds: list[float], idle: bool) -> None:
        """Give it a job: one of the same thing as its last, or the first; where none is left, one that is late."""
        while todo or idle:
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
            self._calls[hand.actor.do.remote(given)] = hand, job
            return

    def _late(self, seconds: list[float]) -> Job | None:
        """A job that takes an actor more than twice the usual time, and that no other has."""
        usual = sum(seconds) / len(seconds) if seconds else float("inf")
        held = Counter(job for _, job in self._calls.values() if not job.done)
        since = time.monotonic() - 2 * usual
        return next((job for job, hands in held.items() if hands == 1 and job.since < since), None)

    def _settled(self, todo: list[Job], stop: threading.Event | None = None) -> Iterator[tuple[Job, Any]]:
        """Of calls that have ended, but for jobs that are done; an actor that died is replaced, its jobs are to do."""
        ended, _ = ray.wait(list(self._calls), timeout=0.5) if self._calls else ([], [])
        self.tick()
        if stop is not None and stop.is_set():
            raise Interrupted
        for call in ended:
            hand, job = self._calls.pop(call)
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
        calls = [call for call, (other, _) in self._calls.items() if other is hand]
        lost = [job, *(self._calls.pop(call)[1] for call in calls)]
        lost = sorted((job for job in lost if not job.done), key=lambda job: job.since)
        for blamed in lost[:1] if hand.ready else [self._opening]:
            blamed.deaths += 1
            if blamed.deaths >= DEATHS * (1 if hand.ready else self.number):
                raise RunError(
                    f"{blamed.name}: {blamed.deaths} workers died of it; what is finished is kept. If it is memory, "
                    f"lower sampler.batch_size or take fewer --workers. The last: {reason}"
                )
        held = {job for _, job in self._calls.values()}
        todo[:0] = [job for job in lost if job not in held]
        ray.kill(hand.actor)  # also where only a result was lost
        self._hands[self._hands.index(hand)] = self._begun()


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
