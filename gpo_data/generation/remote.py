"""What is drawn, measured and drawn again by workers, in place of the same loops in this process.

    with kept_workers(recipe, console) as workers:      begun when something is to draw, if the recipe asks for them
        draw(base, console, workers=workers)
        draw(policy, console, workers=workers)

A worker gets planned groups and gives their samples, as bytes; or gets samples and gives measurements (actors.py). An
evaluator with `actors` measures in those, for all workers.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich.console import Console

from gpo_data import hardware
from gpo_data.errors import UsageError
from gpo_data.generation import actors
from gpo_data.generation.plan import PlannedShard
from gpo_data.generation.worker import clear_temporaries, not_staged
from gpo_data.group import Group, from_sample
from gpo_data.lake.locks import claim
from gpo_data.lake.manifest import with_dtype
from gpo_data.lake.remote import AnyPath
from gpo_data.lake.shard import commit, sidecar_path
from gpo_data.lake.stage import END, stage_blocks
from gpo_data.parts import open_archive
from gpo_data.prompt import Prompt
from gpo_data.recipe import EVALUATORS, Recipe, section_of

if TYPE_CHECKING:
    from gpo_data.generation.ray import Workers
    from gpo_data.generation.travel import Files


def workers_for(
    recipe: Recipe, console: Console, drawing: bool = True, tick: Callable[[], object] = lambda: None
) -> AbstractContextManager[Workers | None]:
    """The workers that the recipe asks for, to be ended; None where it asks for none. Raises UsageError."""
    if not recipe.ray.wanted:
        return nullcontext()
    device = recipe.sampler.device
    if ":" in device and drawing:
        raise UsageError(
            f"sampler.device: expected auto, cuda or cpu with workers, which get their GPU from Ray, found {device!r}"
        )
    if recipe.ray.address is None and "ray" not in sys.modules:  # which reads it when it is imported
        # It listens on every interface, and runs what it is told to: by nobody but this command.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        from gpo_data.generation.ray import Workers
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UsageError("--workers, --ray: Ray is not installed here: pip install 'gpo[ray]'") from None
    on_gpu = (
        device != "cpu" if drawing else any(_on_gpu(recipe, name) for name in [*recipe.evaluators, *recipe.watchers])
    )
    return Workers(recipe.ray, console, on_gpu, actors_of(recipe), tick)


Begin = Callable[[], "Workers | None"]


@contextmanager
def kept_workers(recipe: Recipe, console: Console, tick: Callable[[], object] = lambda: None) -> Iterator[Begin]:
    """Gives a function that begins them the first time and gives the same ones again."""
    with ExitStack() as begun:
        yield functools.cache(lambda: begun.enter_context(workers_for(recipe, console, tick=tick)))


def actors_of(recipe: Recipe) -> dict[str, tuple[int, float]]:
    """{evaluator: (actors of its own, GPUs of each)}."""
    found = {}
    for name in [*recipe.evaluators, *recipe.watchers]:
        section = _section(recipe, name)
        own = (recipe.ray.function_actors, recipe.ray.function_num_gpus) if ":" in name else (0, 0.0)
        number, gpus = own if section is None else (section.actors, section.num_gpus)
        if number:
            found[name] = (number, gpus)
    return found


def _section(recipe: Recipe, name: str) -> Any:
    """The settings of an evaluator that computes here; None of a function and of what asks a server."""
    section = getattr(recipe, section_of(name), None) if name in EVALUATORS else None
    return section if hasattr(section, "actors") else None


def _on_gpu(recipe: Recipe, name: str) -> bool:
    return getattr(_section(recipe, name), "device", "cpu") != "cpu"


def _beside(workers: Workers, recipe: Recipe, files: dict[str, Files]) -> dict[str, list[Any]]:
    """The actors of evaluators that have their own. One that dies is begun again by Ray, and its call repeated."""
    import ray

    kind = ray.remote(actors.EvaluatorActor)
    for name, (number, gpus) in actors_of(recipe).items() if not workers.beside else ():
        options = kind.options(num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=2)
        workers.beside[name] = [options.remote(recipe, name, files) for _ in range(number)]
    return workers.beside


@dataclasses.dataclass
class ShardToDraw:
    """A job: the groups of a shard that are not staged. Its lock is held here, from when it is first handed out."""

    shard: PlannedShard
    folder: AnyPath
    fingerprint: str
    columns: dict[str, pa.DataType]
    done: bool = False
    elsewhere: bool = False
    lock: ExitStack | None = None
    left: set[str] = dataclasses.field(default_factory=set)  # keys

    @property
    def name(self) -> str:
        return f"shard {self.shard.shard_id} of {self.folder}"

    def hand_out(self) -> tuple[int, tuple[PlannedShard, list[int]]] | None:
        if self.lock is None:
            self.lock = ExitStack()
            mine = self.lock.enter_context(claim(self.folder, self.shard.shard_id))
            if not mine or sidecar_path(self.folder, self.shard.shard_id).is_file():
                self.elsewhere = True
                self.lock.close()
                return None
            clear_temporaries(self.folder, self.shard)
        missing = not_staged(self.folder, self.shard, self.fingerprint)
        self.left = {self.shard.groups[g].key for g in missing}
        if not missing:
            self.commit()
            return None
        return len(missing), (self.shard, missing)

    def keep(self, blocks: bytes) -> Group | None:
        """Stage a group, and commit the shard if it was the last; None where another worker drew it as well."""
        group = from_sample(open_archive(blocks + END), images=False)
        if group.key not in self.left:
            return None
        stage_blocks(self.folder, group.key, blocks, self.fingerprint)
        self.left.discard(group.key)
        if not self.left:
            self.commit()
        return group

    def commit(self) -> None:
        keys = [group.key for group in self.shard.groups]
        self.elsewhere = not commit(self.folder, self.shard.shard_id, keys, self.columns, self.fingerprint)
        self.done = True
        self.close()

    def close(self) -> None:
        if self.lock is not None:
            self.lock.close()


def with_their_dtype(workers: Workers, recipe: Recipe) -> Recipe:
    """The recipe with the precision that `sampler.dtype: auto` is where the workers are. Raises UsageError."""
    return with_dtype(recipe, workers.ask(_dtype, recipe.sampler.dtype, recipe.sampler.device))


def _dtype(setting: str, device: str) -> hardware.Dtype:
    return hardware.dtype_for(setting, hardware.device_of(device))


def open_drawing(workers: Workers, recipe: Recipe, blank: Prompt | None) -> None:
    """Have the workers open the model. Raises what they raise."""
    _open(workers, recipe, actors.drawing, blank)


def _open(workers: Workers, recipe: Recipe, work: Any, *arguments: Any) -> None:
    from gpo_data.generation.travel import absolute, sent

    recipe = absolute(recipe)
    files = sent(recipe, everywhere=recipe.ray.address is None)
    workers.open(work, recipe, files, _beside(workers, recipe, files), *arguments)


def draw_shards(
    workers: Workers,
    folder: AnyPath,
    fingerprint: str,
    shards: list[PlannedShard],
    columns: dict[str, pa.DataType],
    on_group: Callable[[Group], None],
    stop: threading.Event,
) -> int:
    """Draw them; how many another process has. Raises Interrupted, RunError, and what workers raise."""
    jobs = [ShardToDraw(shard, folder, fingerprint, columns) for shard in shards]
    try:
        for job, blocks in workers.run(jobs, stop):
            if (group := job.keep(blocks)) is not None:
                on_group(group)
    finally:
        for job in jobs:
            job.close()
    return sum(job.elsewhere for job in jobs)


@dataclasses.dataclass
class Once:
    """A job of one result. `make` gives what the worker gets, or None where there is nothing to do."""

    name: str
    make: Callable[[], Any]
    done: bool = False

    def hand_out(self) -> tuple[int, Any] | None:
        made = self.make()
        return None if made is None else (1, made)


def open_measuring(workers: Workers, recipe: Recipe, names: Sequence[str] | None) -> None:
    _open(workers, recipe, actors.measuring, names)


def open_redrawing(workers: Workers, recipe: Recipe) -> None:
    _open(workers, recipe, actors.redrawing)
