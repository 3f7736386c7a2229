"""What a sweep found, for people: a Markdown table, and one static page with curves and Pareto fronts.

A line is a row of the sweep with all its seeds. Its interval is over targets, all seeds' pictures of a target together
(evaluation/interval.py); what seeds differ by stands beside it. A line is on a front when no other is at least as good
in both and better in one.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import jinja2
import numpy as np
from matplotlib.axes import Axes

from gpo_data.audit import charts
from gpo_train.evaluation.interval import interval_of_sums
from gpo_train.evaluation.report import markdown_row, points_text
from gpo_train.sweep.plan import Plan
from gpo_train.sweep.row import Curve, Result

CURVES = 12  # lines on a picture of curves: the best


@dataclass(frozen=True)
class Line:
    """Fractions, not percents; means over the seeds that are there."""

    label: str
    seeds: int
    asked: int
    exact: float
    difference: float
    ci95: tuple[float, float]
    by_seed: list[float]
    diversity: float
    colour: float | None
    failed: int
    pictures: float
    train_seconds: float
    curves: list[Curve]


def lines_of(plan: Plan, found: dict[str, Result]) -> list[Line]:
    """Those with at least one seed, the best first."""
    made = []
    for label in dict.fromkeys(row.label for row in plan.rows):
        rows = [row for row in plan.rows if row.label == label]
        results = [found[row.name] for row in rows if row.name in found]
        if results:
            made.append(_line(label, results, len(rows)))
    return sorted(made, key=lambda line: -line.difference)


def _line(label: str, results: list[Result], asked: int) -> Line:
    totals: dict[str, tuple[float, float]] = {}
    for one in results:
        for key, target in one.evaluation.by_target.items():
            before = totals.get(key, (0.0, 0.0))
            totals[key] = before[0] + target.n, before[1] + target.sum
    sizes, sums = np.array(list(totals.values())).T
    low, high = interval_of_sums(sums, sizes)
    found = [one.evaluation for one in results]
    colours = [one.policy.statistics["color_exact"] for one in found if "color_exact" in one.policy.statistics]

    def mean(values: list[float]) -> float:
        return float(np.mean(values))

    return Line(
        label,
        len(results),
        asked,
        mean([one.policy.exact for one in found]),
        mean([one.difference.exact for one in found]),
        (low, high),
        [one.difference.exact for one in found],
        mean([one.diversity_ratio for one in found]),
        mean(colours) if colours else None,
        sum(one.policy.failed for one in found),
        mean([float(one.pictures) for one in results]),
        mean([one.train_seconds for one in results]),
        [one.curve for one in results],
    )


HEAD = ("", "seeds", "exact", "difference, 95% interval", "by seed", "diversity", "colour", "failed", "pictures", "s")


def cells(line: Line) -> list[str]:
    return [
        line.label,
        str(line.seeds) if line.seeds == line.asked else f"{line.seeds} of {line.asked}",
        f"{100 * line.exact:.1f}%",
        points_text(line.difference, line.ci95),
        ", ".join(f"{100 * value:+.1f}" for value in line.by_seed),
        f"x {line.diversity:.2f}",
        "" if line.colour is None else f"{100 * line.colour:.1f}%",
        str(line.failed),
        f"{line.pictures:.0f}",
        f"{line.train_seconds:.0f}",
    ]


def markdown(lines: list[Line]) -> str:
    rows = [HEAD, ["---"] * len(HEAD), *map(cells, lines)]
    return "".join(map(markdown_row, rows))


def note(missing: list[str], rows: int) -> str:
    return f"\n{len(missing)} of {rows} rows are missing: {'; '.join(missing)}\n" if missing else ""


def front(points: list[tuple[float, float]]) -> list[bool]:
    """Of each point whether it is on the Pareto front; more is better."""
    return [
        not any(a >= x and b >= y and (a > x or b > y) for a, b in points) if np.isfinite([x, y]).all() else False
        for x, y in points
    ]


def html(plan: Plan, lines: list[Line], missing: list[str], failed: int) -> str:
    pictures = []
    if lines:
        pictures.append(
            ("Accuracy and diversity", _pareto(lines, [line.diversity for line in lines], "diversity ratio"))
        )
        if all(line.colour is not None for line in lines):
            colours = [100 * (line.colour or 0) for line in lines]
            pictures.append(("Accuracy and colour", _pareto(lines, colours, "colour as asked, %")))
        pictures.append((f"Curves of the best {min(CURVES, len(lines))}", _curves(plan, lines[:CURVES])))
    return PAGE.render(
        title=f"sweep {plan.sweep.name}: {plan.sweep.recipe}, {plan.sweep.mode}",
        head=HEAD,
        rows=[cells(line) for line in lines],
        pictures=[
            (heading, f"data:image/svg+xml;base64,{base64.b64encode(one.encode()).decode()}")
            for heading, one in pictures
        ],
        missing=missing,
        asked=len(plan.rows),
        failed=failed,
        split=plan.rows[0].recipe.eval.split if plan.rows else "",
    )


def _pareto(lines: list[Line], across: list[float], name: str) -> str:
    up = [100 * line.exact for line in lines]
    on = front(list(zip(across, up, strict=True)))

    def draw(axes: Axes) -> None:
        for good, colour, label in ((True, charts.GREEN, "on the front"), (False, charts.GREY, "")):
            chosen = [i for i, one in enumerate(on) if one is good]
            if chosen:
                axes.scatter([across[i] for i in chosen], [up[i] for i in chosen], color=colour, label=label or None)
        for i, line in enumerate(lines):
            if on[i]:
                axes.annotate(line.label, (across[i], up[i]), xytext=(4, 3), textcoords="offset points", fontsize=7)
        axes.set_xlabel(name)
        axes.set_ylabel("exact, %")

    return charts.svg(draw, 7.0, 4.0)


def _curves(plan: Plan, lines: list[Line]) -> str:
    online = plan.sweep.mode == "online"

    def draw(axes: Axes) -> None:
        for line in lines:
            length = min(len(one.x) for one in line.curves)
            if length:
                values = np.mean([one.y[:length] for one in line.curves], axis=0)
                axes.plot(line.curves[0].x[:length], 100 * values if online else values, label=line.label, lw=1)
        axes.set_xlabel("pictures" if online else "optimiser step")
        axes.set_ylabel("exact of what was drawn, %" if online else "error_diff, worse less better members")
        axes.legend(fontsize=7)

    return charts.svg(draw, 9.0, 4.5)


PAGE = jinja2.Environment(autoescape=True).from_string(
    """<!doctype html><meta charset="utf-8"><title>{{ title }}</title>
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:1250px;margin:2rem auto;padding:0 1rem;color:#1a1a1a}
table{border-collapse:collapse}td,th{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}img{max-width:100%}</style>
<h1>{{ title }}</h1><p>Prompts of the part {{ split }}, the same seeds for base and policy. A line is all seeds of a
row, the best first; its interval is over targets. pictures: drawn to train on. s: of training.</p>
{% if missing %}<p><b>{{ missing|length }} of {{ asked }} rows are missing{% if failed %}, {{ failed }} of them failed
{% endif %}</b>: {{ missing|join("; ") }}</p>{% endif %}
<table><tr>{% for cell in head %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% for heading, picture in pictures %}<h2>{{ heading }}</h2><img alt="{{ heading }}" src="{{ picture }}">
{% endfor %}"""
)
