"""A lake as an object: draw into it, ask it, read its groups. `gpo-data` does the same from the command line.

lake = Lake("lake")
words = lake.draw(recipe)                        # resumes; a Dataset
words.members(reward="text_exact(target, ocr_text)")
words.groups(where="std > 0.1")                  # a torch Dataset of TrainGroup
lake.sql("SELECT dataset, avg(reward) FROM members GROUP BY 1")
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from gpo_data.errors import UsageError, few
from gpo_data.lake import catalog, locked
from gpo_data.lake.files import open_lake
from gpo_data.lake.snapshot import take_snapshot
from gpo_data.recipe import Recipe
from gpo_data.tasks import TARGETS

if TYPE_CHECKING:
    from rich.console import Console

    from gpo_data.lake.reader import Reader


@dataclass(frozen=True)
class Lake:
    """Args:
    path: a folder, or a URL of an object store.
    """

    path: str = "lake"

    def draw(self, recipe: Recipe, console: Console | None = None) -> Dataset:
        """Draw what the recipe's dataset lacks. Raises UsageError, RunError, Interrupted.

        Args:
            console: where progress is shown; None is silent.
        """
        from rich.console import Console

        from gpo_data.generation.generate import draw as generate

        if recipe.name is None:
            raise UsageError("name: expected the dataset's name, found null; a recipe without a file has to have one")
        generate(dataclasses.replace(recipe, lake=str(self.path)), console or Console(quiet=True))
        return self[recipe.name]

    def datasets(self) -> list[str]:
        """Names of the datasets, sorted."""
        return open_lake(None, self.path).datasets()

    def __getitem__(self, name: str) -> Dataset:
        if name not in (names := self.datasets()):
            raise UsageError(f"lake {self.path}: no dataset {name!r}; there are: {few(names)}")
        return Dataset(self, name)

    def sql(self, query: str, parameters: list[Any] | None = None, unsafe: bool = False) -> pa.Table:
        """The answer to a query over `members`, `groups`, `shards` and `datasets`. Raises UsageError.

        Args:
            unsafe: any SQL, which may read and write other files; never for a query that somebody else wrote.
        """
        return catalog.ask(self.path, query, parameters or [], unsafe=unsafe)


@dataclass(frozen=True)
class Dataset:
    """A dataset of a lake. Asking changes nothing: another reward is another answer."""

    lake: Lake
    name: str

    def members(self, reward: str | None = None, where: str = "true") -> pa.Table:
        """One row a drawn image, by group and member.

        Args:
            reward: SQL expression in the place of the stored reward.
            where: SQL condition on the columns of `members`.
        """
        locked.check_expression("where", where)
        con = catalog.scored(catalog.connect(self.lake.path, self.name, copies=True), reward, self.name)
        query = f"SELECT * FROM members WHERE dataset = $1 AND ({where}\n) ORDER BY group_key, member"
        return locked.answer(con, query, [self.name], reward, None if where == "true" else where)

    def groups(
        self,
        reward: str | None = None,
        where: str | None = None,
        relabel: str | None = None,
        unconditional: bool = False,
    ) -> Reader:
        """A torch Dataset of the groups that are worth learning from, with their advantages. Raises UsageError.

        Args:
            where: SQL condition on the columns of members and groups; filters members before standardisation.
            relabel: SQL condition on `borrower` and `lender`: cross-prompt relabelling.
            unconditional: with the dataset's unconditional embedding.
        """
        from gpo_data.lake.reader import Reader

        con = catalog.connect(self.lake.path, self.name)
        table = take_snapshot(con, self.name, reward, where, relabel=relabel, targets=tuple(TARGETS))
        return Reader(self.lake.path, table, unconditional=["unconditional=True"] if unconditional else [])
