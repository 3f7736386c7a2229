"""The verb `shards`: what is planned and not committed gets drawn; a second run says what it skipped.

Ctrl-C and SIGTERM drop the batch in flight, let the groups behind it reach the stage, and leave a lake that resumes;
a second Ctrl-C stops at once, which loses no more than a kill would.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from gpo_data import evaluators, hardware, models
from gpo_data.errors import RunError
from gpo_data.generation.plan import PlannedShard, plan
from gpo_data.generation.progress import Clock, DrawProgress
from gpo_data.generation.worker import Generator
from gpo_data.lake import rewards
from gpo_data.lake.manifest import drawn_in, identity, open_dataset, read_manifest, settle
from gpo_data.lake.reopen import reopen
from gpo_data.lake.shard import claim, sidecar_path, staged_path
from gpo_data.recipe import Recipe
from gpo_data.status import OK
from gpo_data.tasks import TASKS


def draw(
    recipe: Recipe,
    console: Console,
    model: models.Model | None = None,
    share: tuple[int, int] = (0, 1),
    clock: Clock | None = None,
) -> Path:
    """Draw all missing shards of the recipe's dataset; its folder. Raises Interrupted after Ctrl-C or SIGTERM.

    Args:
        model: the recipe's model, open, with the recipe's policy in it; None opens it.
        share: (rank, world): of the missing shards only those at [rank::world].
        clock: gets the seconds of each part.
    """
    wanted, recipe = recipe.sampler.dtype, settle(recipe)
    shards = plan(recipe)
    judges = evaluators.build(recipe)
    rewards.check(recipe.reward, TASKS[recipe.task.kind].columns | evaluators.columns_of(judges))
    model_folder = models.resolve(recipe.model, recipe.revision)
    policy = models.policy_folder(recipe.policy) if recipe.policy else None
    fields = identity(recipe, model_folder, shards)
    if new := drawn_in(recipe.lake, str(recipe.name)) is None:  # what fails for all leaves no dataset behind
        evaluators.try_out(judges, shards[0].groups[0].prompt, recipe.sampler)
    folder = open_dataset(recipe, fields)
    fingerprint = read_manifest(folder)["fingerprint"]
    todo = _missing(recipe, folder, shards[share[0] :: share[1]], console)
    if not todo:
        console.print(
            f"nothing to draw: all {len(shards[share[0] :: share[1]])} shards of {folder} are committed", soft_wrap=True
        )
        return folder
    if not new:
        evaluators.try_out(judges, todo[0].groups[0].prompt, recipe.sampler)
    if model is None:
        device, dtype = hardware.device_of(recipe.sampler.device), recipe.sampler.dtype
        hardware.take_threads()
        console.print(f"loading {recipe.model} on {hardware.describe(device, dtype)}", soft_wrap=True)
        why = ", in which the dataset was begun," if wanted == "auto" else ""
        if warning := hardware.warning_of("sampler.dtype", dtype, device, why):
            console.print(warning, soft_wrap=True)
        model = models.load(model_folder, recipe.sampler)
        if policy:
            models.load_policy_weights(model, policy)
    with _stop_on_signals(console) as stop:
        generator = Generator(recipe, folder, fingerprint, model, judges, stop=stop, clock=clock)
        started, total, elsewhere = time.monotonic(), sum(len(s.groups) for s in todo), 0
        staged = sum(staged_path(folder, g.key).is_file() for s in todo for g in s.groups)
        with DrawProgress(total - staged, recipe.group_size, console) as progress:
            generator.on_group = progress.group
            try:
                for shard in todo:
                    elsewhere += not generator.draw(shard)
                generator.finish()
            finally:
                generator.close()
    seconds = time.monotonic() - started
    console.print(
        f"drew {progress.groups} groups ({progress.members} images) in {seconds:.0f} s: {progress.line()}",
        soft_wrap=True,
    )
    for reason, count in progress.reasons.most_common(5):
        console.print(f"  {count} members failed: {reason}", soft_wrap=True, markup=False)
    if progress.members and progress.failed == progress.members:
        raise RunError(
            f"dataset {folder}: all {progress.members} members failed: {next(iter(progress.reasons))}; the pictures "
            f"are kept, and the same command tries them again"
        )
    if elsewhere:
        console.print(f"{elsewhere} shards were drawn by another process; run again to see whether it finished")
    console.print(f"dataset {folder}", soft_wrap=True)
    return folder


def _missing(recipe: Recipe, folder: Path, shards: list[PlannedShard], console: Console) -> list[PlannedShard]:
    """Shards without a sidecar, and those reopened because members failed; says what is skipped."""
    todo, retried = [], 0
    for shard in shards:
        sidecar = sidecar_path(folder, shard.shard_id)
        if sidecar.is_file():
            status = pq.read_table(sidecar, columns=["status"]).column("status")
            if pc.all(pc.equal(status, OK)).as_py():
                continue
            with claim(folder, shard.shard_id) as mine:
                if not mine:
                    continue
                retried += reopen(folder, shard.shard_id)
        todo.append(shard)
    staged = sum(staged_path(folder, g.key).is_file() for s in todo for g in s.groups)
    if len(todo) < len(shards) or staged:
        done = sum(len(s.groups) for s in shards) - sum(len(s.groups) for s in todo)
        console.print(
            f"resuming {folder}: skipped {done} groups in {len(shards) - len(todo)} committed shards "
            f"and {staged} staged groups" + (f"; trying {retried} failed members again" if retried else ""),
            soft_wrap=True,
        )
    return todo


@contextmanager
def _stop_on_signals(console: Console) -> Iterator[threading.Event]:
    """An Event that the first SIGINT or SIGTERM sets; the second SIGINT is Python's own KeyboardInterrupt."""
    stop = threading.Event()

    def handle(number: int, frame: object) -> None:
        console.print(f"\n{signal.Signals(number).name}: dropping the batch in flight, keeping what is finished")
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    with same_signals():
        for number in SIGNALS:
            signal.signal(number, handle)
        yield stop


SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def same_signals() -> Iterator[None]:
    """Afterwards Ctrl-C and SIGTERM are the caller's again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
