"""What a sweep found, for people: a Markdown table, and one static page with curves and Pareto fronts."""

from __future__ import annotations

import base64
from typing import Any

import jinja2
import numpy as np
from matplotlib.axes import Axes

from gpo_data.audit import charts
from gpo_train.evaluation.report import markdown_row, points_text
from gpo_train.evaluation.result import WATCHED
from gpo_train.sweep.line import Gain, Line, front
from gpo_train.sweep.plan import Plan

CURVES = 12  # lines on a picture of curves: the best


HEAD = ("", "seeds", "exact", "difference, 95% interval", "by seed", "diversity", "colour", "failed", "pictures", "s")


def head(lines: list[Line]) -> list[str]:
    """HEAD, and columns of what only some sweeps have."""
    return [
        *HEAD,
        *(["GB"] if any(line.memory is not None for line in lines) else []),
        *(f"gain of {name.removeprefix(WATCHED)}" for name in _columns(lines, "others")),
        *(f"step {step}" for step in _columns(lines, "points")),
    ]


def _columns(lines: list[Line], what: str) -> list[Any]:
    return sorted({key for line in lines for key in getattr(line, what)})


def cells(line: Line, lines: list[Line]) -> list[str]:
    """`lines`: all of the table's."""
    memory = [""] if line.memory is None else [f"{line.memory / 1e9:.2f}"]
    others = [line.others.get(name) for name in _columns(lines, "others")]
    points = [line.points.get(step) for step in _columns(lines, "points")]
    return [
        line.label,
        str(line.seeds) if line.seeds == line.asked else f"{line.seeds} of {line.asked}",
        f"{100 * line.exact:.1f}%",
        points_text(line.gain.mean, line.gain.ci95),
        ", ".join(f"{100 * value:+.1f}" for value in line.by_seed),
        f"x {line.diversity:.2f}",
        "" if line.colour is None else f"{100 * line.colour:.1f}%",
        str(line.failed),
        f"{line.pictures:.0f}",
        f"{line.train_seconds:.0f}",
        *(memory if any(one.memory is not None for one in lines) else []),
        *("" if one is None else f"{one.mean:+.3f} [{one.ci95[0]:+.3f}, {one.ci95[1]:+.3f}]" for one in others),
        *("" if one is None else points_text(one.mean, one.ci95) for one in points),
    ]


def markdown(lines: list[Line]) -> str:
    named = head(lines)
    rows = [named, ["---"] * len(named), *(cells(line, lines) for line in lines)]
    return "".join(map(markdown_row, rows))


def note(missing: list[str], rows: int) -> str:
    return f"\n{len(missing)} of {rows} rows are missing: {'; '.join(missing)}\n" if missing else ""


def unreached(plan: Plan, lines: list[Line]) -> str:
    """Which of the sweep's points no line has, for people; '' where there is none, or no line."""
    without = sorted({*plan.sweep.points} - {step for line in lines for step in line.points}) if lines else []
    return f"points: {', '.join(map(str, without))}: no row trained so many steps with every seed" if without else ""


def html(plan: Plan, lines: list[Line], missing: list[str], failed: int) -> str:
    pictures = []
    if lines:
        pictures.append(
            ("Accuracy and diversity", _pareto(lines, [line.diversity for line in lines], "diversity ratio"))
        )
        if all(line.colour is not None for line in lines):
            colours = [100 * (line.colour or 0) for line in lines]
            pictures.append(("Accuracy and colour", _pareto(lines, colours, "colour as asked, %")))
        if any(line.points for line in lines):
            pictures.append(("Accuracy by training step", _by_step(lines)))
        for name in _columns(lines, "others"):
            if name != "reward":
                pictures.append((f"Gain of {name.removeprefix(WATCHED)} and of the reward", _hacking(lines, name)))
        pictures.append((f"Curves of the best {min(CURVES, len(lines))}", _curves(plan, lines[:CURVES])))
    return PAGE.render(
        title=f"sweep {plan.sweep.name}: {plan.sweep.recipe}, {plan.sweep.mode}",
        head=head(lines),
        rows=[cells(line, lines) for line in lines],
        pictures=[
            (heading, f"data:image/svg+xml;base64,{base64.b64encode(one.encode()).decode()}")
            for heading, one in pictures
        ],
        missing=missing,
        asked=len(plan.rows),
        failed=failed,
        unreached=unreached(plan, lines),
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


def _by_step(lines: list[Line]) -> str:
    """Gains with their intervals; the end of a run is its last point."""

    def draw(axes: Axes) -> None:
        for line in lines[:CURVES]:
            if line.points:
                x, found = [0, *line.points], [Gain(0.0, (0.0, 0.0)), *line.points.values()]
                y = [100 * one.mean for one in found]
                reach = np.array([[100 * (one.mean - one.ci95[0]), 100 * (one.ci95[1] - one.mean)] for one in found]).T
                axes.errorbar(x, y, reach, label=line.label, lw=1, marker="o", ms=3, capsize=3, elinewidth=0.6)
        axes.axhline(0, color=charts.GREY, lw=0.8)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("exact less the base's, points")
        axes.legend(fontsize=7)

    return charts.svg(draw, 9.0, 4.5)


def _hacking(lines: list[Line], name: str) -> str:
    """What is paid for across, what only watches up: below the others is what the reward alone believes."""
    shown = [line for line in lines if {"reward", name} <= line.others.keys()]

    def draw(axes: Axes) -> None:
        for line in shown:
            x, y = line.others["reward"].mean, line.others[name].mean
            axes.scatter([x], [y], color=charts.GREEN)
            axes.annotate(line.label, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7)
        axes.set_xlabel("gain of the reward, in its own units")
        axes.set_ylabel(f"gain of {name.removeprefix(WATCHED)}")

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
row, the best first; its interval is over targets. pictures: drawn to train on. s: of training and what it draws. GB:
held at most while training. step: difference after so many steps.</p>
{% if missing %}<p><b>{{ missing|length }} of {{ asked }} rows are missing{% if failed %}, {{ failed }} of them failed
{% endif %}</b>: {{ missing|join("; ") }}</p>{% endif %}
{% if unreached %}<p>{{ unreached }}</p>{% endif %}
<table><tr>{% for cell in head %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% for heading, picture in pictures %}<h2>{{ heading }}</h2><img alt="{{ heading }}" src="{{ picture }}">
{% endfor %}"""
)
