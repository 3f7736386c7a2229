"""The section `train:` of a recipe.

An epoch samples timesteps and noise (t, e) of every group anew and goes over the groups `num_inner_epochs` times with
them, so that one computation of the reference's errors serves them all. Defaults follow arXiv 2505.11070 where it says
(k=5, tau=3 inner epochs, 2 epochs) and are for LoRA otherwise. What depends on the mode is checked
where a run begins; nothing here needs torch, so that `gpo-data` refuses a recipe that could not be trained on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from gpo_data.lake.cache import bytes_of
from gpo_data.recipe.checks import (
    Count,
    Decay,
    Members,
    NotNegative,
    Number,
    PathText,
    Positive,
    Seed,
    Share,
    Whole,
    Workers,
    check,
    expect,
)

# A file each of the trainer's objectives/ has the equation and its source; docs/objectives.md has all of them.
Loss = Literal["linear", "logsigmoid", "ipo", "dgpo", "nft", "awm", "gdro", "pnapo", "kto", "rwr", "best_of_n"]
Weighting = Literal["zscore", "sign", "all", "max", "min"]
PAIRS = ("all", "max", "min")  # of the weightings
PAIRED = ("linear", "logsigmoid", "ipo", "dgpo", "pnapo")  # losses that are defined on pairs too

# Options of lightning.Trainer that would undo what this toolkit does.
OURS = {
    "accumulate_grad_batches": "train.groups_per_step (and train.micro_batch_size, which keeps the gradient)",
    "callbacks": "none; use a module of your own in a Trainer (docs/notebook.md)",
    "enable_checkpointing": "train.checkpoint_steps",
    "gradient_clip_algorithm": "train.max_grad_norm",
    "gradient_clip_val": "train.max_grad_norm",
    "logger": "train.loggers",
    "max_epochs": "train.epochs (online: online.iterations)",
    "plugins": "none; use a module of your own in a Trainer (docs/notebook.md)",
    "precision": "train.precision",
    "reload_dataloaders_every_n_epochs": "none: every epoch asks for its groups",
    "use_distributed_sampler": "none: ranks share a step's groups",
    "val_check_interval": "none: nothing is validated in between; `gpo-train compare` looks at iterations afterwards",
}
# Strategies of Lightning that cannot train a run: other ways to shard, and ranks made of a process in its middle.
NOT_HERE = re.compile(r"fsdp(?!2$)|deepspeed|.*(spawn|fork|notebook)")


@dataclass(frozen=True)
class Train:
    """How to train.

    Args:
        objective: `gpo`, or `sft` (plain denoising loss on members at or above `sft_reward`).
        loss: `logsigmoid` (gated) or `linear`, GPO's own; or another of objectives.md.
        weighting: `zscore`, `sign`, or Diffusion-DPO pairs `all`, `max`, `min`.
        beta: scale of `logsigmoid`, on mean-over-elements errors; the beta of Diffusion-DPO and of DGPO. objectives.md
            has what it is in the other losses.
        advantage: what the distance of a reward to its group's mean is divided by: the std of the `group`, the `global`
            one of all groups (online: of the iteration), or `none`, nothing.
        advantage_epsilon: added to that std; with learned rewards 1e-4 keeps groups of next to no spread from counting
            as much as others.
        advantage_clip: largest advantage; null is none (of `nft` 5). Not with pairs and `best_of_n`.
        diversity_bonus: GARDO's: SQL for a list of numbers, features of the picture such as an evaluator's column; the
            advantage of a member above the mean is multiplied by its distance to the nearest other member over the
            group's mean of those, before `advantage_clip`. null: off.
        clip_range: PPO's clip, on errors: no gradient of a better member once exp(err_old - err) is above 1 +
            clip_range, nor of a worse one below 1 - clip_range; old is the policy as it began the iteration (a `stored`
            reference is the old one). Of any loss; DGPO's is 0.001 to 0.05; 0 is off.
        temperature: of rewards in `rwr` and `gdro` (their authors': 0.2 and 0.05).
        interpolation: of `nft`: how much of its implicit positive prediction is the policy's (its authors' beta: 1 or
            0.1).
        top_weight: of `gdro`: weight of the best member's own error.
        beta_decay: of `pnapo`: [n1, n2], the steps between which beta falls to its half; null: it does not.
        timesteps_per_image: k, samples of (t, noise) a member.
        shared_noise: one (t, noise) for all members of a group; lowers variance.
        noise: `random`; `antithetic`, random in pairs of samples, e and -e: with `stratified` a quarter less of the
            samples' own noise in the gradient, which gained nothing on the tiny world (docs/experiments.md); or each
            member's `own`, the starting noise that it was drawn from, which the lake keeps as a seed: then (x_0, e) is
            the policy's own path, and what is better is better *from there*.
        timestep_range: `all`, `high` (t >= 0.5, much noise), `low`, or [lowest, highest] within 0 and 1, before the
            scheduler's shift.
        timestep_distribution: of t within that range: `uniform`; `logit_normal`, the middle more often, as SD3 was
            trained; `discrete`, uniform over the thousand steps of diffusers' training scripts; or `stratified`,
            uniform, each of the k samples in its own k-th part of the range: less noise of the gradient.
        logit_mean: of `logit_normal`; above 0 more noise (diffusers' scripts count from the noisy end: their sign is
            the other one).
        logit_std: of `logit_normal`.
        timestep_shift: shift t as the scheduler shifts its noise levels; diffusers' scripts do so for SD3 and do not
            for FLUX.1-dev.
        caption_dropout: probability with which a noise sample of a group is asked without its prompt, for all members,
            of policy and reference: with the embedding of `sampler.negative_prompt`. Needs a dataset that was drawn
            with `sampler.store_unconditional`.
        guidance_scale: w: policy and reference predict f(no prompt) + w (f(prompt) - f(no prompt)), as a sampler with
            guidance does, with gradients through both; needs the same dataset, and twice the arithmetic and memory. 1
            is off.
        kl: weight of a penalty on the mean of ||f_theta - f_ref||^2 over members, in the units of the loss (so times
            `beta` with `logsigmoid`): a trust region around the reference; 0 is off.
        kl_reference: what `kl` holds to where the reference follows the policy from iteration to iteration: the
            `reference` itself, so that many iterations may go far, or the `base`, as the run began, as DGPO and
            Flow-GRPO do; errors are then compared with those of the policy as it began the iteration, which are kept.
        kl_judges: GARDO's gate: SQL for numbers, such as columns of other evaluators. `kl` then holds only members
            whose reward is not to be trusted: their win rate by the reward is above their mean one by these. []: all.
        kl_share: of those members, in a dataset or iteration, the share that is held, the most doubtful first.
        mean_shift_penalty: weight of a penalty on the square of the mean error difference of a group and noise sample,
            in the units of the loss: errors of better and worse members may move apart, not grow together; 0 is off.
        num_inner_epochs: tau, how often the groups are gone over with the same timesteps and noise.
        epochs: how often timesteps and noise are sampled anew; online it is `online.iterations` times
            `online.epochs_per_iteration`.
        members_per_group: of a group train on so many, half of them its best and half its worst, with the advantages
            that they have among all: what is near the mean teaches little and costs as much. null: all.
        groups_per_step: B, groups an optimiser step, over all ranks.
        micro_batch_size: samples in one forward pass; any value gives the same gradient.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        warmup_steps: linear warm-up.
        decay_steps: the learning rate falls as 1 / sqrt(1 + step / decay_steps), whenever the run ends; 0: it does not.
        max_grad_norm: largest gradient norm, in units of the error (of the loss divided by `beta`); 0 is off.
        tuning: `full` or `lora`.
        lora_rank: of LoRA.
        lora_alpha: of LoRA, whose scale is lora_alpha / lora_rank; null is the rank, a scale of 1.
        reference: `frozen` copy, `adapters` switched off (LoRA only; where the reference follows the policy, a second
            set of them), or `stored` errors (computed once an epoch by the policy itself, before it moves: no second
            copy of the model on any device).
        reference_update: `never`, `iteration` (reference <- policy at the start of an iteration: offline, of an epoch)
            or `ema`; null is `iteration` online and `never` offline; with `adapters` it is `never`.
        reference_decay: of `ema`, an optimiser step.
        reference_offload: a `frozen` copy waits on the CPU and comes to the device to be asked; `stored` needs no copy.
        ema_decay: decay of an average of the policy's weights, which evaluation and export use; null is off.
        precision: of the arithmetic: `float32`, or `bfloat16` autocast over float32 weights. `auto` takes bfloat16
            where the device multiplies it in hardware; of a run that exists, what it was begun in.
        compile: `torch.compile` the denoiser.
        gradient_checkpointing: less memory, more arithmetic.
        sft_reward: smallest reward that `sft` learns from.
        workers: processes that read ahead; 0 reads in the training process. From an object store threads read ahead.
        cache: `{folder: ~/cache, size: 50 GB}` keeps what was read from an object store on this machine, what was used
            longest ago goes first; null keeps nothing.
        checkpoint_steps: optimiser steps between two checkpoints, besides the one at the end of an epoch.
        seed: of order, timesteps and noise; null takes the recipe's.
        datasets: glob over the lake's datasets to train on offline, in place of the recipe's own, such as
            `count-tiny-online-it*`, the iterations of an online run.
        sequential: an epoch reads one of `datasets`, in the order of their names; otherwise each reads them all.
        loggers: any of `csv`, `tensorboard`, `wandb`.
        trainer: further options of lightning.Trainer, by name; `strategy: fsdp2` shards the weights (sharded.py).
    """

    objective: Literal["gpo", "sft"] = "gpo"
    loss: Loss = "logsigmoid"
    weighting: Weighting = "zscore"
    beta: Positive = 1000.0
    advantage: Literal["group", "global", "none"] = "group"
    advantage_epsilon: NotNegative = 0.0
    advantage_clip: Positive | None = None
    diversity_bonus: str | None = None
    clip_range: NotNegative = 0.0
    temperature: Positive = 0.2
    interpolation: Positive = 1.0
    top_weight: NotNegative = 0.5
    beta_decay: list[int] | None = None
    timesteps_per_image: Count = 5
    shared_noise: bool = True
    noise: Literal["random", "antithetic", "own"] = "random"
    timestep_range: Literal["all", "high", "low"] | list[float] = "all"
    timestep_distribution: Literal["uniform", "logit_normal", "discrete", "stratified"] = "uniform"
    logit_mean: Number = 0.0
    logit_std: Positive = 1.0
    timestep_shift: bool = True
    caption_dropout: Share = 0.0
    guidance_scale: NotNegative = 1.0
    kl: NotNegative = 0.0
    kl_reference: Literal["reference", "base"] = "reference"
    kl_judges: list[str] = field(default_factory=list)
    kl_share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.1
    mean_shift_penalty: NotNegative = 0.0
    num_inner_epochs: Count = 3
    epochs: Count = 2
    members_per_group: Members | None = None
    groups_per_step: Count = 1
    micro_batch_size: Count = 80
    learning_rate: NotNegative = 3e-5
    weight_decay: NotNegative = 0.0
    warmup_steps: Whole = 0
    decay_steps: Whole = 0
    max_grad_norm: NotNegative = 1.0
    tuning: Literal["full", "lora"] = "lora"
    lora_rank: Annotated[int, Field(ge=1, le=4096)] = 16
    lora_alpha: Annotated[int, Field(ge=1, le=65536)] | None = None
    reference: Literal["frozen", "adapters", "stored"] = "stored"
    reference_update: Literal["never", "iteration", "ema"] | None = None
    reference_decay: Share = 0.99
    reference_offload: bool = False
    ema_decay: Decay | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    gradient_checkpointing: bool = False
    sft_reward: Number = 1.0
    workers: Workers = 0
    cache: dict[str, str] | None = None
    checkpoint_steps: Count = 50
    seed: Seed | None = None
    datasets: PathText | None = None
    sequential: bool = False
    loggers: list[Literal["csv", "tensorboard", "wandb"]] = field(default_factory=lambda: ["csv", "tensorboard"])
    trainer: dict[str, JsonValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self, "train.")
        if self.reference == "adapters":
            expect(
                self.tuning == "lora",
                "train.reference",
                "`frozen` or `stored` (adapters needs train.tuning: lora)",
                self.reference,
            )
        if self.reference == "stored":
            expect(
                self.reference_update != "ema",
                "train.reference",
                "`frozen`, or another reference_update (stored errors cannot follow an EMA)",
                self.reference,
            )
            expect(
                not self.kl or (self.kl_reference == "base" and self.tuning == "lora"),
                "train.kl",
                "0 (it needs what the reference says, and of a `stored` one only its errors are kept; use "
                "train.reference: frozen or adapters, or, with LoRA, train.kl_reference: base)",
                self.kl,
            )
        if self.reference == "frozen" and self.tuning == "lora":
            expect(
                self.reference_update in (None, "never"),
                "train.reference_update",
                "never (a frozen copy follows full fine-tuning only; use train.reference: adapters or stored)",
                self.reference_update,
            )
        expect(
            bool(self.kl) or not self.kl_judges, "train.kl", "above 0 beside kl_judges, which choose whom it holds", 0
        )
        expect(bool(self.kl) or self.kl_reference == "reference", "train.kl", "above 0 beside kl_reference: base", 0)
        expect(
            self.kl_reference == "reference" or self.reference_update != "ema",
            "train.reference_update",
            "iteration beside train.kl_reference: base (of an EMA no errors are kept)",
            self.reference_update,
        )
        self._check_loss()
        if not isinstance(self.timestep_range, str):
            bounds = self.timestep_range
            within = len(bounds) == 2 and 0 <= bounds[0] < bounds[1] <= 1
            expect(within, "train.timestep_range", "[lowest, highest] with 0 <= lowest < highest <= 1", bounds)
        expect(
            self.noise != "antithetic" or self.timesteps_per_image >= 2,
            "train.timesteps_per_image",
            "2 or more with train.noise: antithetic, whose samples are pairs",
            self.timesteps_per_image,
        )
        if self.cache is not None:
            expect(self.cache.keys() == {"folder", "size"}, "train.cache", "{folder: ..., size: 50 GB}", self.cache)
            bytes_of("train.cache.size", self.cache["size"])
        for name, ours in OURS.items():
            expect(name not in self.trainer, f"train.trainer.{name}", ours, self.trainer.get(name))
        strategy = str(self.trainer.get("strategy", ""))
        expect(
            not NOT_HERE.match(strategy),
            "train.trainer.strategy",
            "ddp, or fsdp2 to shard the weights (sharded.py)",
            strategy,
        )
        expect(
            strategy != "fsdp2" or self.ema_decay is None,
            "train.ema_decay",
            "null (Lightning cannot average weights that are sharded), or ddp",
            self.ema_decay,
        )

    @property
    def anchored(self) -> bool:
        """Whether the base is asked for `kl`, and the policy as it began the iteration is known by its errors."""
        return self.kl_reference == "base" and self.reference_update == "iteration"

    @property
    def unconditional(self) -> list[str]:
        """The keys that ask for the unconditional embedding, which a dataset may have stored."""
        asking = {"caption_dropout": self.caption_dropout > 0, "guidance_scale": self.guidance_scale != 1}
        return [f"train.{key}" for key, wanted in asking.items() if wanted]

    def _check_loss(self) -> None:
        """What a loss needs of the other keys."""
        paired, listed = self.weighting in PAIRS, ", ".join(PAIRED)
        expect(
            not paired or self.loss in PAIRED,
            "train.weighting",
            f"zscore or sign with train.loss: {self.loss} (pairs are for {listed})",
            self.weighting,
        )
        if self.loss == "pnapo":
            expect(paired, "train.weighting", f"{', '.join(PAIRS)} with train.loss: pnapo", self.weighting)
            expect(self.noise == "own", "train.noise", "own with train.loss: pnapo", self.noise)
        expect(
            self.loss != "nft" or self.reference != "stored",
            "train.reference",
            "frozen or adapters with train.loss: nft (it needs what the reference says, and stored errors do not)",
            self.reference,
        )
        expect(
            self.loss != "nft" or self.kl_reference == "reference",
            "train.kl_reference",
            "reference with train.loss: nft (it mixes its predictions with those of the reference that follows it)",
            self.kl_reference,
        )
        expect(
            self.loss not in ("rwr", "best_of_n") or not self.mean_shift_penalty,
            "train.mean_shift_penalty",
            f"0 with train.loss: {self.loss}, which compares with no reference",
            self.mean_shift_penalty,
        )
        expect(
            self.advantage_clip is None or not (paired or self.loss == "best_of_n"),
            "train.advantage_clip",
            "null with pairs and best_of_n: members that are clipped would be equals",
            self.advantage_clip,
        )
        expect(
            self.diversity_bonus is None or self.loss not in ("gdro", "pnapo", "rwr"),
            "train.diversity_bonus",
            f"null with train.loss: {self.loss}, which reads rewards and not advantages",
            self.diversity_bonus,
        )
        decay = self.beta_decay
        within = decay is None or (len(decay) == 2 and 0 <= decay[0] <= decay[1])
        expect(within, "train.beta_decay", "[first, last] step with 0 <= first <= last", decay)
