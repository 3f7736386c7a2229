"""What `eval` and `compare` find, as eval.json and compare.json hold it.

    eval.json               held-out prompts
    eval-validation.json    those of the part for validation
    eval-<folder>-<file>.json        a benchmark's file, one for each (`Prompts.stem`)

Shares are fractions and not percents. An interval is the 95% one of a mean, over targets (interval.py); None where it
is not known: of a file of an older version, and of rewards of one target.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from gpo_train.evaluation.interval import Interval

WATCHED = "watched/"  # begins the names of what watchers see


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Which prompts the figures are of.

    Args:
        split: part of the split that they are from, or `file`.
        prompts: how many.
        targets: how many different contents they have; what intervals are over.
        left_out: because their target was trained on.
        file: that they are from, all of it.
        trained_on: prompts of the file whose target was trained on.
        task: of the prompts; evaluations of before lack it.
    """

    split: str
    prompts: int
    targets: int
    left_out: int
    file: str | None = None
    trained_on: int = 0
    task: str | None = None

    @property
    def stem(self) -> str:
        """Of the files in the run's folder: of two benchmarks' `test.txt` the folders' names differ."""
        if self.file is None:
            return "eval-validation" if self.split == "validation" else "eval"
        path = Path(self.file)
        return "-".join(["eval", *re.findall(r"[\w.]+", f"{path.parent.name} {path.stem}")])


@dataclass(frozen=True, kw_only=True)
class Side:
    """Means over the pictures of the base or of the policy; NaN where nothing was measured.

    Args:
        exact: share exactly as asked; a picture that failed is not.
        exact95, reward95: intervals of these two.
        lenient: share nearly as asked.
        scores: the task's own further scores, such as `ocr_accuracy`.
        failed: pictures.
        diversity: inside groups; lake/reader.py.
        statistics: entropy and the like, and `color_exact`, of pictures that did not fail.
    """

    exact: float
    lenient: float
    reward: float
    failed: int
    diversity: float
    exact95: Interval | None = None
    reward95: Interval | None = None
    scores: dict[str, float] = field(default_factory=dict)
    statistics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Policy less base, paired by prompt and seed.

    Args:
        ci95: of `exact`.
        reward: of the pairs where both pictures have one.
    """

    exact: float
    ci95: Interval
    lenient: float
    reward: float | None = None
    reward95: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Level:
    """Share exactly as asked among n pictures a side of one difficulty or tag; `ci95` is of policy less base."""

    n: int
    base: float
    policy: float
    base95: Interval | None = None
    policy95: Interval | None = None
    ci95: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Sums:
    """The difference of n pairs of one target, summed: what intervals over several runs are made of."""

    n: int
    sum: float


@dataclass(frozen=True, kw_only=True)
class Target(Sums):
    """Of `exact`; `others`: of `reward` and of what is only watched, of pairs where both sides have it."""

    others: dict[str, Sums] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two datasets of the same prompts and seeds."""

    n: int
    base: Side
    policy: Side
    difference: Difference
    diversity_ratio: float
    by_level: dict[str, Level]
    by_target: dict[str, Target]
    by_tag: dict[str, dict[str, Level]] = field(default_factory=dict)
    datasets: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Evaluation(Comparison, Prompts):
    """The content of a run's eval.json."""

    run: str
    mode: str
    train_seconds: float | None = None
    model: str | None = None
    reward: str | None = None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of n pictures of a model alone: shares and means.

    reward: of the pictures that have one, as in a Comparison; NaN where none has. One that failed is not exact.
    """

    n: int
    exact: float
    exact95: Interval
    lenient: float
    reward: float
    reward95: Interval | None
    failed: int
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Alone(Prompts):
    """The content of a model's eval.json, without any run."""

    model: str
    reward: str
    all: Figures
    by_tag: dict[str, dict[str, Figures]]
    dataset: str


@dataclass(frozen=True, kw_only=True)
class Point:
    """A run after some iterations; images: drawn for training until then."""

    iteration: int
    images: int
    exact: float
    failed: int
    difference: float
    ci95: Interval
    diversity_ratio: float
    color_exact: float | None = None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """The share exactly as asked of a policy after some iterations."""

    iteration: int
    exact: float


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """Which policy an online run ends with, and why: figures on prompts of the part for validation (rollback.py).

    Args:
        iteration: iterations that it was trained on.
        iterations: of the run.
        base: the base's share exactly as asked.
        candidates: what it was chosen from.
        pruned: iterations whose weights were gone.
    """

    iteration: int
    iterations: int
    exact: float
    difference: float
    ci95: Interval
    base: float
    candidates: list[Candidate]
    pruned: list[int]
    prompts: int
    targets: int


@dataclass(frozen=True, kw_only=True)
class Line(Prompts):
    """A run's entry of compare.json; `line`: the settings in which it differs from the others, without seeds."""

    line: str
    points: list[Point]
