"""Rows on a Ray: a task each, which Ray starts where there is room, and again where a machine died.

What always holds is what processes.py says: a task is a process of the machine that it runs on. What a row says and
leaves are files, of a folder that all machines see.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, TaskCancelledError

import gpo_data
from gpo_data import hardware
from gpo_data.errors import UsageError
from gpo_data.generation import cluster
from gpo_data.generation.actors import expect_version
from gpo_data.generation.ray import cause_of, expect_room
from gpo_data.recipe.checks import MOST_INT
from gpo_train.launcher import devices_of
from gpo_train.sweep.plan import Plan
from gpo_train.sweep.processes import FAILED, STOPPED, Job, Runner, run_all, stop_signals

GRACE = 300.0  # seconds to write a checkpoint in, where a sweep is stopped


@contextmanager
def on_ray(plan: Plan) -> Iterator[Runner]:
    """What runs jobs on the Ray that `plan.ray` asks for. Raises UsageError: none there, or less of it than asked."""
    settings = plan.ray
    number = min(settings.workers or 1, len(plan.asked) or MOST_INT)
    cores = settings.num_cpus or (1 if settings.address else hardware.threads(number))
    with cluster.own(number * cores) if settings.address is None else cluster.joined(settings.address):
        there = ray.cluster_resources()
        gpus = settings.num_gpus if settings.num_gpus is not None else _gpus(plan) if there.get("GPU") else 0.0
        expect_room("GPU", "ray.num_gpus", number, gpus, 0, there.get("GPU", 0))
        expect_room("core", "ray.num_cpus", number, cores, 0, there.get("CPU", 0))
        task = ray.remote(_run).options(num_cpus=cores, num_gpus=gpus, scheduling_strategy="SPREAD")
        yield lambda jobs, at_once, ended: _run_all(task, jobs, at_once, ended)


def _gpus(plan: Plan) -> float:
    """That a row computes with, where there are any. Raises UsageError."""
    trains = [row.recipe.train for row in plan.asked if row.recipe.sampler.device != "cpu"]
    if listed := next((one.trainer["devices"] for one in trains if isinstance(one.trainer.get("devices"), list)), None):
        raise UsageError(f"train.trainer.devices: expected how many, since Ray says which, found {listed}")
    return float(max((devices_of(one.trainer) for one in trains), default=0))


def _run_all(task: Any, jobs: list[Job], at_once: int, ended: Callable[[Job, int], None]) -> None:
    """As processes.run_all."""
    waiting, running = list(jobs), dict[Any, Job]()
    with stop_signals() as stop:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    job = waiting.pop(0)
                    job.log.parent.mkdir(parents=True, exist_ok=True)
                    job.log.touch()
                    running[task.remote(job, Path.cwd(), gpo_data.__version__)] = job
                done, _ = ray.wait(list(running), timeout=0.5)
                if stop:
                    raise KeyboardInterrupt
                for call in done:
                    job = running.pop(call)
                    ended(job, _code(job, call))
        finally:
            for call in running:
                ray.cancel(call)
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=GRACE)


def _code(job: Job, call: Any) -> int:
    """The exit code of a job. Raises UsageError where it could not begin."""
    try:
        return int(ray.get(call))
    except TaskCancelledError:
        return STOPPED
    except RayTaskError as error:
        raise cause_of(error) from None
    except RayError as error:  # its machines died, each time that Ray began it again
        with job.log.open("a") as log:
            log.write(f"ray: {' '.join(str(error).split())[:300]}\n")
        return FAILED


def _run(job: Job, here: Path, version: str) -> int:
    """The task: a process of its own, as on one machine, so that what the row says goes to its log alone."""
    expect_version(version)
    there = here.is_dir()
    if there:
        os.chdir(here)
    if not there or not job.log.is_file():
        raise UsageError(
            f"ray: {socket.gethostname()} does not see {here / job.log}; a sweep on several machines needs its folder, "
            "and a lake that is one, on a file system that all of them share"
        )
    codes: list[int] = []
    run_all([job], 1, lambda job, code: codes.append(code))
    return codes[0]
