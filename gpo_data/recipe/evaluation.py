"""The section `eval:` of a recipe."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from gpo_data.recipe.checks import Count, PathText, Seed, check, expect


@dataclass(frozen=True)
class Eval:
    """How to compare policy and base; see evaluate.py.

    Args:
        split: the part of the split that prompts are taken from: `heldout` to report, `validation` to choose settings.
            What the run was trained on is left out.
        prompts: how many; fewer where the grammar has fewer. Or a file, as `task.prompts` takes it: a benchmark, which
            is drawn whole, with results by its own tags; its columns are those of `task:`.
        group_size: images a prompt, at least two, on the same seeds for both. Where there are fewer prompts than asked
            for, each is drawn more often, until there are as many images.
        seed: of prompts and noise.
    """

    split: Literal["heldout", "validation"] = "heldout"
    prompts: Count | PathText = 256
    group_size: Count = 4
    seed: Seed = 1000

    def __post_init__(self) -> None:
        check(self, "eval.")
        # On a command line a number that is none of prompts would else be a file's name.
        a_number = isinstance(self.prompts, str) and re.fullmatch(r"[-+]?[\d_.]+", self.prompts)
        expect(not a_number, "eval.prompts", "a number of 1 to 1000000, or a file", self.prompts)
