"""The LightningModule: noise, errors, objective and optimiser wired together, and what is worth watching logged.

    L = mean over the step's groups, mean over the k noise samples of loss(sample)        (objectives/)

Optimisation is manual, because a step is many backward passes, a micro-batch each (gradcache.py).
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from gpo_data.errors import RunError, UsageError
from gpo_data.lake.reader import TrainGroup
from gpo_data.models.flow import Flow
from gpo_data.recipe import Train
from gpo_train import gradcache
from gpo_train.data import GroupDataModule
from gpo_train.noise import NoiseSamples, epoch_noise
from gpo_train.objectives.group import penalty, sample_loss
from gpo_train.objectives.terms import Terms, clipped, compares, objective_of
from gpo_train.policy import Policy
from gpo_train.reference import StoredErrors
from gpo_train.rows import Compared

Errors = Callable[[TrainGroup, NoiseSamples, int], Tensor]  # of a group, in passes as of one of so many members


class GPOModule(L.LightningModule):
    """Group Preference Optimization of `policy` (or, with `objective: sft`, plain denoising of chosen members)."""

    def __init__(
        self,
        policy: Policy,
        settings: Train,
        seed: int,
        folder: Path,
        drawn_in: torch.dtype = torch.float32,
        interval: int = 1,
        stopping: Callable[[], bool] = lambda: False,
        base: Callable[[], nn.Module] | None = None,
    ) -> None:
        """Args:
        folder: of the run.
        drawn_in: precision of the sampler that drew the groups.
        interval: epochs that read the same groups and compare with the same reference.
        stopping: whether the user asked for it.
        base: opens the denoiser that full fine-tuning began with.
        """
        super().__init__()
        self._resumed = True  # perhaps: no epoch has begun in this process
        self.drawn_in, self.interval, self.stopping, self.base = drawn_in, interval, stopping, base
        self.automatic_optimization = False
        self.policy, self.settings, self.seed = policy, settings, seed
        self.objective = objective_of(settings.loss)
        self.compares = compares(settings)
        looks_up = self.compares and settings.reference == "stored" and not settings.kl
        self.stored = StoredErrors(folder / "reference") if looks_up else None
        # Where another reference is compared with, the policy that began the iteration is kept by its errors.
        keeps_old = settings.objective == "gpo" and (settings.clip_range or settings.loss == "awm" or settings.anchored)
        self.old = StoredErrors(folder / "old") if keeps_old and self.stored is None else None
        if self.objective.predictions and not isinstance(policy.model, Flow):
            raise UsageError(f"train.loss: {settings.loss} is for rectified flow, found {type(policy.model).__name__}")
        self._clock = time.monotonic()

    def configure_optimizers(self) -> Any:
        s = self.settings
        optimizer = torch.optim.AdamW(self.policy.trainable(), lr=s.learning_rate, weight_decay=s.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, s))
        return [optimizer], [schedule]

    def transfer_batch_to_device(self, batch: list[TrainGroup], device: torch.device, dataloader_idx: int) -> Any:
        return batch  # a group may be larger than the device's memory; its chunks move one by one

    def noise_of(self, epoch: int, group: TrainGroup) -> NoiseSamples:
        return epoch_noise(self.policy.model, self.settings, self.seed, epoch, group, self.drawn_in)

    def on_train_epoch_start(self) -> None:
        if self.trainer.should_stop:
            return
        if self._resumed and (self.current_epoch, self.data.position.step) != (0, 0):
            self._restore()
        self._resumed = False
        if self.data.position.step == 0:  # not where it is resumed in the middle
            self._begin_epoch()

    def _restore(self) -> None:
        """Ask for what files have lost of a reference that never moves: it is the base, which is there at any time."""
        if self.stored is None or self._follows or not (self.base or self.settings.tuning == "lora"):
            return

        @functools.cache
        def base() -> nn.Module:
            assert self.base is not None
            return self.base().to(self.device).eval()

        def errors(group: TrainGroup, noise: NoiseSamples, most: int) -> Tensor:
            return self.policy.present_errors(group, noise, most, base())

        lora = self.settings.tuning == "lora"
        self._store(
            self.stored,
            range(self.current_epoch, self.trainer.max_epochs or 1),
            self.policy.reference_errors if lora else errors,
        )

    def _begin_epoch(self) -> None:
        """Settle the reference: all that an epoch's steps compare with is decided, and on disk, before the first."""
        epoch, last = self.current_epoch, self.trainer.max_epochs or 1
        if self.policy.reference_moves and self._follows and epoch % self.interval == 0:
            self.policy.follow(0.0)
        # The policy still is the reference: for the iteration, or, if that never moves, for all epochs.
        together = range(epoch, min(epoch + self.interval, last)) if epoch % self.interval == 0 else range(0)
        if self.stored is not None and (self._follows or epoch == 0):
            self._store(self.stored, together if self._follows else range(last), self.policy.reference_errors)
        if self.old is not None:
            self._store(self.old, together, self.policy.present_errors)

    def _store(self, store: StoredErrors, epochs: range, errors: Errors) -> None:
        """Ask for what the files of some epochs lack."""
        self.policy.denoiser.eval()
        for asked in epochs:
            reader = self.data.prepare(asked)
            assert reader is not None
            store.compute(
                asked,
                reader,
                lambda group, asked=asked: errors(  # type: ignore[misc]
                    group, self.noise_of(asked, group), self.most(len(group.members))
                ),
                self.global_rank,
                self.trainer.world_size,
                self.stopping,
                lambda: self.trainer.strategy.barrier("reference errors"),
            )
        self.policy.denoiser.train()

    @property
    def data(self) -> GroupDataModule:
        found: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(found, GroupDataModule)
        return found

    @property
    def _follows(self) -> bool:
        return self.settings.reference_update == "iteration"

    def most(self, members: int) -> int:
        """Of the groups that the ranks are at, where each has to make as many passes as the others (sharded.py)."""
        return members

    def reference_errors(self, group: TrainGroup, noise: NoiseSamples, most: int = 0) -> Tensor:
        """[k, n]: looked up, or asked now."""
        if self.stored is not None:
            return self.stored.look_up(self.current_epoch, self.data.position.digest, group)
        return self.policy.reference_errors(group, noise, most)

    def training_step(self, batch: list[TrainGroup], batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        for position, group in enumerate(batch):
            found = self.group_backward(group, 1 / len(batch), last=position == len(batch) - 1)
            for name, value in found.items():
                totals[name] = totals.get(name, 0.0) + value / len(batch)
        totals = self._over_ranks(totals)
        norm = self._clip(optimizer)
        if not math.isfinite(totals["loss"]) or not math.isfinite(norm):
            raise RunError(
                f"step {self.global_step}: loss {totals['loss']}, gradient norm {norm}; groups "
                f"{', '.join(group.key for group in batch)}. Nothing was stepped; the last good checkpoint stays. "
                f"Lower train.learning_rate or train.beta, or look at these groups with `gpo-data show`"
            )
        optimizer.step()
        schedule: Any = self.lr_schedulers()
        schedule.step()
        if self.policy.reference_moves and self.settings.reference_update == "ema":
            self.policy.follow(self.settings.reference_decay)
        samples = (
            sum(len(group.members) for group in batch) * self.settings.timesteps_per_image * self.trainer.world_size
        )
        now = time.monotonic()
        totals |= {"grad_norm": norm, "samples_per_s": samples / (now - self._clock)}
        self._clock = now
        self.log_dict(totals, prog_bar=True, batch_size=len(batch))

    def _over_ranks(self, totals: dict[str, float]) -> dict[str, float]:
        """Their means over the ranks, in one message: rules stop a run by them, and each rank has other groups."""
        if self.trainer.world_size == 1:
            return totals
        mine = torch.tensor([*totals.values()], dtype=torch.float64, device=self.device)
        return dict(zip(totals, self.trainer.strategy.reduce(mine, reduce_op="mean").tolist(), strict=True))

    def group_backward(self, group: TrainGroup, scale: float = 1.0, last: bool = True) -> dict[str, float]:
        """Add scale * dL/dtheta of one group to the gradients; what is worth logging."""
        noise, most = self.noise_of(self.current_epoch, group), self.most(len(group.members))
        if self.settings.objective == "sft":
            return self._sft_backward(group, noise, scale, last, most)
        s, (k, n) = self.settings, noise.u.shape
        known = self._known(group, noise, most)
        before: Tensor | None = None
        if self.old is not None:
            before = self.old.look_up(self.current_epoch, self.data.position.digest, group).flatten().to(self.device)
        advantages, rewards = group.advantages.to(self.device), group.rewards.to(self.device)
        step = self.global_step if self._trainer else 0

        def terms(one: Compared) -> Terms:
            return _terms(one.each(Tensor.double), advantages, rewards, step)

        gate = None if group.kl_weights is None else group.kl_weights.to(self.device).repeat(k)

        def ask(rows: slice) -> Compared:
            found = self._compared(group, noise, rows, known)
            if before is not None:
                found = found.against(before[rows]) if s.anchored else found.replace(old=before[rows])
            return found if gate is None else found.replace(kl_weight=gate[rows])

        unit = self.objective.unit(s)
        losses, found = gradcache.backward(
            ask,
            gradcache.GroupLoss(
                lambda one: sample_loss(self.objective, terms(one), s),
                lambda some: penalty(some.distance, s.kl, unit, some.kl_weight),
            ),
            k,
            n,
            s.micro_batch_size,
            lambda loss, ends: self._backward(loss * scale, last and ends),
            most,
        )
        samples = [terms(found.each(lambda x, j=j: x[j])) for j in range(k)]  # type: ignore[misc]
        return self._watched(losses, found, advantages, samples)

    def _known(self, group: TrainGroup, noise: NoiseSamples, most: int) -> Tensor | None:
        """The reference's errors [k * n], where those alone are needed: asked for the whole group, or looked up."""
        if self.settings.kl or self.objective.predictions or not self.objective.reference:
            return None
        return self.reference_errors(group, noise, most).flatten().to(self.device)

    def _compared(self, group: TrainGroup, noise: NoiseSamples, rows: slice, known: Tensor | None) -> Compared:
        """The numbers of `rows`; `known`: see `_known`."""
        if known is not None:
            s = self.policy.errors(group, noise, rows) - known[rows]
            return Compared(s, torch.zeros_like(s), known[rows])
        if self.compares:
            mix = self.settings.interpolation if self.objective.predictions else None
            return self.policy.compared(group, noise, rows, mix)
        s = self.policy.errors(group, noise, rows)
        return Compared(s, torch.zeros_like(s))

    def _sft_backward(
        self, group: TrainGroup, noise: NoiseSamples, scale: float, last: bool, most: int
    ) -> dict[str, float]:
        count, total = noise.u.numel(), 0.0
        its = list(gradcache.parts(slice(0, count), self.settings.micro_batch_size, len(noise.u) * most))
        for position, part in enumerate(its, 1):
            errors = self.policy.errors(group, noise, gradcache.filled(part))[: part.stop - part.start]
            self._backward(errors.sum() * scale / count, last and position == len(its))
            total += errors.sum().item() / count
        return {"loss": total}

    def _backward(self, loss: Tensor, last: bool) -> None:
        """Ranks exchange gradients once a step, at its last chunk."""
        waits: AbstractContextManager[None] = nullcontext()
        if not self._trainer:
            loss.backward()
            return
        strategy: Any = self.trainer.strategy
        if not last and hasattr(strategy, "block_backward_sync"):
            waits = strategy.block_backward_sync()
        with waits:
            self.manual_backward(loss)

    def _watched(self, losses: Tensor, found: Compared, advantages: Tensor, samples: list[Terms]) -> dict[str, float]:
        """Loss, s of the better and the worse half, and what the objective has to say, averaged over noise samples."""
        s, weight = found.s, advantages.to(found.s.dtype)
        better, worse = s[:, weight > 0].mean(), s[:, weight < 0].mean()
        name = "error_diff" if self.compares else "error"  # without a reference s is the error itself
        shown = {"loss": losses.mean().item(), name: s.mean().item()}
        shown |= {f"{name}/above_mean": better.item(), f"{name}/below_mean": worse.item()}
        told = [self.objective.watch(one, self.settings) for one in samples]
        shown |= {name: sum(one[name] for one in told) / len(told) for name in told[0]}
        if self.settings.kl:
            shown["kl"] = found.distance.mean().item()
        if found.kl_weight is not None:
            shown["kl_gated"] = found.kl_weight.mean().item()
        if self.settings.clip_range:
            far = [clipped(one, self.settings.clip_range)[1].double().mean().item() for one in samples]
            shown["clipped_share"] = sum(far) / len(far)
        return shown

    def _clip(self, optimizer: Any) -> float:
        """Clip the gradient norm at `max_grad_norm` (0: only measure it); the norm before. In units of the error."""
        s = self.settings
        unit = self.objective.unit(s) if s.objective == "gpo" else 1.0
        largest = s.max_grad_norm * unit or math.inf
        norm: Any = torch.nn.utils.clip_grad_norm_(self.policy.trainable(), largest)
        whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of sharded weights: over all ranks
        return float(whole) / unit


def _terms(one: Compared, advantages: Tensor, rewards: Tensor, step: int) -> Terms:
    """What the objective sees of a noise sample."""
    error = one.s if one.reference is None else one.s + one.reference
    old = None if one.old is None else error - one.old
    spreads = None if one.positive is None or one.negative is None else (one.positive, one.negative)
    return Terms(one.s, advantages, rewards, one.reference, one.distance, old, one.t, spreads, step)


def learning_rate_share(step: int, settings: Train) -> float:
    """What warm-up and decay leave of `learning_rate` at an optimiser step, counted from 0."""
    warm = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    return warm / math.sqrt(1 + step / settings.decay_steps) if settings.decay_steps else warm
