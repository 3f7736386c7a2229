"""What of a recipe's `train:` section depends on the mode, offline or online, and on the machine."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import lightning as L

from gpo_data import hardware
from gpo_data.errors import UsageError
from gpo_data.recipe import Recipe, Train, nearest
from gpo_train.objectives.terms import compares

TRIALS = ("fast_dev_run", "limit_train_batches", "max_steps", "max_time", "overfit_batches")


def trial_options(recipe: Recipe) -> list[str]:
    """Options of lightning.Trainer that end a run before its recipe does: it is a trial, and finishes nothing."""
    return ending(recipe.train.trainer)


def ending(trainer: dict[str, Any]) -> list[str]:
    """Such options among these."""

    def whole(value: Any) -> bool:
        """Nothing, -1 steps and a share of 1.0 (a float: 1 is one batch) end no run."""
        return not value or value == -1 or (isinstance(value, float) and value == 1.0)

    return [name for name in TRIALS if not whole(trainer.get(name))]


def train_settings(recipe: Recipe, mode: str = "offline") -> Train:
    """`recipe.train` with nothing left open. Raises UsageError."""
    made, online = recipe.train, recipe.online
    known = [*inspect.signature(L.Trainer).parameters]
    for key in made.trainer:
        if key not in known:
            raise UsageError(f"recipe {recipe.name}: train.trainer: unknown option {key!r}{nearest(key, known)}")
    device = hardware.device_of(recipe.sampler.device)
    precision: Any = hardware.dtype_for(made.precision, device, "train.precision")
    made = dataclasses.replace(made, precision=precision)
    if made.reference_update is None:
        follows = mode == "online" and made.reference != "adapters" and made.objective == "gpo"
        made = dataclasses.replace(made, reference_update="iteration" if follows else "never")

    def refuse(key: str, found: object, why: str) -> None:
        raise UsageError(f"recipe {recipe.name}: {key}: {found}: {why}")

    if recipe.policy and made.tuning == "lora":  # what it learns would be relative to both
        refuse(
            "policy",
            recipe.policy,
            "a LoRA is trained on a model of its own; `gpo-train export --merge` that policy, set "
            "model: to the folder, and leave policy: out",
        )
    if mode == "offline":
        return made
    if made.datasets is not None or made.sequential:
        refuse(
            "train.datasets, train.sequential",
            made.datasets,
            "online trains on what it draws; leave them out, or use --mode offline",
        )
    if compares(made) and made.reference == "stored" and made.reference_update == "never":
        refuse(
            "train.reference",
            "stored",
            "a base that never moves cannot be asked about pictures that are not drawn "
            "yet; use `frozen`, `adapters`, or train.reference_update: iteration",
        )
    if online.stop_distance is not None and not compares(made):
        what = "objective: sft" if made.objective == "sft" else f"loss: {made.loss}"
        refuse(
            "online.stop_distance",
            online.stop_distance,
            f"train.{what} asks no reference, to which there would be a distance; set it to null, and train under "
            f"another --run NAME",
        )
    if made.unconditional and not recipe.sampler.store_unconditional:
        refuse(
            "sampler.store_unconditional",
            "false",
            f"{' and '.join(made.unconditional)} need the unconditional embedding of what is drawn; set it to true",
        )
    an_iteration = online.prompts or recipe.task.num_prompts
    if online.pool is not None and an_iteration is not None and online.pool < an_iteration:
        said = "online.prompts" if online.prompts else "task.num_prompts, as online.prompts is null"
        refuse("online.pool", online.pool, f"expected at least {an_iteration} ({said}), which are chosen from it")
    if online.rollout_policy == "ema" and made.ema_decay is None:
        refuse("online.rollout_policy", "ema", "there is no average; set train.ema_decay, such as 0.99")
    return dataclasses.replace(made, epochs=online.iterations * online.epochs_per_iteration)
