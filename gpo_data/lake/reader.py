"""Groups as training reads them: a frozen snapshot, a deterministic order, checked bytes.

    order(seed, epoch, pass) = permutation(PCG64([seed, epoch, pass])) of the snapshot's groups
    step s of a pass         = the B groups order[s B : (s + 1) B];  rank r takes its slice [r::world]

What always holds: the order is a pure function, so every rank sees the same global batches and a resumed run goes on
where it stopped; all ranks take equally many steps (the remainder of groups modulo B sits a pass out, other groups
each time); a sample is read at the sidecar's offset and checked by crc32, and damage stops the run with the shard's
path and the command that repairs it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import overload

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from gpo_data.errors import UsageError
from gpo_data.lake import catalog
from gpo_data.lake.cache import Cache
from gpo_data.lake.latents import LARGE, StoredLatents, joined, open_group
from gpo_data.lake.manifest import keeps_unconditional, read_manifest
from gpo_data.lake.places import Place, Places
from gpo_data.lake.record import PLACE, Record
from gpo_data.lake.remote import RemotePath, place
from gpo_data.lake.shard import dataset_folder, number_of, sidecar_path
from gpo_data.lake.sidecar import read_rows
from gpo_data.lake.snapshot import take_snapshot
from gpo_data.parts import UNCONDITIONAL

AHEAD = 16  # groups on their way from an object store


@dataclass(frozen=True)
class TrainGroup:
    """One prompt's members, as many as the snapshot kept.

    latents: [n, C, h, w], the sampler's own; StoredLatents only where the reader was asked for them. conditioning:
    {name: [...]}, without a batch axis. rewards and advantages: [n] float64, as the snapshot has them.
    """

    key: str  # <dataset>/<group_key>: two iterations of a run may hold the same group_key
    prompt: str
    members: tuple[int, ...]
    seeds: tuple[int, ...]  # of the noise that the members were drawn from
    latents: Tensor | StoredLatents
    conditioning: dict[str, Tensor]
    rewards: Tensor
    advantages: Tensor
    lent: tuple[bool, ...] = ()  # of each member whether another group drew it (relabel); empty: none is
    kl_weights: Tensor | None = None  # [n] float64: how much of the penalty `train.kl` each has; None: all of it
    unconditional: dict[str, Tensor] | None = None  # of the dataset: stands in the place of conditioning, by name

    @property
    def prompt_embeds(self) -> Tensor:
        """[L, D], of the conditioning."""
        return self.conditioning["prompt_embeds"]

    def to(self, device: torch.device | str) -> TrainGroup:
        """The group with its tensors on a device; Lightning asks batches for it."""
        return dataclasses.replace(
            self,
            latents=self.latents[:].to(device),
            conditioning={name: value.to(device) for name, value in self.conditioning.items()},
            rewards=self.rewards.to(device),
            advantages=self.advantages.to(device),
            kl_weights=None if self.kl_weights is None else self.kl_weights.to(device),
            unconditional=None
            if self.unconditional is None
            else {name: value.to(device) for name, value in self.unconditional.items()},
        )


class Reader(torch.utils.data.Dataset[TrainGroup]):
    """The groups of a snapshot (see `take_snapshot`), by index. Picklable, so that worker processes can read."""

    def __init__(
        self,
        lake: str,
        snapshot: pa.Table,
        cache: Cache | None = None,
        unconditional: Sequence[str] = (),
        large: float = math.inf,
    ) -> None:
        """Args:
        unconditional: keys that ask for the unconditional embedding of each dataset, which its groups then have.
        large: bytes from which on the latents of a local group are not held, but read by rows (latents.py).

        Raises UsageError where a dataset has none.
        """
        self.lake, self.places, self.cache, self.large = lake, Places(lake, snapshot), cache, large
        self.digest = digest_of([snapshot])
        keys = self.places.keys if unconditional else []
        firsts = {key.partition("/")[0]: at for at, key in reversed(list(enumerate(keys)))}
        self._firsts = {name: _first_record(lake, name, self.places[at], unconditional) for name, at in firsts.items()}
        self._unconditional: dict[str, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> TrainGroup: ...
    @overload
    def __getitem__(self, index: slice) -> list[TrainGroup]: ...
    def __getitem__(self, index: int | slice) -> TrainGroup | list[TrainGroup]:
        if isinstance(index, slice):
            return list(self.ahead(range(*index.indices(len(self)))))
        place, large = self.places[index], self.large
        opened = [open_group(part.record, part.members, self.cache, large) for part in place.parts]
        groups = [group for group, _ in opened]
        members = [(group, member) for group, part in zip(groups, place.parts, strict=True) for member in part.members]
        if place.seeds != tuple(group.seeds[member] for group, member in members):
            raise place.parts[0].record.damaged(f"expected the seeds that the rows of {place.key} have, found others")
        return TrainGroup(
            key=place.key,
            prompt=place.prompt,
            members=tuple(member for _, member in members),
            seeds=place.seeds,
            latents=joined([latents for _, latents in opened]),
            conditioning=groups[0].conditioning,
            rewards=torch.tensor(place.rewards, dtype=torch.float64),
            advantages=torch.tensor(place.advantages, dtype=torch.float64),
            kl_weights=None if place.kl_weights is None else torch.tensor(place.kl_weights, dtype=torch.float64),
            unconditional=self._unconditional_of(place.dataset),
            # Its own record comes first.
            lent=tuple(at > 0 for at, part in enumerate(place.parts) for _ in part.members),
        )

    def _unconditional_of(self, dataset: str) -> dict[str, Tensor] | None:
        """Read once. Raises RunError."""
        if dataset in self._firsts and dataset not in self._unconditional:
            record = self._firsts[dataset]
            found = record.group(self.cache, images=False).unconditional
            if found is None:
                raise record.damaged(f"expected {UNCONDITIONAL} in the shard's first group, found none")
            self._unconditional[dataset] = found
        return self._unconditional.get(dataset)

    def ahead(self, indexes: Iterable[int]) -> Iterator[TrainGroup]:
        """The groups at these indexes in this order; from an object store some are on their way while one is used."""
        if not self.remote:
            yield from map(self.__getitem__, indexes)
            return
        left, waiting = iter(indexes), deque[Future[TrainGroup]]()
        pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="read")
        try:
            waiting.extend(pool.submit(self.__getitem__, index) for index in itertools.islice(left, AHEAD))
            while waiting:
                group = waiting.popleft().result()
                waiting.extend(pool.submit(self.__getitem__, index) for index in itertools.islice(left, 1))
                yield group
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def remote(self) -> bool:
        """Whether a group is a request to an object store."""
        return isinstance(place(self.lake), RemotePath)


def expect_unconditional(lake: str, dataset: str, keys: Sequence[str]) -> None:
    """Raise UsageError where `keys` ask for the dataset's unconditional embedding, and it has none."""
    if keys and not keeps_unconditional(read_manifest(dataset_folder(lake, dataset))):
        raise UsageError(
            f"dataset {dataset} has no unconditional embedding, and {' and '.join(keys)} asked for it: draw or import "
            f"it under another --name with `--sampler.store_unconditional true`"
        )


def _first_record(lake: str, dataset: str, place: Place, keys: Sequence[str]) -> Record:
    """The first group of the shard that `place` is in, where the dataset's unconditional embedding is."""
    expect_unconditional(lake, dataset, keys)
    folder = dataset_folder(lake, dataset)
    tar = place.parts[0].record.tar.rpartition("/")[2]
    rows = read_rows(sidecar_path(folder, number_of(folder / tar)), list(PLACE))
    return Record.of(min(rows, key=lambda row: row["offset"]), folder)


def digest_of(snapshots: Sequence[pa.Table]) -> str:
    """Of one snapshot, or of several read as one."""
    digests = [(s.schema.metadata or {}).get(b"digest", b"").decode() for s in snapshots]
    return digests[0] if len(digests) == 1 else hashlib.blake2b("/".join(digests).encode(), digest_size=16).hexdigest()


def merge(snapshots: Sequence[pa.Table]) -> pa.Table:
    """Several snapshots as one, each with its own advantages (replay of past iterations)."""
    if len(snapshots) == 1:
        return snapshots[0]
    facts = {
        name: str(sum(int((s.schema.metadata or {})[name.encode()]) for s in snapshots))
        for name in ("groups", "dead_groups", "failed_members")
    }
    return pa.concat_tables(snapshots).replace_schema_metadata(facts | {"digest": digest_of(snapshots)})


def batches(groups: int, batch: int, seed: int, epoch: int, passes: int = 1) -> list[list[int]]:
    """The global batches of one epoch: `passes` permutations, groups // batch steps each. Raises UsageError."""
    if groups < batch:
        raise UsageError(
            f"train.groups_per_step: {batch} groups a step, and the snapshot has {groups} with a reward that varies; "
            f"lower it, or draw more groups"
        )
    steps, found = groups // batch, []
    for number in range(passes):
        order = np.random.Generator(np.random.PCG64([seed, epoch, number])).permutation(groups).tolist()
        found += [order[s * batch : (s + 1) * batch] for s in range(steps)]
    return found


def spread(latents: Tensor | StoredLatents) -> float:
    """sqrt(mean over elements of the variance of latents [n, ...] over members), some members at a time."""
    total = squares = torch.zeros(latents.shape[1:], dtype=torch.float64)
    for first in range(0, len(latents), 64):
        some = latents[first : first + 64].double()
        total, squares = total + some.sum(0), squares + some.square().sum(0)
    n = len(latents)
    return ((squares - total.square() / n) / (n - 1)).clamp(min=0).mean().sqrt().item()


def diversity(lake: str, dataset: str) -> float:
    """sqrt(mean over elements of the variance of latents over a group's members), mean over groups."""
    found = []
    reader = Reader(lake, take_snapshot(catalog.connect(lake, dataset), dataset, keep_dead=True), large=LARGE)
    for group in reader.ahead(range(len(reader))):
        if len(group.members) > 1:
            found.append(spread(group.latents))
    return float(np.mean(found))
