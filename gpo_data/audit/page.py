"""The audit as one static HTML page: Jinja2 over `page.html.j2`, charts and pictures as data URIs.

What always holds: no script, no link to another host, every prompt and reading escaped, and every chart's numbers
also stand in a sentence or a table.
"""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined

from gpo_data.audit import charts, wording
from gpo_data.audit.galleries import Gallery
from gpo_data.audit.members import Members
from gpo_data.audit.statistics import Figures


def render(data: Members, figures: Figures, galleries: list[Gallery]) -> str:
    environment = Environment(
        loader=PackageLoader("gpo_data.audit", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": wording.percent,
        "number": wording.number,
        "signed": wording.signed,
        "svg_uri": svg_uri,
    }
    return environment.get_template("page.html.j2").render(
        data=data,
        figures=figures,
        galleries=galleries,
        sections=sections(data, figures),
        facts=facts(data, figures),
        tiles=tiles(data, figures),
        opening=wording.opening(data, figures),
        failures=wording.failures(data),
        drifts=[(wording.drift(d), charts.drift_inside(d), charts.drift_pooled(d), d) for d in figures.drifts],
    )


def sections(data: Members, figures: Figures) -> list[tuple[str, str, str]]:
    """[(heading, sentence, chart as SVG)]"""
    return [
        ("Rewards", wording.rewards(data, figures), charts.reward_histogram(data)),
        ("Best of n", wording.best_of(figures), charts.best_of_n(figures)),
        ("Spread inside groups", wording.spread(figures), charts.spread_histogram(figures)),
        ("Margins", wording.margins(figures), charts.margin_histogram(figures)),
        ("Dead groups", wording.dead(data, figures), charts.dead_by_level(data, figures)),
        ("Difficulty", wording.difficulty(data, figures), charts.reward_by_level(data, figures)),
    ]


def facts(data: Members, figures: Figures) -> list[tuple[str, str]]:
    """What the dataset is; the page's header and the terminal's."""
    groups, size = data.shape
    rows = [
        ("model", data.model),
        ("fingerprint", data.fingerprint),
        ("groups × members", f"{groups:,} × {size}"),
        ("failed members", f"{sum(n for _, n in data.failed):,}"),
        ("reward", data.reward),
    ]
    means = [f"{d.name} {wording.number(d.mean)}" for d in figures.drifts if d.name in data.watched]
    rows += [("only watched, mean", ", ".join(means))] if means else []
    return rows + ([("where", data.where)] if data.where else [])


def tiles(data: Members, figures: Figures) -> list[tuple[str, str]]:
    """The four numbers to remember."""
    last = figures.last_k
    return [
        ("mean reward", wording.number(figures.mean_reward)),
        ("members right (pass@1)", wording.percent(float(figures.pass_at[0]))),
        (f"prompts right in {last} tries (pass@{last})", wording.percent(float(figures.pass_at[last - 1]))),
        ("groups that can teach", wording.percent(float((~figures.dead).mean()))),
    ]


def svg_uri(text: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}"
