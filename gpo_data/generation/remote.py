"""What is drawn, measured and drawn again by workers, in place of the same loops in this process.

    with kept_workers(recipe, console) as workers:      begun when something is to draw, if the recipe asks for them
        draw(base, console, workers=workers)
        draw(policy, console, workers=workers)

A worker gets planned groups and gives their samples, as bytes; or gets samples and gives measurements (actors.py). An
evaluator with `actors` measures in those, for all workers. The groups of a shard that share no batch with its others
are a job, so that few shards keep many workers busy.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich.console import Console

from gpo_data.errors import UsageError
from gpo_data.evaluators.function import name_of
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
from gpo_data.recipe import EVALUATORS, Ray, Recipe, section_of

if TYPE_CHECKING:
    from gpo_data.generation.ray import Workers
    from gpo_data.generation.travel import Files


def expect_ray(settings: Ray) -> None:
    """Import Ray, for one of this command's own or a cluster's. Raises UsageError where it is not installed."""
    if settings.address is None and "ray" not in sys.modules:  # which reads it when it is imported
        # It listens on every interface, and runs what it is told to: by nobody but this command.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UsageError("--workers, --ray: Ray is not installed here: pip install 'gpo[ray]'") from None


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
    expect_ray(recipe.ray)
    from gpo_data.generation.ray import on_ray

    sections = [_section(recipe, name) for name in [*recipe.evaluators, *recipe.watchers]]
    devices = [device] if drawing else [getattr(section, "device", "cpu") for section in sections]
    return on_ray(recipe.ray, console, any(one != "cpu" for one in devices), actors_of(recipe).values(), tick)


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


def _beside(workers: Workers, recipe: Recipe, files: dict[str, Files]) -> dict[str, list[Any]]:
    """The actors of evaluators that have their own. One that dies is begun again by Ray, and its call repeated."""
    import ray

    kind = ray.remote(actors.EvaluatorActor)
    for name, (number, gpus) in actors_of(recipe).items() if not workers.beside else ():
        options = kind.options(num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=2)
        workers.beside[name_of(name)] = [options.remote(recipe, name, files) for _ in range(number)]
    return workers.beside


@dataclasses.dataclass(eq=False)
class Job:
    """What a worker makes one result of.

    Args:
        name: for people.
        make: gives what the worker gets: all that is left to do; None: nothing, or not for this process.
        of: what it is a part of. A worker gets parts of the same thing one after another.
    """

    name: str
    make: Callable[[], Any]
    of: Any = None
    done: bool = False
    since: float = 0.0  # it was last handed out
    deaths: int = 0


@dataclasses.dataclass
class ShardToDraw:
    """The groups of a shard that are not staged. Its lock is held here, from when the first is handed out."""

    shard: PlannedShard
    folder: AnyPath
    fingerprint: str
    columns: dict[str, pa.DataType]
    elsewhere: bool = False
    lock: ExitStack | None = None
    left: set[str] = dataclasses.field(default_factory=set)  # keys

    def jobs(self, batch_size: int) -> list[Job]:
        name = f"shard {self.shard.shard_id} of {self.folder}"
        return [Job(name, functools.partial(self._left_of, part), self) for part in self.shard.parts(batch_size)]

    def _left_of(self, part: list[int]) -> tuple[PlannedShard, list[int]] | None:
        if self.lock is None:
            self._begin()
        missing = [g for g in part if self.shard.groups[g].key in self.left]
        return (self.shard, missing) if missing else None

    def _begin(self) -> None:
        self.lock = ExitStack()
        mine = self.lock.enter_context(claim(self.folder, self.shard.shard_id))
        if not mine or sidecar_path(self.folder, self.shard.shard_id).is_file():
            self.elsewhere = True
            self.lock.close()
            return
        clear_temporaries(self.folder, self.shard)
        missing = not_staged(self.folder, self.shard, self.fingerprint)
        self.left = {self.shard.groups[g].key for g in missing}
        if not missing:
            self._commit()

    def keep(self, blocks: bytes) -> Group:
        """Stage a group, and commit the shard if it was the last."""
        group = from_sample(open_archive(blocks + END), images=False)
        stage_blocks(self.folder, group.key, blocks, self.fingerprint)
        self.left.discard(group.key)
        if not self.left:
            self._commit()
        return group

    def _commit(self) -> None:
        keys = [group.key for group in self.shard.groups]
        self.elsewhere = not commit(self.folder, self.shard.shard_id, keys, self.columns, self.fingerprint)
        self.close()

    def close(self) -> None:
        if self.lock is not None:
            self.lock.close()


def with_their_dtype(workers: Workers, recipe: Recipe) -> Recipe:
    """The recipe with the precision that `sampler.dtype: auto` is where the workers are. Raises UsageError."""
    workers.open(actors.precision)
    ((_, dtype),) = workers.run([Job("sampler.dtype", lambda: (recipe.sampler.dtype, recipe.sampler.device))])
    return with_dtype(recipe, dtype)


def open_in(workers: Workers, recipe: Recipe, work: Callable[..., actors.Work], *arguments: Any) -> None:
    """Have the workers open what that work (actors.py) needs of the recipe. Raises what they raise."""
    from gpo_data.generation.travel import absolute, sent

    recipe = absolute(recipe)
    files = sent(recipe, everywhere=recipe.ray.address is None)
    workers.open(work, recipe, files, _beside(workers, recipe, files), *arguments)


def draw_shards(
    workers: Workers,
    recipe: Recipe,
    folder: AnyPath,
    fingerprint: str,
    shards: list[PlannedShard],
    columns: dict[str, pa.DataType],
    on_group: Callable[[Group], None],
    stop: threading.Event,
) -> int:
    """Draw them; how many another process has. Raises Interrupted, RunError, and what workers raise."""
    to_draw = [ShardToDraw(shard, folder, fingerprint, columns) for shard in shards]
    parts = [shard.jobs(recipe.sampler.batch_size) for shard in to_draw]
    # The first of each shard, the second of each, ...: workers begin with shards of their own, and share the last ones.
    jobs = [job for turn in itertools.zip_longest(*parts) for job in turn if job is not None]
    try:
        for job, groups in workers.run(jobs, stop):
            for blocks in groups:
                on_group(job.of.keep(blocks))
    finally:
        for shard in to_draw:
            shard.close()
    return sum(shard.elsewhere for shard in to_draw)
