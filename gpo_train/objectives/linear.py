"""linear:  L = z = (1/G) sum_i w_i s_i,  or the mean over pairs of z (pairs.py).

Every step pulls equally hard, however far the policy already is. Source: GPO, arXiv 2505.11070, without a gate.
"""

from __future__ import annotations

from torch import Tensor

from gpo_data.recipe import Train
from gpo_train.objectives.pairs import z_of
from gpo_train.objectives.terms import Objective, Terms


def loss(terms: Terms, settings: Train) -> Tensor:
    return z_of(terms.s, terms.advantages, settings.weighting).mean()


OBJECTIVE = Objective(loss)
