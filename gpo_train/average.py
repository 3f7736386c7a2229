"""The verb `average`: the mean of several policies of one base, as a run of its own.

    of several runs            runs that differ in their seeds alone lie apart by noise, of which their mean has less
    of the last iterations     weights of an online run swing around what it has learnt, a thing too few, one too many;
                               train.ema_decay averages as a run goes, over a span that has to be chosen before
    scale                      base + scale (mean - base): with less noise in it, a move may be longer than any was

Sources: model soups (arXiv 2203.05482), extrapolation from the base (ExPO, 2404.16792). Arithmetic in float32,
whatever the files are in. LoRA: a run's iterations are averaged matrix by matrix, as train.ema_decay does; runs,
whose matrices began apart, by their products: the ranks add up.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpo_data import models
from gpo_data.errors import UsageError
from gpo_data.lake.durable import whole_folder
from gpo_data.models.weights import by_name, weight_files
from gpo_train.online.iterations import Iteration, history
from gpo_train.run import Averaged, Run, named

Readers = dict[str, Callable[[], Tensor]]  # of a policy's tensors, by name


def average(runs: Sequence[Run], last: int | None = None, scale: float = 1.0, name: str | None = None) -> Run:
    """Write runs/<name>/ with policy/ and run.json, beside the first of `runs`. Raises UsageError.

    Args:
        last: iterations averaged of each run, each with the weights at its start, which drew it. None: its end.
        scale: how far from what the runs began with, in lengths of the mean move.
        name: None is <run>-mean<N>, N the number of policies averaged; with a scale, <run>-mean<N>-x<scale>.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise UsageError(f"--scale: expected a number above 0, found {scale:g}")
    folders = [_iterations(run, last) if last is not None else [_policy(run)] for run in runs]
    if last is None and len(runs) == 1 and scale == 1:
        raise UsageError("average: expected several runs, --last N or --scale S, found one run as it is")
    _expect_one_base(runs)
    first = runs[0]
    scaled = "" if scale == 1 else "-x" + re.sub(r"[^0-9]+", "-", f"{scale:g}").strip("-")
    made = named(first.folder.parent, name or f"{first.name}-mean{sum(map(len, folders))}{scaled}")
    if made.folder.exists():
        raise UsageError(f"run {made.folder} is there already; choose another --out NAME, or remove the folder")
    with whole_folder(made.folder) as folder:
        out = Run(folder)
        shutil.copytree(folders[0][0], out.policy)
        readers = [[by_name(sorted(folder.rglob("*.safetensors"))) for folder in of_run] for of_run in folders]
        if len({frozenset(one) for of_run in readers for one in of_run}) > 1:
            raise UsageError(f"average: the policies of {first.name} and others have different weights")
        lora = models.lora_of(out.policy) is not None
        if lora and scale != 1 and first.manifest().recipe["policy"]:
            raise UsageError(f"--scale: run {first.name} went on from another policy's LoRA, which is no base")
        base = {} if lora or scale == 1 else _base(first, next(out.policy.glob("*/")).name)
        for file in out.policy.rglob("*.safetensors"):
            with safe_open(file, "pt") as one:
                facts, names = one.metadata(), list(one.keys())
            mean = {name: _product(readers, name, scale) if lora else _mean(readers, name) for name in names}
            for name in base.keys() & mean.keys():
                before = base[name]().float()
                mean[name] = (before + scale * (mean[name].float() - before)).to(mean[name].dtype)
            save_file(mean, file, facts)
        shutil.copy2(first.folder / "run.json", out.folder)
        # A mode of its own, so that `newest` goes on finding the run that trained.
        of = Averaged(runs=[run.name for run in runs], last=last, scale=scale)
        out.note(run=made.name, mode="average", state="finished", averaged=of, rollback=None)
    return made


def _policy(run: Run) -> Path:
    run.expect_policy()
    return run.policy


def _iterations(run: Run, last: int) -> list[Path]:
    run.expect_online("only that keeps its iterations")
    drawn = len(history(run.folder))
    if not 2 <= last <= drawn:
        raise UsageError(f"--last: expected 2 to {drawn}, the iterations of run {run.name}, found {last}")
    iterations = [Iteration(run.folder, i) for i in range(drawn - last, drawn)]
    if missing := [one for one in iterations if not one.has_weights]:
        raise UsageError(
            f"{missing[0].policy}: pruned by online.keep_last; expected the weights of all {last} iterations"
        )
    return [one.policy for one in iterations]


def _expect_one_base(runs: Sequence[Run]) -> None:
    """Raise UsageError unless they are different runs, and all began with the same weights."""
    if len({run.folder.resolve() for run in runs}) < len(runs):
        raise UsageError(f"--run: expected each run once, found {', '.join(run.name for run in runs)}")
    first, *others = (run.manifest() for run in runs)
    for run, one in zip(runs[1:], others, strict=True):
        for what, mine, its in (
            ("model", first.model_digest, one.model_digest),
            ("model", first.weights_digest or one.weights_digest, one.weights_digest or first.weights_digest),
            ("policy", first.recipe["policy"], one.recipe["policy"]),
            ("train.tuning", first.recipe["train"].get("tuning"), one.recipe["train"].get("tuning")),
        ):
            if mine != its:
                raise UsageError(
                    f"average: run {run.name} began with another {what} than {runs[0].name}: {its}, and there {mine}"
                )


def _base(run: Run, denoiser: str) -> Readers:
    """What a run that trains all weights began with."""
    recipe = run.manifest().recipe
    if recipe["policy"]:
        return by_name(sorted(models.policy_path(recipe["policy"]).glob("*/*.safetensors")))
    return by_name(weight_files(models.resolve(recipe["model"], recipe["revision"]) / denoiser))


def _mean(readers: list[list[Readers]], name: str) -> Tensor:
    """Of all policies alike, in the files' own type."""
    tensors = [one[name]() for of_run in readers for one in of_run]
    return (sum(tensor.float() for tensor in tensors) / len(tensors)).to(tensors[0].dtype)  # type: ignore[union-attr]


def _product(readers: list[list[Readers]], name: str, scale: float) -> Tensor:
    """One matrix of a LoRA whose product of two is `scale` times the mean of all runs' products.

    Side by side, the matrices of n runs are one LoRA of n times the rank: B1 A1 + B2 A2 = [B1 B2] [A1; A2].
    """
    ups = "lora_B" in name
    parts = [_mean([of_run], name) for of_run in readers]
    if ups:
        parts = [(part.float() * (scale / len(parts))).to(part.dtype) for part in parts]
    return torch.cat(parts, dim=1 if ups else 0).contiguous()
