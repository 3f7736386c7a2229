"""best_of_n:  L = (1/G) sum over the members with the highest reward of err_i

Supervised fine-tuning on the best of each group, all of them where several are best. It compares with no reference.
(`objective: sft` chooses by a threshold, and takes groups that are dead as well.)
Source: the online SFT of Flow-GRPO, arXiv 2505.05470, scripts/train_sd3_sft.py.
"""

from __future__ import annotations

from torch import Tensor

from gpo_data.recipe import Train
from gpo_train.objectives.pairs import ROUNDING
from gpo_train.objectives.terms import Objective, Terms


def loss(terms: Terms, settings: Train) -> Tensor:
    best = terms.advantages >= terms.advantages.max() - ROUNDING
    return (best * terms.error).mean()


OBJECTIVE = Objective(loss, reference=False)
