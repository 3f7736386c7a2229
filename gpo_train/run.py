"""A run's folder: what trained, from what, and where everything of it lies.

    runs/<run>/run.json          recipe, mode, model, snapshot digest, versions, created, state
    runs/<run>/snapshot.parquet  offline: the groups, rewards and advantages that it trains on
    runs/<run>/iterations/       online: see iterations.py
    runs/<run>/checkpoints/      exact to resume from; see checkpoint.py
    runs/<run>/reference/        stored errors of the reference
    runs/<run>/logs/             csv, tensorboard
    runs/<run>/policy/           the trained weights: LoRA safetensors, or the denoiser's own diffusers sub-folder
    runs/<run>/last/             with online.rollback: those at the end, of which policy/ may be an earlier state
    runs/<run>/eval.json|html|png

A run is named `<recipe>-<mode>` unless it has a name. The same name with another recipe is an error that says what
differs; with the same one it resumes.
"""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

import gpo_data
from gpo_data import hardware, models
from gpo_data.errors import UsageError
from gpo_data.lake.document import read_document, write_document
from gpo_data.lake.durable import TEMPORARY, is_stale
from gpo_data.lake.manifest import drawing_device, drawn_in, with_dtype
from gpo_data.recipe import RENAMED, Recipe
from gpo_train.evaluation.result import Rollback

RUNS = Path("runs")
# Where and how fast a run goes, and what only later verbs read: changing it does not make another run.
FREE = ("eval", "lake", "max_failed", "ray")
FREE_ONLINE = ("iterations",)  # more of them go on from where the run ended
FREE_EVALUATOR = ("actors", "num_gpus")
FREE_TRAIN = (
    "micro_batch_size",
    "workers",
    "cache",
    "checkpoint_steps",
    "loggers",
    "trainer",
    "gradient_checkpointing",
    "reference_offload",
)


# What later verbs read of a recipe, whatever version wrote it.
READ = {
    "name": str,
    "model": str,
    "revision": str | None,
    "policy": str | None,
    "task.kind": str,
    "sampler.dtype": str,
    "train": dict,
    "online": dict,
}
LONGEST = 80
NAME = re.compile(rf"[a-z0-9_-]{{1,{LONGEST}}}")  # it is part of the names of datasets: <run>-it0003, <run>-eval-<hash>


@dataclass(frozen=True, kw_only=True)
class Averaged:
    """Of what a run is the mean; see average.py.

    Args:
        last: iterations of each run; None: its policy.
        scale: lengths of the mean move from what the runs began with.
    """

    runs: list[str]
    last: int | None = None
    scale: float = 1.0


def _readable(recipe: dict[str, Any]) -> dict[str, Any]:
    for key, kind in READ.items():
        found: Any = recipe
        for name in key.split("."):
            found = found.get(name, ...) if isinstance(found, dict) else ...
        if not isinstance(found, kind):
            wanted = "an object" if kind is dict else "text"
            raise PydanticCustomError("recipe", "one whose {key} is {wanted}", {"key": key, "wanted": wanted})
    return recipe


def _of_any_version(found: Any) -> Any:
    """0.1 wrote one run, and the first and last of its iterations."""
    match found:
        case {"run": str(run), "iterations": [int(first), int(last)]}:
            return {"runs": [run], "last": last - first + 1}
    return found


@dataclass(frozen=True, kw_only=True)
class RunManifest:
    """The content of run.json.

    Args:
        mode: offline, online or average.
        recipe: as it was written, of any version.
        weights_digest: older runs have none.
        state: training, finished or trial.
        snapshot: digest, checksum and counts of snapshot.parquet.
        stopped_by: the rule that ended it.
        peak_memory: bytes that training held at most, on the GPU or, without one, in its process; of the process that
            ended it, with the pictures that an online run draws.
        averaged: of what it is the mean.
        rollback: which iteration's policy it ended with; see evaluation/rollback.py.
    """

    run: str | None = None
    mode: str
    recipe: Annotated[dict[str, Any], AfterValidator(_readable)]
    model_digest: str
    weights_digest: str | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    created: str
    state: str
    snapshot: dict[str, str] | None = None
    stopped_by: str | None = None
    steps: int | None = None
    train_seconds: float | None = None
    ranks: int | None = None
    peak_memory: int | None = None
    averaged: Annotated[Averaged | None, BeforeValidator(_of_any_version)] = None
    rollback: Rollback | None = None


@dataclass(frozen=True)
class Run:
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def policy(self) -> Path:
        return self.folder / "policy"

    @property
    def last(self) -> Path:
        """The weights at the end of an online run that may have been rolled back."""
        return self.folder / "last"

    def manifest(self) -> RunManifest:
        """Raises UsageError."""
        path = self.folder / "run.json"
        try:
            return read_document(RunManifest, path, "restore it, or train under another --run NAME")
        except FileNotFoundError:
            known = ", ".join(r.name for r in all_runs(self.folder.parent)) or "none"
            raise UsageError(f"run {self.folder}: no {path.name} there; runs: {known}") from None

    @contextmanager
    def claim(self, wanted: bool = True) -> Iterator[None]:
        """Hold the run for this process, if it is `wanted` (of several ranks one holds it). Raises UsageError.

        The kernel lets go of it when the process ends.
        """
        if not wanted:
            yield
            return
        with (self.folder / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"run {self.folder}: another process trains it; wait for it, or train under another --run NAME"
                ) from None
            for left in list(self.folder.rglob(f"*{TEMPORARY}")):
                if is_stale(left):  # by a process that was killed, not by a rank that begins beside this one
                    shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            yield

    def expect_online(self, otherwise: str) -> None:
        """Raise UsageError unless it is an online run; `otherwise`: what to do, or why."""
        mode = self.manifest().mode
        if mode != "online":
            raise UsageError(f"run {self.folder}: expected an online run, found {mode}; {otherwise}")

    def expect_policy(self) -> None:
        """Raise UsageError before the run has finished, also where it goes on and the policy is of an earlier end."""
        state, there = self.manifest().state, self.policy.is_dir()
        if state == "trial":
            raise UsageError(f"run {self.folder}: a trial has no policy; expected a run that was trained to its end")
        if state == "training" or not there:
            found = "its policy is of an earlier end" if there else "no policy yet"
            raise UsageError(f"run {self.folder}: {found} ({state}); `gpo-train fit` finishes it")

    def expect_base(self, recipe: Recipe) -> None:
        """Raise UsageError unless the recipe's model is the one that the run began with, by its files."""
        manifest, folder = self.manifest(), models.resolve(recipe.model, recipe.revision)
        begun = {"model_digest": manifest.model_digest, "weights_digest": manifest.weights_digest}
        here = models.digests_of(folder, begun)
        if any(begun[name] not in (None, value) for name, value in here.items()):
            raise UsageError(
                f"run {self.folder}: expected its base {manifest.recipe['model']!r} as when it began, found "
                f"other files in {recipe.model!r}; say --model, or bring that model back"
            )

    def evaluated_before(self, train_seconds: float | None) -> bool:
        """Whether an evaluation that notes so much training is of an earlier policy than the run's."""
        if train_seconds is None or not (self.folder / "run.json").is_file():
            return False
        return self.manifest().train_seconds not in (None, train_seconds)

    def note(self, **facts: Any) -> None:
        write_document(dataclasses.replace(self.manifest(), **facts), self.folder / "run.json")


def all_runs(folder: Path = RUNS) -> list[Run]:
    """Oldest first."""
    found = []
    for path in folder.glob("*/run.json"):
        with suppress(UsageError):  # a damaged one is told where it is asked for
            found.append((Run(path.parent).manifest().created, path.parent))
    return [Run(folder) for _, folder in sorted(found)]


def newest(recipe_name: str, mode: str, folder: Path = RUNS) -> Run:
    """The newest run of a recipe and mode that is no trial. Raises UsageError."""
    for run in reversed(all_runs(folder)):
        manifest = run.manifest()
        if manifest.recipe["name"] == recipe_name and manifest.mode == mode and manifest.state != "trial":
            return run
    known = ", ".join(run.name for run in all_runs(folder)) or "none"
    raise UsageError(
        f"{folder}: no {mode} run of {recipe_name}; train one: `gpo-train fit RECIPE --mode {mode}`; runs: {known}"
    )


def named(runs: Path, name: str) -> Run:
    """The run of that name. Raises UsageError for what is no name: a run lies in its folder and nowhere else."""
    if not NAME.fullmatch(name):
        raise UsageError(f"--run: expected 1 to 80 letters a-z, digits, '-' and '_', found {name!r}")
    return Run(runs / name)


def settle(recipe: Recipe, folder: Path, datasets: list[str]) -> Recipe:
    """The recipe with what `auto` is in `sampler.dtype` and `train.precision`. Raises UsageError.

    As the run in `folder` was begun, else as the first of `datasets` was drawn, else by the hardware.
    """
    begun = Run(folder).manifest().recipe if (folder / "run.json").is_file() else None
    device = drawing_device(recipe) if begun else hardware.device_of(recipe.sampler.device)
    dtype: str = recipe.sampler.dtype
    precision: str = recipe.train.precision
    if dtype == "auto":
        drawn = [drawn_in(recipe.lake, name) for name in datasets[:1]]
        dtype = begun["sampler"]["dtype"] if begun else next((one for one in drawn if one), "auto")
    if precision == "auto" and begun:
        precision = begun["train"].get("precision", "auto")  # runs of 0.1 have none
    made = with_dtype(recipe, hardware.dtype_for(dtype, device))
    settled: Any = hardware.dtype_for(precision, device, "train.precision")
    return dataclasses.replace(made, train=dataclasses.replace(recipe.train, precision=settled))


def open_run(name: str, recipe: Recipe, mode: str, model_folder: Path, folder: Path = RUNS) -> Run:
    """The run's folder, made if new. Raises UsageError if another recipe or model trained there."""
    run = Run(folder / name)
    there = dataclasses.asdict(run.manifest()) if (run.folder / "run.json").is_file() else None
    digests = models.digests_of(model_folder, there)
    made = RunManifest(
        run=name,
        mode=mode,
        recipe=dataclasses.asdict(recipe),
        model_digest=digests["model_digest"],
        weights_digest=digests["weights_digest"],
        versions=models.versions() | {"gpo": gpo_data.__version__},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        state="training",
    )
    if there:
        refuse_older(run)
        _refuse_difference(run, run.manifest(), made)
        return run
    run.folder.mkdir(parents=True, exist_ok=True)
    write_document(made, run.folder / "run.json")
    return run


def refuse_older(run: Run) -> None:
    """Raise UsageError if the run was begun under keys that have other names now."""
    recipe = run.manifest().recipe
    older = [
        key
        for key in RENAMED
        if key in recipe or key in {f"{s}.{k}" for s in ("train", "online") for k in recipe.get(s, {})}
    ]
    if older:
        raise UsageError(
            f"run {run.folder} was begun by gpo 0.1, whose recipes had other keys ({', '.join(older)}); "
            f"train under another name (--run NAME), or go on with that version"
        )


def _refuse_difference(run: Run, old: RunManifest, new: RunManifest) -> None:
    plain = flat(dataclasses.asdict(Recipe(evaluators=["ocr"], reward="1")))  # what keys are that an older run lacks
    before, after = (
        {"mode": one.mode, "model_digest": one.model_digest}
        | {"weights_digest": one.weights_digest or new.weights_digest}
        | plain
        | {k: v for k, v in flat(one.recipe).items() if one.mode == "online" or k.split(".")[0] != "online"}
        for one in (old, new)
    )
    differing = [k for k in sorted(before.keys() | after.keys()) if before.get(k) != after.get(k)]
    if differing:
        listed = "; ".join(f"{k}: {before.get(k)!r} there, {after.get(k)!r} now" for k in differing)
        raise UsageError(
            f"run {run.folder} has checkpoints of another recipe; train under another name (--run NAME), "
            f"or remove the folder. It differs in {listed}"
        )


def flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """What makes a run what it is, as {dotted key: value}."""
    found: dict[str, Any] = {}
    for key, value in recipe.items():
        if key in FREE:
            continue
        for inner, one in value.items() if isinstance(value, dict) else [("", value)]:
            if inner not in {"train": FREE_TRAIN, "online": FREE_ONLINE}.get(key, FREE_EVALUATOR):
                found[f"{key}.{inner}" if inner else key] = one
    return found
