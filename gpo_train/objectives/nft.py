"""nft:  DiffusionNFT: the policy as part of a positive and of a negative prediction, each denoising the same picture.

    f+ = b f_theta + (1 - b) f_old,   f- = (1 + b) f_old - b f_theta              b = train.interpolation
    r_i = (clamp(A_i, -c, c) / c + 1) / 2                                         c = train.advantage_clip, else 5
    L   = (c / b) mean_i( r_i |x_0 - x_0+|^2 / sg[mean |x_0 - x_0+|] + (1 - r_i) (the same of f-) )

x_0+ = x_t - t f+ is what f+ takes the picture to be: x_0 - x_0+ = -t (y - f+), and with mean squares over elements

    ||y - f+||^2 = b err_theta + (1 - b) err_old - b (1 - b) d,   d = ||f_theta - f_old||^2,   f-: b is -b

so that err_old, s and d say all but the means of absolute values, which carry no gradient. The old policy is the
reference here: `reference: frozen` or `adapters` (its errors alone do not say d), with `reference_update: iteration` to
follow the policy as its authors' does online. For rectified flow.
Source: DiffusionNFT, arXiv 2509.16117, and its code; their `beta` is b, 1 or 0.1, their `train.beta` is `kl`.
"""

from __future__ import annotations

from torch import Tensor

from gpo_data.recipe import Train
from gpo_train.objectives.pairs import weights
from gpo_train.objectives.terms import Objective, Terms

CLIP = 5.0  # of advantages; their adv_clip_max
LEAST = 1e-5  # of a mean of absolute values


def loss(terms: Terms, settings: Train) -> Tensor:
    assert terms.distance is not None and terms.reference is not None
    assert terms.t is not None and terms.spreads is not None
    b, c = settings.interpolation, settings.advantage_clip or CLIP
    r = (weights(terms.advantages, settings.weighting).clamp(-c, c) / c + 1) / 2
    losses = []
    for share, spread in zip((b, -b), terms.spreads, strict=True):
        square = share * terms.s + terms.reference - share * (1 - share) * terms.distance
        losses.append(terms.t**2 * square / (terms.t * spread).clamp(min=LEAST))
    return (c / b * (r * losses[0] + (1 - r) * losses[1])).mean()


OBJECTIVE = Objective(loss, predictions=True)
