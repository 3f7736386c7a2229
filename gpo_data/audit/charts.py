"""The charts: SVG text of matplotlib figures, drawn without a display.

One meaning a colour on the whole page: GREEN is a right member, BLUE the reward, RED dead low, AMBER dead high, GREY
everything else. Every chart has labelled axes and no title: the page's heading and sentence say what it shows.
What always holds: the same numbers give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from gpo_data.audit.members import Members
from gpo_data.audit.statistics import Cloud, Drift, Figures

GREEN, BLUE, RED, AMBER, GREY = "#2b8a5f", "#2f6db3", "#c4472f", "#dba02e", "#9aa3ad"
INK = "#30363d"
STYLE: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "gpo-data audit",  # else ids are random and the page changes with every run
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#c5ccd3",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e8ebee",
    "legend.frameon": False,
    "legend.fontsize": 9,
}
LEFT, RIGHT, BELOW, ABOVE = 0.85, 0.15, 0.55, 0.3  # inches around the axes; to find what each needs takes a third more


def svg(draw: Callable[[Axes], None], width: float = 5.0, height: float = 3.0) -> str:
    """The chart that `draw` puts on an empty pair of axes; inches."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        draw(figure.add_axes((LEFT / width, BELOW / height, 1 - (LEFT + RIGHT) / width, 1 - (BELOW + ABOVE) / height)))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def reward_histogram(data: Members) -> str:
    r, exact = (m[np.isfinite(data.rewards)] for m in (data.rewards, data.exact))

    def draw(axes: Axes) -> None:
        parts = [r[exact == 1], r[exact == 0]]
        axes.hist(parts, bins=_bins(r), stacked=True, color=[GREEN, GREY], label=["right", "not right"])
        axes.set(xlabel="reward", ylabel="members")
        _legend_above(axes)

    return svg(draw)


def spread_histogram(figures: Figures) -> str:
    def draw(axes: Axes) -> None:
        std = figures.std
        parts = [std[figures.dead_low], std[figures.dead_high], std[~figures.dead]]
        axes.hist(parts, bins=_bins(std, top=0.5), stacked=True, color=[RED, AMBER, BLUE], label=_dead_labels(figures))
        axes.set(xlabel="standard deviation of the reward in the group", ylabel="groups")
        _legend_above(axes)

    return svg(draw)


def best_of_n(figures: Figures) -> str:
    def draw(axes: Axes) -> None:
        axes.plot(figures.ks, figures.best_of, color=BLUE, label="expected best reward of k")
        axes.plot(figures.ks, figures.pass_at, color=GREEN, linestyle="--", label="pass@k: at least one of k is right")
        axes.set_xscale("log", base=2)
        ticks = [2**i for i in range(int(figures.ks[-1]).bit_length()) if 2**i <= figures.ks[-1]]
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
        axes.set(xlabel="k, members drawn for a prompt", ylabel="mean over groups")
        _unit(axes, figures.best_of)
        axes.legend(loc="lower right")

    return svg(draw)


def margin_histogram(figures: Figures) -> str:
    def draw(axes: Axes) -> None:
        m = figures.margin
        parts = [m[figures.dead], m[~figures.dead]]
        axes.hist(parts, bins=_bins(m), stacked=True, color=[GREY, BLUE], label=["dead", "alive"])
        axes.set(xlabel="best reward minus worst reward in the group", ylabel="groups")
        _legend_above(axes)

    return svg(draw)


def dead_by_level(data: Members, figures: Figures) -> str:
    def draw(axes: Axes) -> None:
        labels, bottom = [level.label for level in figures.levels], np.zeros(len(figures.levels))
        names = zip(("dead_low", "dead_high", "alive"), (RED, AMBER, BLUE), _dead_labels(figures), strict=True)
        for attribute, colour, label in names:
            height = np.array([getattr(level, attribute) for level in figures.levels])
            axes.bar(labels, height, bottom=bottom, color=colour, label=label, width=0.65)
            bottom += height
        axes.set(xlabel=data.level_name, ylabel="groups")
        _legend_above(axes)

    return svg(draw)


def reward_by_level(data: Members, figures: Figures) -> str:
    def draw(axes: Axes) -> None:
        at = np.arange(len(figures.levels))
        series = (("mean_reward", "reward_error", BLUE, "mean reward"), ("accuracy", "accuracy_error", GREEN, "right"))
        for shift, (value, error, colour, label) in zip((-0.06, 0.06), series, strict=True):
            y = np.array([getattr(level, value) for level in figures.levels])
            e = 1.96 * np.nan_to_num([getattr(level, error) for level in figures.levels])
            axes.errorbar(at + shift, y, yerr=e, color=colour, marker="o", capsize=3, label=label)
        axes.set_xticks(at, [level.label for level in figures.levels])
        axes.set(xlabel=data.level_name, ylabel="mean and 95% interval")
        _unit(axes, np.array([level.mean_reward for level in figures.levels]))
        axes.legend()

    return svg(draw)


def drift_inside(drift: Drift) -> str:
    """What training sees: statistic and reward, both standardised inside their group."""
    name = drift.name.replace("_", " ")
    return _cloud(drift.inside_cloud, f"{name}, standardised in its group", "advantage")


def drift_pooled(drift: Drift) -> str:
    return _cloud(drift.cloud, f"{drift.name.replace('_', ' ')}, all members", "reward")


def _cloud(cloud: Cloud | None, xlabel: str, ylabel: str) -> str:
    """Members as a cloud, the mean of each quantile as a line."""

    def draw(axes: Axes) -> None:
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if cloud is None:
            axes.text(0.5, 0.5, "no group varies in both", ha="center", va="center", transform=axes.transAxes)
            return
        x, y = cloud.points
        # Rewards are often two or three values; a little noise keeps the points from covering each other.
        y = y + np.random.default_rng(0).uniform(-0.015, 0.015, len(y)) * (np.ptp(y) or 1.0)
        axes.scatter(x, y, s=7, color=GREY, alpha=0.4, linewidths=0, rasterized=True)
        x, mean, error = cloud.line
        axes.errorbar(x, mean, yerr=1.96 * error, color=BLUE, marker="o", markersize=4, capsize=2)

    return svg(draw, height=2.6)


def _dead_labels(figures: Figures) -> list[str]:
    low, high = int(figures.dead_low.sum()), int(figures.dead_high.sum())
    return [f"dead low ({low})", f"dead high ({high})", f"alive ({len(figures.std) - low - high})"]


def _bins(values: np.ndarray, top: float = 1.0) -> list[float]:
    """Twenty bins; over [0, top] where the values lie in it, so that charts of two datasets compare.

    Rewards and margins in [0, 1] have top 1; their population standard deviation is at most 0.5.
    """
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= top + 1e-9:
        low, high = 0.0, top + 1e-9  # the float above 0.5 that is a standard deviation of 0 and 1
    if low == high:
        low, high = low - 0.5, high + 0.5
    return [float(edge) for edge in np.linspace(low, high, 21)]


def _legend_above(axes: Axes) -> None:
    """Counts as whole numbers, and the legend outside, where it cannot cover a bar."""
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), columnspacing=1.4, handlelength=1.2, borderpad=0)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _unit(axes: Axes, rewards: np.ndarray) -> None:
    """Per cent from 0 to 100 where the rewards allow it."""
    good = rewards[np.isfinite(rewards)]
    if len(good) and good.min() >= 0 and good.max() <= 1:
        axes.set_ylim(-0.02, 1.04)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
