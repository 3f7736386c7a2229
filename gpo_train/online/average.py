"""The verb `average`: the mean of the weights that drew an online run's last iterations, as a run of its own.

An iteration's weights swing around what the run has learnt: one draws a thing too few, the next one too many.
`train.ema_decay` averages while the run goes, over a span that has to be chosen before; the weights of every iteration
lie in the run's folder (unless online.keep_last prunes them), so the span can be chosen afterwards. Arithmetic in
float32, whatever the files are in. LoRA: its matrices are averaged, as `train.ema_decay` does, not their products.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gpo_data.errors import UsageError
from gpo_train.online.iterations import Iteration, history
from gpo_train.run import Run


def average(run: Run, last: int, name: str | None = None) -> Run:
    """Write runs/<name>/ (default <run>-mean<last>) with policy/ and run.json. Raises UsageError.

    `last`: iterations averaged, each with the weights at its start, which drew it.
    """
    run.expect_online("only that keeps its iterations")
    drawn = len(history(run.folder))
    if not 2 <= last <= drawn:
        raise UsageError(f"--last: expected 2 to {drawn}, the iterations of run {run.name}, found {last}")
    iterations = [Iteration(run.folder, i) for i in range(drawn - last, drawn)]
    folders = [one.policy for one in iterations]
    missing = [one for one in iterations if not one.has_weights]
    if missing:
        raise UsageError(
            f"{missing[0].policy}: pruned by online.keep_last; expected the weights of all {last} iterations"
        )
    made = Run(run.folder.parent / (name or f"{run.name}-mean{last}"))
    if made.folder.exists():
        raise UsageError(f"run {made.folder} is there already; choose another --out NAME, or remove the folder")
    with tempfile.TemporaryDirectory(dir=run.folder.parent) as temporary:
        out = Run(Path(temporary) / "run")
        shutil.copytree(folders[-1], out.policy)
        for file in out.policy.rglob("*.safetensors"):
            with safe_open(file, "pt") as one:
                facts = one.metadata()
            save_file(mean([folder / file.relative_to(out.policy) for folder in folders]), file, facts)
        shutil.copy2(run.folder / "run.json", out.folder)
        # A mode of its own, so that `newest` goes on finding the run that trained.
        span = {"run": run.name, "iterations": [drawn - last, drawn - 1]}
        out.note(run=made.name, mode="average", state="finished", averaged=span, rollback=None)
        made.folder.parent.mkdir(parents=True, exist_ok=True)
        out.folder.rename(made.folder)
    return made


def mean(files: list[Path]) -> dict[str, torch.Tensor]:
    """Of tensors of one name in all files, in the files' own type."""
    total: dict[str, torch.Tensor] = {}
    for file in files:
        tensors = load_file(file)
        for name, value in tensors.items():
            total[name] = total[name] + value.float() if name in total else value.float()
    return {name: (value / len(files)).to(tensors[name].dtype) for name, value in total.items()}
