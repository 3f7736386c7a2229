"""The audit of a dataset: what is in it, and what a group-preference loss could learn from it.

`run` prints a table in the terminal and writes one static page, `lake/dataset=<name>/audit.html`: pictures and
charts are inside as data URIs, so the page opens anywhere, without a network.

    members.py     the catalog's rows as matrices [groups, G]
    statistics.py  the numbers: best-of-n, dead groups, margins, correlations
    galleries.py   which groups to look at, and their pictures out of the tars
    charts.py      the numbers as SVG charts
    wording.py     the numbers as sentences
    page.py        all of it as HTML (page.html.j2); terminal.py: as a table

What always holds: the dataset is only read (the page is the one file written, and replaced whole), and the page is
a function of the dataset, the reward and the condition alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpo_data.audit import galleries, members, page, statistics, terminal
from gpo_data.lake.durable import write_atomic
from gpo_data.lake.remote import AnyPath
from gpo_data.lake.shard import dataset_folder


def run(
    lake: str, dataset: str, reward: str | None = None, where: str | None = None, watchers: Sequence[str] = ()
) -> AnyPath:
    """Audit `dataset`; the path of the page.

    reward: SQL expression over targets and measurements; None takes the rewards that were stored with the members.
    where: SQL condition on the columns of members and groups; None takes all.
    watchers: of the recipe, besides those that the dataset was drawn with. Raises UsageError (no such dataset, an
    expression that SQL refuses) and RunError (no groups yet, a damaged shard).
    """
    data = members.read(lake, dataset, reward, where, watchers)
    figures = statistics.summarise(data)
    shown = galleries.choose(data, figures)
    path = dataset_folder(lake, dataset) / "audit.html"
    write_atomic(path, page.render(data, figures, shown).encode())
    terminal.show(data, figures)
    return path
