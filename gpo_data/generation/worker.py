"""Draw groups: (recipe, shard) -> committed shard, with drawing, decoding, measuring and writing overlapped.

    Drawer      planned groups -> finished groups; it knows no folder, so that it also works on another machine (ray.py)
    Generator   stages what a Drawer finishes in this process, and commits the shard

The main thread runs the denoiser, batch after batch. A finished group goes to a second thread that decodes, measures,
scores and stages it, and commits the shard when its last group is staged; so the evaluators run while the next batch
is drawn, and a kill loses at most the groups in flight. A batch is a fixed slice of the shard (see plan.py): resuming
draws again exactly the batches that a missing group had a part in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from gpo_data.errors import Interrupted, RunError, UsageError
from gpo_data.evaluators import asked, columns_of
from gpo_data.generation.plan import PlannedGroup, PlannedShard
from gpo_data.generation.progress import Clock
from gpo_data.group import Group
from gpo_data.lake.durable import clear_stale
from gpo_data.lake.locks import claim
from gpo_data.lake.remote import AnyPath
from gpo_data.lake.rewards import score
from gpo_data.lake.shard import commit, sidecar_path, tar_path
from gpo_data.lake.stage import stage, staged, staged_path
from gpo_data.models import Conditioning, Model, repeat
from gpo_data.recipe import Recipe
from gpo_data.status import FAILED_EVALUATOR, FAILED_LATENTS, FAILED_REWARD, LATENTS_REASON, OK, REWARD_REASON
from gpo_data.tasks import TASKS

T = TypeVar("T")
GROUPS_WAITING = 8  # finished by the denoiser and not yet staged; bounds memory when an evaluator is the slower half


class Drawer(Generic[T]):
    """Draws groups of planned shards; a second thread finishes them and makes of each what is wanted of it.

    Args:
        made: of a finished group; called in the second thread, group after group.
        stop: makes the next step of the denoiser raise Interrupted.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: Model,
        evaluators: list[Any],
        made: Callable[[Group], T],
        stop: threading.Event | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.recipe, self.model, self.evaluators, self.made = recipe, model, evaluators, made
        self.stop, self.clock = stop or threading.Event(), clock or Clock()
        self.second = ThreadPoolExecutor(1, thread_name_prefix="measure")
        self._encoded: tuple[int, Conditioning] | None = None  # of the last shard, which may come in parts

    def groups(self, shard: PlannedShard, missing: list[int]) -> Iterator[Future[T]]:
        """Each of the groups with those numbers, as soon as it is denoised."""
        if not missing:
            return
        with self.clock.time("encode"):
            if self._encoded is None or self._encoded[0] != shard.shard_id:
                self._encoded = shard.shard_id, self.model.encode([g.prompt.text for g in shard.groups])
            conditioning = self._encoded[1]
            # Of the whole dataset, once a shard, so that each shard can be read by itself.
            keeps = self.recipe.sampler.store_unconditional and 0 in missing
            unconditional = self.model.unconditional() if keeps else None
        latents: dict[int, list[torch.Tensor]] = {g: [] for g in missing}
        for batch in shard.batches(self.recipe.sampler.batch_size):
            wanted = {g for g, _ in batch} & latents.keys()
            if not wanted:
                continue
            drawn = self._draw_batch(shard, batch, conditioning)
            for (g, _), latent in zip(batch, drawn, strict=True):
                if g in wanted:
                    latents[g].append(latent)
            for g in sorted(wanted):
                if len(latents[g]) == len(shard.groups[g].seeds):
                    one = {k: v[g].clone() for k, v in conditioning.items()}
                    stacked = torch.stack(latents.pop(g))
                    yield self.second.submit(self._finish, shard.groups[g], stacked, one, None if g else unconditional)

    def _draw_batch(
        self, shard: PlannedShard, batch: list[tuple[int, int]], conditioning: Conditioning
    ) -> torch.Tensor:
        first, last = batch[0][0], batch[-1][0]
        counts = [sum(g == index for g, _ in batch) for index in range(first, last + 1)]
        rows = {k: v[first : last + 1] for k, v in conditioning.items()}
        seeds = [shard.groups[g].seeds[m] for g, m in batch]
        with self.clock.time("denoise"):
            return self.model.draw(repeat(rows, counts), seeds, self._check_stop)

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise Interrupted

    def _finish(
        self,
        planned: PlannedGroup,
        latents: torch.Tensor,
        conditioning: Conditioning,
        unconditional: Conditioning | None,
    ) -> T:
        group = finish_group(self.recipe, self.model, self.evaluators, planned, latents, conditioning, self.clock)
        group.unconditional = unconditional
        return self.made(group)


class Generator:
    """Draws planned shards into a dataset folder; `stop` (an Event) makes it raise Interrupted at the next step."""

    def __init__(
        self,
        recipe: Recipe,
        folder: AnyPath,
        fingerprint: str,
        model: Model,
        evaluators: list[Any],
        on_group: Callable[[Group], None] = lambda group: None,
        stop: threading.Event | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.folder, self.fingerprint, self.on_group = folder, fingerprint, on_group
        self.drawer = Drawer(recipe, model, evaluators, self._stage, stop, clock)
        self._waiting: list[Future[None]] = []
        self.elsewhere = 0  # shards that another machine committed while this one drew them

    def draw(self, shard: PlannedShard) -> bool:
        """Draw one shard; the second thread commits it. False if another process has it or committed it. Idempotent."""
        lock = ExitStack()
        mine = lock.enter_context(claim(self.folder, shard.shard_id))
        if not mine or sidecar_path(self.folder, shard.shard_id).is_file():
            lock.close()
            return False
        try:
            clear_temporaries(self.folder, shard)
            for group in self.drawer.groups(shard, not_staged(self.folder, shard, self.fingerprint)):
                self._waiting.append(group)
                self._settle(GROUPS_WAITING)
        except BaseException:
            self.drawer.second.submit(lock.close)  # after the groups that are still on their way to the stage
            raise
        self._waiting.append(self.drawer.second.submit(self._commit, shard, lock))
        return True

    def finish(self) -> None:
        """Wait until every drawn shard is committed; an error of the second thread surfaces here."""
        self._settle(0)

    def close(self) -> None:
        """Let the groups that are already drawn reach the stage, then stop the second thread."""
        self.drawer.second.shutdown(wait=True)

    def _settle(self, at_most: int) -> None:
        """Wait until no more than `at_most` groups are in the second thread; its errors surface here."""
        while len(self._waiting) > at_most or (self._waiting and self._waiting[0].done()):
            self._waiting.pop(0).result()

    def _stage(self, group: Group) -> None:
        with self.drawer.clock.time("write"):
            stage(self.folder, group, self.fingerprint)
        self.on_group(group)

    def _commit(self, shard: PlannedShard, lock: ExitStack) -> None:
        with lock, self.drawer.clock.time("write"):
            keys = [g.key for g in shard.groups]
            columns = shard.columns | columns_of(self.drawer.evaluators)
            self.elsewhere += not commit(self.folder, shard.shard_id, keys, columns, self.fingerprint)


def not_staged(folder: AnyPath, shard: PlannedShard, fingerprint: str) -> list[int]:
    """Numbers of a shard's groups that are still to be drawn."""
    return [g for g, group in enumerate(shard.groups) if staged(folder, group.key, fingerprint, group.seeds) is None]


def clear_temporaries(folder: AnyPath, shard: PlannedShard) -> None:
    """What a process left behind that was killed while it wrote."""
    for path in (tar_path(folder, shard.shard_id), sidecar_path(folder, shard.shard_id)):
        clear_stale(path)
    for group in shard.groups:
        clear_stale(staged_path(folder, group.key))


def finish_group(
    recipe: Recipe,
    model: Model,
    evaluators: list[Any],
    planned: PlannedGroup,
    latents: torch.Tensor,
    conditioning: Conditioning,
    clock: Clock | None = None,
) -> Group:
    """Decode, measure and score the members; latents [G, C, h, w]. A failed member keeps its place and its reason."""
    clock = clock or Clock()
    images: list[np.ndarray | None] = [None] * len(latents)
    good = [i for i in range(len(latents)) if torch.isfinite(latents[i]).all()]
    for start in range(0, len(good), recipe.sampler.batch_size):
        part = good[start : start + recipe.sampler.batch_size]
        with clock.time("decode"):
            for i, image in zip(part, model.decode(latents[part]), strict=True):
                images[i] = image
    return judged(recipe, evaluators, planned, latents, conditioning, images, clock=clock)


def judged(
    recipe: Recipe,
    evaluators: list[Any],
    planned: PlannedGroup,
    latents: torch.Tensor,
    conditioning: Conditioning,
    images: list[np.ndarray | None],
    known: list[dict[str, Any]] | None = None,
    clock: Clock | None = None,
) -> Group:
    """The group with its pictures measured and scored; None is a picture of latents that are not finite.

    Args:
        known: of each member measurements that no evaluator makes; the reward may read them.
    """
    size, clock = len(planned.seeds), clock or Clock()
    statuses = [OK if image is not None else FAILED_LATENTS for image in images]
    reasons: list[str | None] = [None if image is not None else LATENTS_REASON for image in images]
    measurements: list[dict[str, Any]] = [dict(one) for one in known] if known else [{} for _ in range(size)]
    for evaluator in evaluators:
        with clock.time("measure"):
            # What one evaluator raised on, the next does not see: the member has failed.
            good_images = [image if statuses[i] == OK else None for i, image in enumerate(images)]
            found, raised = measure_each(evaluator, good_images, asked(planned.prompt))
        for i, values in found.items():
            measurements[i] |= values
        for i, reason in raised.items():
            statuses[i], reasons[i] = FAILED_EVALUATOR, reason
    rows = [planned.prompt.target | measurements[i] for i in range(size)]
    rewards: list[float | None] = [None] * size
    scored = [i for i in range(size) if statuses[i] == OK]
    columns = (planned.columns or TASKS[recipe.task.kind].columns) | columns_of(evaluators)
    for i, reward in zip(scored, score([rows[i] for i in scored], recipe.reward, columns), strict=True):
        rewards[i] = reward
        if reward is None:
            statuses[i], reasons[i] = FAILED_REWARD, REWARD_REASON
    return Group(
        key=planned.key,
        prompt=planned.prompt,
        seeds=planned.seeds,
        latents=latents,
        conditioning=conditioning,
        images=images,
        statuses=statuses,
        reasons=reasons,
        measurements=measurements,
        rewards=rewards,
    )


def measure_each(
    evaluator: Any, images: list[np.ndarray | None], target: dict[str, Any]
) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """({member: measurements}, {member that the evaluator raised on: reason}), of the members with a picture."""
    pictures = {i: image for i, image in enumerate(images) if image is not None}
    if not pictures:
        return {}, {}
    try:
        found = evaluator.measure(list(pictures.values()), [target] * len(pictures))
        return dict(zip(pictures, found, strict=True)), {}
    except (UsageError, RunError):  # RunError: a scorer is gone, for every picture
        raise
    except Exception:  # one bad picture spoils the batch: find it, one by one
        measured, reasons = {}, {}
        for i, picture in pictures.items():
            try:
                measured[i] = evaluator.measure([picture], [target])[0]
            except (UsageError, RunError):
                raise
            except Exception as error:
                reasons[i] = f"{evaluator.name}: {type(error).__name__}: {error}"[:300]
        return measured, reasons
