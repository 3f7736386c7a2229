"""The sections of a recipe that gpo-train reads, `train:`, `online:` and `eval:`, typed and strict.

An epoch makes the draws (t, e) of every group anew and passes over the groups `passes` times with them, so that one
computation of the reference's errors serves all the passes. Defaults follow arXiv 2505.11070 where it says (k=5 draws
a member, tau=3 passes, 2 epochs) and are for LoRA otherwise.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

from gpo_data import hardware
from gpo_data.errors import UsageError
from gpo_data.recipe import Recipe, explain, nearest


@dataclass(frozen=True)
class Train:
    """How to train.

    Args:
        objective: `gpo`, or `sft` (plain denoising loss on members at or above `sft_reward`).
        link: `logsigmoid` (gated) or `linear`.
        weighting: `zscore`, `sign`, or Diffusion-DPO pairs `all`, `max`, `min`.
        beta: scale of `logsigmoid`, on mean-over-elements errors.
        draws: k, timesteps and noises a member.
        shared_draws: one (t, noise) for all members of a group; lowers variance.
        noise: e of the draws: `random`, or each member's `own`, the starting noise that it was drawn from, which
            the lake keeps as a seed: then (x_0, e) is the policy's own path, and what is better is better *from there*.
        timestep_range: `all`, `high` (t >= 0.5, much noise), `low`, or [lowest, highest] within 0 and 1, before the
            scheduler's shift.
        kl: weight of a penalty on the mean of ||f_theta - f_ref||^2 over members, in the units of the link (so times
            `beta` with `logsigmoid`): a trust region around the reference; 0 is off. See objective.py.
        hold: weight of a penalty on the square of mean s, of each group and draw, in the units of the link: errors of
            better and worse members may move apart, not grow together; 0 is off. See objective.py.
        passes: tau, passes over the same draws.
        epochs: how often the draws are made anew; online it is `online.iterations` times `online.interval`.
        batch_groups: B, groups an optimiser step, over all ranks.
        micro_batch: samples in one forward pass; any value gives the same gradient.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        warmup_steps: linear warm-up.
        decay_steps: the learning rate falls as 1 / sqrt(1 + step / decay_steps), whenever the run ends; 0: it does not.
        clip: largest gradient norm; 0 is off.
        tuning: `full` or `lora`.
        lora_rank: of LoRA.
        reference: `frozen` copy, `adapters` switched off (LoRA only), or `stored` errors (computed once an epoch by the
            policy itself, before it moves: no second copy of the model on any device).
        reference_update: `never`, `iteration` (reference <- policy at the start of an iteration: offline, of an epoch)
            or `ema`; null is `iteration` online and `never` offline.
        reference_decay: of `ema`, an optimiser step.
        reference_offload: a `frozen` copy waits on the CPU and comes to the device to be asked; `stored` needs no copy.
        ema: decay of an average of the policy's weights, which evaluation and export use; null is off.
        precision: of the arithmetic: `float32`, or `bfloat16` autocast over float32 weights. `auto` takes bfloat16
            where the device multiplies it in hardware; of a run that exists, what it was begun in.
        compile: `torch.compile` the denoiser.
        gradient_checkpointing: less memory, more arithmetic.
        sft_reward: smallest reward that `sft` learns from.
        workers: processes that read ahead; 0 reads in the training process.
        checkpoint_steps: optimiser steps between two checkpoints, besides the one at the end of an epoch.
        seed: of order and draws; null takes the recipe's.
        datasets: glob over the lake's datasets to train on offline, in place of the recipe's own, such as
            `count-tiny-online-it*`, the iterations of an online run.
        in_turn: an epoch reads one of `datasets`, in the order of their names; otherwise each reads them all.
        loggers: any of `csv`, `tensorboard`, `wandb`.
        trainer: further options of lightning.Trainer, by name; `strategy: fsdp2` shards the weights (sharded.py).
    """

    objective: Literal["gpo", "sft"] = "gpo"
    link: Literal["linear", "logsigmoid"] = "logsigmoid"
    weighting: Literal["zscore", "sign", "all", "max", "min"] = "zscore"
    beta: float = 1000.0
    draws: int = 5
    shared_draws: bool = True
    noise: Literal["random", "own"] = "random"
    timestep_range: Literal["all", "high", "low"] | tuple[float, float] = "all"
    kl: float = 0.0
    hold: float = 0.0
    passes: int = 3
    epochs: int = 2
    batch_groups: int = 1
    micro_batch: int = 80
    learning_rate: float = 3e-5
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay_steps: int = 0
    clip: float = 1.0
    tuning: Literal["full", "lora"] = "lora"
    lora_rank: int = 16
    reference: Literal["frozen", "adapters", "stored"] = "stored"
    reference_update: Literal["never", "iteration", "ema"] | None = None
    reference_decay: float = 0.99
    reference_offload: bool = False
    ema: float | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    gradient_checkpointing: bool = False
    sft_reward: float = 1.0
    workers: int = 0
    checkpoint_steps: int = 50
    seed: int | None = None
    datasets: str | None = None
    in_turn: bool = False
    loggers: list[str] = field(default_factory=lambda: ["csv", "tensorboard"])
    trainer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Online:
    """How the policy draws for itself, `fit --mode online`; see online.py. What it draws with is the recipe's sampler.

    Args:
        iterations: how often new groups are drawn; with more of them a finished run goes on.
        group_size: members a group; null takes the recipe's.
        interval: epochs trained on an iteration.
        prompts: groups an iteration; null takes the recipe's `task.num_prompts`.
        choose: `next` (the task's next prompts, from the first again where they end), `same` (every time the first
            ones, with new noise), or `unmastered` (out of `pool`: those never drawn, then those whose last group had
            the largest std of rewards, as the lake knows).
        pool: prompts that `unmastered` chooses from; null is four times `prompts`.
        writer: who draws: the `policy`, its average `ema` (needs train.ema), or the `base`, for comparison: the same
            images and steps without any feedback.
        replay: train on so many last iterations, each with its own advantages.
        keep: so many last iterations keep their tars and policies; of older ones the rows stay for SQL. null: all.
        grid_every: iterations between two picture grids of fixed prompts and seeds; 0 is off.
        stop_plateau: stop when the best mean reward is so many iterations old.
        stop_diversity: stop when the diversity inside groups falls below this share of the first iteration's.
        stop_drift: stop when an image statistic moves by more than this share of the first iteration's value.
        stop_distance: stop when policy and reference are further apart than this: an epoch's mean of s over all
            members, which estimates the divergence of the reference from the policy on the reference's own pictures.
    """

    iterations: int = 5
    group_size: int | None = None
    interval: int = 1
    prompts: int | None = None
    choose: Literal["next", "same", "unmastered"] = "next"
    pool: int | None = None
    writer: Literal["policy", "ema", "base"] = "policy"
    replay: int = 1
    keep: int | None = None
    grid_every: int = 1
    stop_plateau: int | None = None
    stop_diversity: float | None = None
    stop_drift: float | None = None
    stop_distance: float | None = None


@dataclass(frozen=True)
class Eval:
    """How to compare policy and base; see evaluate.py.

    Args:
        prompts: held-out prompts; fewer where the grammar has fewer.
        group_size: images a prompt, on the same seeds for both.
        seed: of prompts and noise.
        bootstrap: resamples of the interval.
    """

    prompts: int = 256
    group_size: int = 4
    seed: int = 1000
    bootstrap: int = 10_000


Section = TypeVar("Section", Train, Online, Eval)


def _section(recipe: Recipe, name: str, kind: type[Section]) -> Section:
    """`recipe.<name>` as a typed, checked dataclass. Raises UsageError that names the key."""
    content = getattr(recipe, name)
    known = [f.name for f in dataclasses.fields(kind)]
    for key in content:
        if key not in known:
            raise UsageError(f"recipe {recipe.name}: unknown key '{name}.{key}'{nearest(str(key), known)}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, as_group=False)
    try:
        made = kind(**parser.parse_object(content, defaults=True).as_dict())
    except ArgumentError as error:
        raise UsageError(f"recipe {recipe.name}: {name}: {explain(str(error))}") from None
    for f in dataclasses.fields(kind):
        value = getattr(made, f.name)
        lowest = 0 if f.name in MAY_BE_ZERO else 1
        if f.type in ("int", "int | None") and value is not None and value < lowest:
            raise UsageError(f"recipe {recipe.name}: {name}.{f.name}: expected {lowest} or more, found {value}")
    return made


MAY_BE_ZERO = ("workers", "warmup_steps", "decay_steps", "seed", "grid_every")


def online_settings(recipe: Recipe) -> Online:
    """`recipe.online`, checked. Raises UsageError."""
    made = _section(recipe, "online", Online)
    if made.writer == "ema" and train_settings(recipe, "online").ema is None:
        raise UsageError(f"recipe {recipe.name}: online.writer: ema: there is no average; set train.ema, such as 0.99")
    if made.keep is not None and made.keep < made.replay:
        raise UsageError(
            f"recipe {recipe.name}: online.keep: expected at least online.replay ({made.replay}), found {made.keep}"
        )
    return made


def train_settings(recipe: Recipe, mode: str = "offline") -> Train:
    """`recipe.train`, checked for the mode, `offline` or `online`. Raises UsageError."""
    made = _section(recipe, "train", Train)
    device = hardware.device_of(recipe.sampler.device)
    precision: Any = hardware.dtype_for(made.precision, device, "train.precision")
    made = dataclasses.replace(made, precision=precision)
    if made.reference_update is None:
        follows = mode == "online" and made.reference != "adapters" and made.objective == "gpo"
        made = dataclasses.replace(made, reference_update="iteration" if follows else "never")
    if mode == "online":
        online = _section(recipe, "online", Online)
        if made.datasets is not None or made.in_turn:
            raise UsageError(f"recipe {recipe.name}: train.datasets, train.in_turn: online trains on what it draws; "
                             f"leave them out, or use --mode offline")  # fmt: skip
        made = dataclasses.replace(made, epochs=online.iterations * online.interval)

    if recipe.policy and made.tuning == "lora":  # what it learns would be relative to both
        raise UsageError(
            f"recipe {recipe.name}: policy: {recipe.policy}: a LoRA is trained on a model of its own; "
            f"`gpo-train export` that policy, set model: to the folder, and leave policy: out"
        )

    def refuse(key: str, found: object, why: str) -> None:
        raise UsageError(f"recipe {recipe.name}: train.{key}: {found}: {why}")

    if made.reference == "adapters":
        if made.tuning != "lora":
            refuse("reference", "adapters", f"needs train.tuning: lora, found {made.tuning}; use `frozen` or `stored`")
        if made.reference_update != "never":
            refuse(
                "reference_update",
                made.reference_update,
                "a reference of disabled adapters cannot follow the policy; use train.reference: stored, or never",
            )
    if made.reference == "stored" and made.reference_update == "ema":
        refuse("reference", "stored", "stored errors cannot follow an EMA; use `frozen`, or another reference_update")
    if made.reference == "frozen" and made.tuning == "lora" and made.reference_update != "never":
        refuse("reference_update", made.reference_update, "a frozen copy follows full fine-tuning only; use "
               "train.reference: stored")  # fmt: skip
    if mode == "online" and made.reference == "stored" and made.reference_update == "never":
        refuse("reference", "stored", "a base that never moves cannot be asked about pictures that are not drawn yet; "
               "use `frozen`, `adapters`, or train.reference_update: iteration")  # fmt: skip
    if made.kl < 0:
        refuse("kl", made.kl, "expected 0 or more")
    if made.kl and made.reference == "stored":
        refuse("kl", made.kl, "needs what the reference says, and of a `stored` one only its errors are kept; use "
               "train.reference: frozen or adapters")  # fmt: skip
    if not isinstance(made.timestep_range, str):
        low, high = made.timestep_range
        if not 0 <= low < high <= 1:
            refuse("timestep_range", [low, high], "expected 0 <= lowest < highest <= 1")
    strategy = str(made.trainer.get("strategy", ""))
    if strategy.startswith(("fsdp", "deepspeed")) and strategy != "fsdp2":
        refuse("trainer.strategy", strategy, "expected ddp, or fsdp2 to shard the weights (sharded.py)")
    if strategy == "fsdp2" and made.ema is not None:
        refuse("ema", made.ema, "Lightning cannot average weights that are sharded; leave it out, or use ddp")
    for name in made.loggers:
        if name not in ("csv", "tensorboard", "wandb"):
            refuse("loggers", name, "expected any of csv, tensorboard, wandb")
    return made


def eval_settings(recipe: Recipe) -> Eval:
    return _section(recipe, "eval", Eval)
