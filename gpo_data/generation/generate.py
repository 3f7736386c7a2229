"""The verb `shards`: what is planned and not committed gets drawn; a second run says what it skipped.

Ctrl-C, SIGTERM and SIGHUP drop the batch in flight, let the groups behind it reach the stage, and leave a lake that
resumes; a second Ctrl-C stops at once, which loses no more than a kill would.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from gpo_data import evaluators, hardware, models
from gpo_data.errors import RunError, UsageError
from gpo_data.generation import actors
from gpo_data.generation.plan import PlannedShard, plan
from gpo_data.generation.progress import Clock, DrawProgress
from gpo_data.generation.remote import Begin, draw_shards, kept_workers, open_in, with_their_dtype
from gpo_data.generation.reward import expect_reward
from gpo_data.generation.worker import Generator
from gpo_data.lake.locks import claim
from gpo_data.lake.manifest import (
    drawing_device,
    drawn_in,
    identity,
    imported,
    open_dataset,
    read_manifest,
    refuse_other_versions,
    settle,
)
from gpo_data.lake.mirror import files_at_once
from gpo_data.lake.remote import AnyPath, stage_folder
from gpo_data.lake.reopen import reopen
from gpo_data.lake.shard import dataset_folder, sidecar_path
from gpo_data.lake.sidecar import footer_of, read_rows
from gpo_data.lake.stage import staged, staged_path
from gpo_data.prompt import Prompt
from gpo_data.recipe import Recipe
from gpo_data.signals import answer, same_signals
from gpo_data.status import OK
from gpo_data.tasks import TASKS

if TYPE_CHECKING:
    from gpo_data.generation.ray import Workers


def draw(
    recipe: Recipe,
    console: Console,
    model: models.Model | None = None,
    share: tuple[int, int] = (0, 1),
    clock: Clock | None = None,
    workers: Begin | None = None,
    measuring: list[evaluators.Evaluator] | None = None,
) -> AnyPath:
    """Draw all missing shards of the recipe's dataset; its folder. Raises Interrupted after Ctrl-C or SIGTERM.

    Args:
        model: the recipe's model, open, with the recipe's policy in it; None opens it.
        share: (rank, world): of the missing shards only those at [rank::world].
        clock: gets the seconds of each part; of workers it does not know them.
        workers: that draw, kept from one dataset to the next (remote.py); None: those that the recipe asks for.
        measuring: the recipe's evaluators, open; None builds them.
    """
    with kept_workers(recipe, console) as own:
        begin = workers or (own if model is None else lambda: None)
        return _draw(recipe, console, model, share, clock, begin, measuring)


def _draw(
    recipe: Recipe,
    console: Console,
    model: models.Model | None,
    share: tuple[int, int],
    clock: Clock | None,
    begin: Begin,
    measuring: list[evaluators.Evaluator] | None,
) -> AnyPath:
    new = drawn_in(recipe.lake, str(recipe.name)) is None
    if new and recipe.ray.address is not None and (workers := begin()):
        recipe = with_their_dtype(workers, recipe)
    wanted, recipe = recipe.sampler.dtype, settle(recipe, drawing_device(recipe))
    if imported(dataset_folder(recipe.lake, str(recipe.name))):
        raise UsageError(
            f"dataset {recipe.name}: its pictures were imported, and nothing is drawn beside them; draw under another "
            f"--name, or train on both (train.datasets)"
        )
    shards = plan(recipe)
    chosen = measuring or evaluators.build(evaluators.on_driver(recipe))
    watching = _checked(recipe, shards, chosen)
    model_folder = models.resolve(recipe.model, recipe.revision)
    models.expect_size(model_folder, recipe.sampler)
    models.expect_unconditional(model_folder, recipe.sampler.unconditional)
    policy = models.policy_path(recipe.policy) if recipe.policy else None
    fields = identity(recipe, model_folder, shards)
    workers = None
    if new:  # what fails for all leaves no dataset behind
        workers = begin()
        model = _open(recipe, wanted, model_folder, policy, console, chosen, shards[0].groups[0].prompt, workers, model)
    watched, versions = {one.name: list(one.columns) for one in watching}, evaluators.versions_of(chosen)
    folder = open_dataset(recipe, fields, watched, shards, versions)
    found = read_manifest(folder)
    fingerprint = found.fingerprint
    todo = _missing(folder, fingerprint, shards[share[0] :: share[1]], console)
    if not todo.shards:
        console.print(
            f"nothing to draw: all {len(shards[share[0] :: share[1]])} shards of {folder} are committed", soft_wrap=True
        )
        if changed := found.seen_otherwise(versions):
            console.print(f"its pictures were measured by other versions: {changed}; `gpo-data measure` measures again")
        return folder
    refuse_other_versions(folder, found, versions)
    if not new:
        workers = begin()
        first = todo.shards[0].groups[0].prompt
        model = _open(recipe, wanted, model_folder, policy, console, chosen, first, workers, model)
    with _stop_on_signals(console) as stop:
        total, elsewhere = sum(len(s.groups) for s in todo.shards), 0
        progress = DrawProgress(total - todo.staged, recipe.group_size, console, todo.staged, recipe.max_failed)
        with progress:
            try:
                if workers is not None:
                    columns = shards[0].columns | evaluators.columns_of(chosen)
                    elsewhere = draw_shards(
                        workers, recipe, folder, fingerprint, todo.shards, columns, progress.group, stop
                    )
                else:
                    assert model is not None
                    generator = Generator(recipe, folder, fingerprint, model, chosen, progress.group, stop, clock)
                    elsewhere = _draw_here(generator, todo.shards)
            except RunError:
                progress.report()
                raise
    progress.report()
    if progress.members and progress.failed == progress.members:
        raise RunError(
            f"dataset {folder}: all {progress.members} members failed: {next(iter(progress.reasons))}; the pictures "
            f"are kept, and the same command tries them again"
        )
    if elsewhere:
        console.print(f"{elsewhere} shards were drawn by another process; run again to see whether it finished")
    console.print(f"dataset {folder}", soft_wrap=True)
    return folder


def _checked(
    recipe: Recipe, shards: list[PlannedShard], chosen: list[evaluators.Evaluator]
) -> list[evaluators.Evaluator]:
    """The evaluators that only watch. Raises UsageError where evaluators, reward and prompts do not go together."""
    evaluators.refuse_same_columns(f"task.prompts: {recipe.task.prompts}", shards[0].columns, chosen)
    watching = expect_reward(recipe, shards[0].columns, chosen)
    if recipe.task.prompts is not None:
        prompts = [group.prompt for shard in shards for group in shard.groups]
        evaluators.check_classes(chosen, prompts, TASKS[recipe.task.kind].classes)
    return watching


def _draw_here(generator: Generator, shards: list[PlannedShard]) -> int:
    """Draw them in this process; how many another one has."""
    try:
        elsewhere = sum(not generator.draw(shard) for shard in shards)
        generator.finish()
    finally:
        generator.close()
    return elsewhere + generator.elsewhere


def _open(
    recipe: Recipe,
    wanted: str,
    model_folder: Path,
    policy: Path | None,
    console: Console,
    chosen: list[Any],
    prompt: Prompt,
    workers: Workers | None,
    model: models.Model | None,
) -> models.Model | None:
    """A blank picture through the evaluators, and the model opened; both by the workers, if there are any."""
    if workers is None:
        evaluators.try_out(chosen, prompt, recipe.sampler)
        return model or _open_model(recipe, wanted, model_folder, policy, console)
    each = f"threads each: {workers.threads}" + (f", GPUs each: {workers.gpus:g}" if workers.gpus else "")
    console.print(f"drawing with {recipe.model}; workers: {workers.number}, {each}", soft_wrap=True)
    open_in(workers, recipe, actors.drawing, prompt)
    return None


def _open_model(recipe: Recipe, wanted: str, model_folder: Path, policy: Path | None, console: Console) -> models.Model:
    """The recipe's model with its policy in it; `wanted`: the dtype that the user asked for. Raises UsageError."""
    device, dtype = hardware.device_of(recipe.sampler.device), recipe.sampler.dtype
    hardware.take_threads()
    console.print(f"loading {recipe.model} on {hardware.describe(device, dtype)}", soft_wrap=True)
    why = ", in which the dataset was begun," if wanted == "auto" else ""
    if warning := hardware.warning_of("sampler.dtype", dtype, device, why):
        console.print(warning, soft_wrap=True)
    model = models.load(model_folder, recipe.sampler)
    if policy:
        models.load_policy_weights(model, policy, recipe.seed)
    return model


@dataclass
class Todo:
    """What is left to draw, and what lies on the stage for it."""

    shards: list[PlannedShard]
    staged: int = 0
    retried: int = 0


def _missing(folder: AnyPath, fingerprint: str, shards: list[PlannedShard], console: Console) -> Todo:
    """Shards without a sidecar, and those reopened because members failed; says what is skipped."""
    todo = Todo([])
    on_stage = {path.name for path in stage_folder(folder).glob("*.sample")}
    committed = files_at_once(folder, "shard-*.parquet")
    for shard in shards:
        sidecar = sidecar_path(folder, shard.shard_id)
        there = committed.get(sidecar.name)
        failed, lacking = _left(there, fingerprint, shard) if there else NOT_COMMITTED
        left = [path for group in shard.groups if (path := staged_path(folder, group.key)).name in on_stage]
        if failed or lacking or (failed == 0 and left):
            with claim(folder, shard.shard_id) as mine:
                if not mine:
                    continue
                failed, lacking = _left(sidecar, fingerprint, shard)  # another process may have tried them meanwhile
                if failed or lacking:
                    todo.retried += reopen(folder, shard.shard_id, fingerprint)
                elif failed == 0:  # what was killed between its commit and the clearing of the stage
                    for path in left:
                        path.unlink(missing_ok=True)
        if failed != 0 or lacking:
            todo.shards.append(shard)
    todo.staged = sum(
        staged(folder, group.key, fingerprint, group.seeds) is not None for s in todo.shards for group in s.groups
    )
    if len(todo.shards) < len(shards) or todo.staged:
        done = sum(len(s.groups) for s in shards) - sum(len(s.groups) for s in todo.shards)
        console.print(
            f"resuming {folder}: skipped {done} groups in {len(shards) - len(todo.shards)} committed shards "
            f"and {todo.staged} staged groups"
            + (f"; trying {todo.retried} failed members again" if todo.retried else ""),
            soft_wrap=True,
        )
    return todo


NOT_COMMITTED: tuple[int | None, int] = (None, 0)


def _left(sidecar: AnyPath, fingerprint: str, shard: PlannedShard) -> tuple[int | None, int]:
    """(members of a committed shard that failed, groups that it lacks because the dataset has grown).

    Raises RunError for another recipe's.
    """
    try:
        rows, footer = read_rows(sidecar, ["group_key", "status"]), footer_of(sidecar)
    except RunError:
        if sidecar.exists():
            raise
        return NOT_COMMITTED  # also where another process takes it back just now
    if footer["fingerprint"] != fingerprint:
        raise RunError(
            f"{sidecar}: fingerprint {footer['fingerprint']}, expected {fingerprint}, the one of dataset.json: "
            f"another recipe drew it; run `gpo-data verify RECIPE --repair`"
        )
    lacking = {group.key for group in shard.groups} - {row["group_key"] for row in rows}
    return len([row for row in rows if row["status"] != OK]), len(lacking)


@contextmanager
def _stop_on_signals(console: Console) -> Iterator[threading.Event]:
    """An Event that the first SIGINT or SIGTERM sets; the second SIGINT is Python's own KeyboardInterrupt."""
    stop = threading.Event()

    def handle(number: int, frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with suppress(OSError):  # after SIGHUP there is no terminal
            console.print(f"\n{signal.Signals(number).name}: dropping the batch in flight, keeping what is finished")

    with same_signals():
        answer(handle)
        yield stop
