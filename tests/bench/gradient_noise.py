"""What a group's gradient at the base is made of: what groups agree in, what sets them apart, and what (t, e) adds.

A gradient is that of mean A_i err_i over a group's members and k noise samples: the `linear` objective, which
`logsigmoid` is too before the first step. In Adam's metric: a weight's is divided by the square root of its size. Each
group is asked twice, with other noise samples: g = signal + group + sample, and

    sample  half the squared distance of a group's two gradients
    group   their product, less the signal
    signal  the mean product of gradients of different groups

all as shares of the first setting's total. Settings are overrides of the recipe; the dataset is drawn with
`gpo-data shards text-tiny`.

    python -m tests.bench.gradient_noise text-tiny [--groups 32] [--members 16] [--set "KEY=VALUE KEY=VALUE" ...]
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from gpo_data import Lake, recipe
from gpo_data.lake.reader import TrainGroup
from gpo_train.noise import epoch_noise
from gpo_train.policy import Policy
from gpo_train.settings import train_settings


def gradient(policy: Policy, group: TrainGroup, seed: int) -> Tensor:
    """[P], of one group, with the noise samples that a run of `seed` has."""
    noise, size = epoch_noise(policy.model, policy.settings, seed, 0, group), policy.settings.micro_batch_size
    samples, members = noise.u.shape
    weight = group.advantages.repeat(samples).float() / (samples * members)
    for parameter in policy.trainable():
        parameter.grad = None
    for start in range(0, len(weight), size):
        rows = slice(start, min(start + size, len(weight)))
        (policy.errors(group, noise, rows) * weight[rows]).sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.trainable() if p.grad is not None])


def parts(of: Tensor) -> tuple[float, float, float]:
    """(signal, group, sample) of gradients [groups, 2, P]."""
    groups = len(of)
    sample = ((of[:, 0] - of[:, 1]) ** 2).sum(1).mean() / 2
    both = (of[:, 0] * of[:, 1]).sum(1).mean()
    total = of.mean(1)
    signal = ((total.sum(0) ** 2).sum() - (total**2).sum()) / (groups * (groups - 1))
    return signal.item(), (both - signal).item(), sample.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--set", nargs="+", default=[""], metavar="KEY=VALUE ...", help="settings to compare")
    options = parser.parse_args()
    size: Tensor | None = None
    whole = 0.0
    for setting in options.set:
        made = recipe.load(options.recipe, [f"--{one}" for one in setting.split()])
        groups = Lake(made.lake)[str(made.name)].groups(made.reward, where=f"member < {options.members}")
        chosen = torch.linspace(0, len(groups) - 1, options.groups).long().unique().tolist()
        policy = Policy.load(made.model, train_settings(made), made.sampler)
        found = torch.stack(
            [torch.stack([gradient(policy, groups[place], seed) for seed in (0, 1)]) for place in chosen]
        )
        size = (found**2).mean((0, 1)).sqrt() if size is None else size
        signal, group, sample = parts(found / (size + 1e-12).sqrt())
        whole = whole or signal + group + sample
        shares = ", ".join(
            f"{name} {value / whole:.1%}" for name, value in (("signal", signal), ("group", group), ("sample", sample))
        )
        print(f"{setting or 'the recipe'}: {shares}", flush=True)


if __name__ == "__main__":
    main()
