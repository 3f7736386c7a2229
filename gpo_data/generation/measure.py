"""`gpo-data measure`: an evaluator's measurements of pictures that are already drawn, in a sidecar of its own.

    dataset=<name>/measures/<evaluator>@<version>/shard-000012.parquet

One row a member: group_key, member, the evaluator's columns (NULL where there is no picture or the evaluator failed).
The footer holds `tar_sha256` of the shard that was measured, `evaluator`, `version`, `measured_at`, and `failed`, how
many members the evaluator raised on. A sidecar is up to date if it names the shard's present sha256 and nothing failed.
Of several settings of an evaluator those count that were asked for last.

What always holds: tars and shard sidecars never change; a measures sidecar is written whole, under a temporary name
first, so that Ctrl-C or a kill loses at most the shard in hand and the same command goes on from there. Groups are
read with their crc32 checked. The pictures are the stored previews: lossless below 128 px, WebP above.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from gpo_data.errors import RunError
from gpo_data.evaluators import asked, build, chosen, close, expect_questions, on_driver
from gpo_data.generation.measured import MEASURES, folder_name, is_of, lacks, measured_at, of_other_versions, write
from gpo_data.group import Group
from gpo_data.lake.locks import claim
from gpo_data.lake.manifest import Manifest, measured, read_manifest
from gpo_data.lake.mirror import files_at_once
from gpo_data.lake.record import PLACE, Record
from gpo_data.lake.remote import AnyPath
from gpo_data.lake.shard import dataset_folder, number_of
from gpo_data.lake.sidecar import footer_of, measured_columns, parquet_of, read_rows
from gpo_data.progress import Bar
from gpo_data.recipe import Recipe


def measure(recipe: Recipe, evaluators: Sequence[Any] | None = None, console: Console | None = None) -> list[AnyPath]:
    """Measure every committed shard of the recipe's dataset that lacks it; the sidecars written.

    Args:
        evaluators: names (as in a recipe, or `image_stats`) or evaluator objects, which are run wherever their
            sidecar is missing or out of date. None: those of the recipe, on shards that were not drawn with them,
            or with other settings.

    Raises UsageError (no such dataset or evaluator) and RunError (a damaged shard, a full disk, every member failed).
    """
    console = console or Console(markup=False)
    assert recipe.name
    folder = dataset_folder(recipe.lake, recipe.name)
    manifest = read_manifest(folder)
    committed = files_at_once(folder, "shard-*.parquet")
    measuring = evaluators_of(on_driver(recipe), evaluators)
    if committed and any(one.name == "vlm" for one in measuring):
        expect_questions(recipe.vlm, measured_columns(next(iter(committed.values()))))
    work: list[tuple[Any, AnyPath]] = []
    total = again = 0
    newest: dict[str, str] = {}  # when the last of other settings was measured, by evaluator
    for evaluator in measuring:
        measures = files_at_once(folder, f"{MEASURES}/{folder_name(evaluator)}/shard-*.parquet")
        others = of_other_versions(folder, evaluator)
        newest[evaluator.name] = max(map(measured_at, others), default="")
        behind = bool(others) and newest[evaluator.name] >= max(map(measured_at, measures.values()), default="")
        for name, sidecar in sorted(committed.items()):
            if (there := measures.get(name)) is not None and is_of(there, sidecar):
                if behind:
                    rows = pq.ParquetFile(parquet_of(there)).read().to_pylist()
                    write(folder, evaluator, folder / name, rows, 0, newest[evaluator.name])
                    again += 1
            elif evaluators is not None or others or not _drawn_with(evaluator, sidecar, manifest, recipe):
                work.append((evaluator, folder / name))
                total += int(footer_of(sidecar)["groups"])
    skipped = len(measuring) * len(committed) - len(work)
    if skipped or not work:
        console.print(
            f"skipped {skipped} of {len(measuring) * len(committed)} shards that are measured already: "
            f"{', '.join(map(folder_name, measuring))}",
            soft_wrap=True,
        )
    if again:
        console.print(f"{again} of them count again, in the place of those of other settings", soft_wrap=True)
    written: list[AnyPath] = []
    failures, succeeded = list[str](), False
    try:
        with Bar("measuring", total, "groups", console) as bar:

            def advance(evaluator: Any, sidecar: AnyPath, groups: int) -> None:
                bar.step(groups, f"{evaluator.name} {sidecar.stem}")

            names = evaluators is None or all(isinstance(e, str) for e in evaluators)
            if recipe.ray.wanted and names and work:
                found = _by_workers(recipe, evaluators, folder, work, measuring, console, advance)
            else:
                found = _here(folder, work, advance)
            for evaluator, sidecar, rows, reasons in found:
                written.append(write(folder, evaluator, sidecar, rows, len(reasons), newest[evaluator.name]))
                failures += reasons
                succeeded |= not reasons or any(row[name] is not None for row in rows for name in evaluator.columns)
    except KeyboardInterrupt:
        console.print(
            f"interrupted: {len(written)} of {len(work)} shards measured are kept; the same command goes on from there",
            soft_wrap=True,
        )
        raise
    finally:
        close(measuring)
    if work:
        console.print(f"measured {len(written)} of {len(work)} shards", soft_wrap=True)
    if len(written) < len(work):
        console.print("another process has the others; run again to see whether it finished")
    if failures and not succeeded:
        raise RunError(
            f"all {len(failures)} members failed, the same command tries them again; the first, {failures[0]}"
        )
    if failures:
        console.print(
            f"{len(failures)} members failed, the same command tries them again; the first, {failures[0]}",
            soft_wrap=True,
            markup=False,
        )
    return written


Measured = tuple[Any, AnyPath, list[dict[str, Any]], list[str]]  # evaluator, sidecar, rows, reasons of failures
Advance = Callable[[Any, AnyPath, int], None]


def _here(folder: AnyPath, work: list[tuple[Any, AnyPath]], advance: Advance) -> Iterator[Measured]:
    """In this process; what is yielded is written before the next shard."""
    for evaluator, sidecar in work:
        with claim(folder, number_of(sidecar)) as mine:
            if not mine or not lacks(folder, evaluator, sidecar):
                continue
            rows, reasons = [], []
            for group_rows, group_reasons in measure_shard(evaluator, sidecar):
                rows += group_rows
                reasons += group_reasons
                advance(evaluator, sidecar, 1)
            yield evaluator, sidecar, rows, reasons


def _by_workers(
    recipe: Recipe,
    names: Sequence[Any] | None,
    folder: AnyPath,
    work: list[tuple[Any, AnyPath]],
    chosen: list[Any],
    console: Console,
    advance: Advance,
) -> Iterator[Measured]:
    """A shard's samples go to a worker and its rows come back; the locks are held here."""
    from gpo_data.generation import actors
    from gpo_data.generation.remote import Job, open_in, workers_for

    with ExitStack() as locks, workers_for(recipe, console, drawing=False) as workers:
        assert workers is not None
        open_in(workers, recipe, actors.measuring, names)

        def samples(evaluator: Any, sidecar: AnyPath) -> tuple[int, list[bytes]] | None:
            if sidecar not in held:
                held[sidecar] = locks.enter_context(ExitStack())
                if not held[sidecar].enter_context(claim(folder, number_of(sidecar))):
                    held.pop(sidecar).close()
                    return None
            if not lacks(folder, evaluator, sidecar):
                free(sidecar)
                return None
            out[sidecar].add(evaluator.name)
            return chosen.index(evaluator), [record.blocks() for record in _records(sidecar)]

        def free(sidecar: AnyPath) -> None:
            if not out[sidecar]:
                held.pop(sidecar).close()

        # A shard's lock is held from when its first evaluator is handed out until the last of those has come back.
        held: dict[AnyPath, ExitStack] = {}
        out: dict[AnyPath, set[str]] = defaultdict(set)
        jobs = [Job(f"{pair[0].name} of {pair[1]}", partial(samples, *pair), of=pair) for pair in work]
        for job, (rows, reasons) in workers.run(jobs):
            evaluator, sidecar = job.of
            yield evaluator, sidecar, rows, reasons
            out[sidecar].discard(evaluator.name)
            free(sidecar)
            advance(evaluator, sidecar, len({row["group_key"] for row in rows}))


def measure_shard(evaluator: Any, sidecar: AnyPath) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    """A shard's groups in order: (a row a member, `key member: reason` of those the evaluator raised on)."""
    return measure_groups(evaluator, (record.group() for record in _records(sidecar)))


def measure_groups(evaluator: Any, groups: Iterable[Group]) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    """Of each group: (a row a member, `key member: reason` of those the evaluator raised on)."""
    from gpo_data.generation.worker import measure_each  # brings in the model code; only needed once there is work

    for group in groups:
        # A member that failed for another evaluator or its reward has a picture, and is measured like the others.
        found, raised = measure_each(evaluator, group.images, asked(group.prompt))
        nothing = dict.fromkeys(evaluator.columns)
        yield (
            [{"group_key": group.key, "member": i} | found.get(i, nothing) for i in range(group.size)],
            [f"{group.key} {i}: {reason}" for i, reason in raised.items()],
        )


def _records(sidecar: AnyPath) -> Iterator[Record]:
    """Of a shard's groups, in order."""
    places = {row["group_key"]: row for row in read_rows(sidecar, ["group_key", *PLACE])}
    for place in places.values():
        yield Record.of(place | {"tar": sidecar.with_suffix(".tar").name}, sidecar.parent)


def _drawn_with(evaluator: Any, sidecar: AnyPath, manifest: Manifest, recipe: Recipe) -> bool:
    """The shard has the columns, and they were measured with the recipe's present settings of the evaluator."""

    def settings(of: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in of.items() if k.startswith(f"{evaluator.name}.")}

    same = settings(manifest.measured) == settings(measured(recipe))
    same = same and not manifest.seen_otherwise({evaluator.name: evaluator.version})
    return same and set(evaluator.columns) <= set(pq.read_schema(parquet_of(sidecar)).names)


def evaluators_of(recipe: Recipe, evaluators: Sequence[Any] | None) -> list[Any]:
    """Those to measure with: see `measure`. Raises UsageError."""
    if evaluators is not None and not any(isinstance(e, str) for e in evaluators):
        return list(evaluators)
    if evaluators is None:
        return list(build(recipe, alone=True))
    return list(chosen(recipe, [name for name in evaluators if isinstance(name, str)]))
