"""What `eval` and `compare` find, as eval.json and compare.json hold it. Shares are fractions and not percents."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    """

    split: str
    prompts: int
    targets: int
    left_out: int
    file: str | None = None
    trained_on: int = 0


@dataclass(frozen=True, kw_only=True)
class Side:
    """Means over the pictures of the base or of the policy; NaN where nothing was measured.

    Args:
        exact: share exactly as asked; a picture that failed is not.
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
    scores: dict[str, float] = field(default_factory=dict)
    statistics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Policy less base, paired by prompt and seed; the interval is over targets."""

    exact: float
    ci95: list[float]
    lenient: float


@dataclass(frozen=True, kw_only=True)
class Level:
    """Share exactly as asked among n pictures a side of one difficulty or tag."""

    n: int
    base: float
    policy: float


@dataclass(frozen=True, kw_only=True)
class Target:
    """The difference of one target's n pairs, summed: what intervals over several runs are made of."""

    n: int
    sum: float


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
    """The content of eval.json."""

    run: str
    mode: str
    train_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """A run after some iterations; images: drawn for training until then."""

    iteration: int
    images: int
    exact: float
    failed: int
    difference: float
    ci95: list[float]
    diversity_ratio: float
    color_exact: float | None = None


@dataclass(frozen=True, kw_only=True)
class Line(Prompts):
    """A run's entry of compare.json; `line`: the settings in which it differs from the others, without seeds."""

    line: str
    points: list[Point]
