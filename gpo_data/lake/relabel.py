"""Cross-prompt relabelling: members of other groups stand in a group too, with its prompt and targets."""

from __future__ import annotations

import duckdb

from gpo_data.errors import UsageError
from gpo_data.lake import locked
from gpo_data.lake.sql import identifier, quote
from gpo_data.lake.views import columns_of


def relabelled(own: duckdb.DuckDBPyConnection, dataset: str, relabel: str, targets: tuple[str, ...]) -> str:
    """SQL of all members, in which the groups of `dataset` have members of each other besides their own.

    A picture of four squares that was drawn for "five squares" is wrong there and right for "four squares". Where the
    condition holds for a pair of groups, the lender's members stand in the borrower's group too, with its prompt and
    targets; `lender` is the group that a member was drawn in. Since a picture is better in one group and worse in the
    other, what all good pictures have in common cancels out, and what fits the prompt remains.

    Args:
        own: gets a temporary table of the pairs.
        relabel: SQL condition on the columns of `borrower` and `lender`: group_key, prompt_id, prompt, `targets` and
            what travels with a prompt from the user's file.
        targets: the task's target columns.

    The stored rewards were given for the lender's target: a reward has to be given again. Raises UsageError.
    """
    columns = columns_of(own, "SELECT * FROM drawn_members")
    own_targets = [*targets, *_travelling(own, dataset, list(columns), targets)]
    mine = [name for name in ("group_key", "prompt_id", "prompt", *own_targets) if name in columns]
    of_group = ", ".join(map(identifier, mine))
    locked.check_expression("relabel", relabel)
    try:
        # A table: the condition is evaluated once, on prompts, and what it raises is raised here.
        with locked.time_limit(own, f"relabel: {locked.short(relabel)}"):
            own.execute(f"""
                CREATE TEMP TABLE relabelled AS
                WITH prompts AS (SELECT DISTINCT {of_group} FROM drawn_members WHERE dataset = {quote(dataset)})
                SELECT borrower.*, lender.group_key AS lender
                FROM prompts borrower JOIN prompts lender ON borrower.group_key = lender.group_key OR ({relabel}\n)""")
    except duckdb.Error as error:
        raise UsageError(
            f"relabel: {relabel!r}: {locked.one_line(error)}; columns of borrower and lender: {', '.join(mine)}"
        ) from None
    return f"""
        SELECT *, group_key AS lender FROM drawn_members WHERE dataset <> {quote(dataset)}
        UNION ALL BY NAME
        SELECT l.*, m.* EXCLUDE ({of_group})
        FROM relabelled l JOIN drawn_members m ON m.dataset = {quote(dataset)} AND m.group_key = l.lender"""


def _travelling(
    own: duckdb.DuckDBPyConnection, dataset: str, columns: list[str], targets: tuple[str, ...]
) -> list[str]:
    """Columns of the user's prompts (tasks/extras.py): a sidecar has targets before `entropy`, which is measured first.

    What an import says of each picture is there too, and is not the same for a whole group.
    """
    if "entropy" not in columns:
        return []
    between = [c for c in columns[columns.index("seed") + 1 : columns.index("entropy")] if c not in targets]
    if not between:
        return []
    differing = ", ".join(f"count(DISTINCT {identifier(c)}) + bool_or({identifier(c)} IS NULL)::INT" for c in between)
    found = own.execute(
        f"SELECT {differing} FROM drawn_members WHERE dataset = {quote(dataset)} GROUP BY group_key"
    ).fetchall()
    return [c for c, values in zip(between, zip(*found, strict=True), strict=True) if max(values) <= 1]
