"""Policy and reference: what trains, what it is compared with, and the noise samples at which both are asked.

For a group with latents x_0 [n, C, h, w], sample j gives (t_j, e_j), and the error of a denoiser f is

    err_ij = mean over elements || y - f(x_t, t, c) ||^2,   x_t = noise(x_0, e, t),   y = target(x_0, e, t)

The reference is the same network with its adapters off, a frozen copy, or its errors stored before the first step. If
it is to follow the policy under LoRA, it is the same network with a second set of adapters, whose matrices are those of
the policy at an iteration's start, or their average over steps: A and B each by itself, not their product.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from gpo_data import hardware, models
from gpo_data.errors import UsageError
from gpo_data.lake.reader import TrainGroup
from gpo_data.models import Conditioning, Model
from gpo_data.recipe import Sampler, Train
from gpo_train.noise import NoiseSamples

POLICY, REFERENCE = "default", "reference"  # sets of adapters; PEFT's files know the first


def open_for_training(folder: Path, sampler: Sampler, settings: Train) -> Model:
    """The model in the precision that trains: float32 master weights, or, under LoRA, a base in bfloat16."""
    half = settings.tuning == "lora" and settings.precision == "bfloat16"
    return models.load(folder, dataclasses.replace(sampler, dtype="bfloat16" if half else "float32"), for_training=True)


@dataclass(frozen=True)
class Compared:
    """Numbers of (noise sample, member) rows, [.] each, float32; only `s` and `distance` carry gradients.

    s: the policy's error less the reference's; its own where no reference is asked. distance: ||f_theta - f_ref||^2, 0
    where only errors of the reference are known. reference: its error. t: the noise level. positive, negative: mean
    |y - f| of f = b f_theta + (1 - b) f_ref and of f = (1 + b) f_ref - b f_theta, where they are asked for. old: the
    error of the policy as it began the iteration, where that is not the reference.
    """

    s: Tensor
    distance: Tensor
    reference: Tensor | None = None
    t: Tensor | None = None
    positive: Tensor | None = None
    negative: Tensor | None = None
    old: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Compared:
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Compared(*(None if value is None else change(value) for value in values))  # type: ignore[arg-type]

    def replace(self, **values: Tensor) -> Compared:
        return dataclasses.replace(self, **values)

    @staticmethod
    def cat(parts: Sequence[Compared]) -> Compared:
        named = {field.name: [getattr(part, field.name) for part in parts] for field in dataclasses.fields(Compared)}
        joined: Any = {name: None if values[0] is None else torch.cat(values) for name, values in named.items()}
        return Compared(**joined)


class Policy(nn.Module):
    """The trainable denoiser of `model` and its reference.

    Full fine-tuning trains every parameter of the denoiser; LoRA adds PEFT adapters to the family's `lora_targets`.
    The rest of the pipeline (text encoders, autoencoder) is not part of the module and never moves. Checkpoints hold
    what trains (and a frozen reference that follows it), never the base model's weights under LoRA.
    """

    def __init__(self, model: Model, settings: Train) -> None:
        super().__init__()
        self.model, self.settings = model, settings
        denoiser: Any = model.denoiser
        if getattr(denoiser, "peft_config", None):
            # A second adapter would silence the first, and what is saved would be relative to both.
            raise UsageError(
                "policy: expected whole weights to train on, found a LoRA; merge it into the model (diffusers: "
                "load_lora_weights, fuse_lora, unload_lora_weights, save_pretrained) and set model: to that folder"
            )
        denoiser.requires_grad_(False)
        # A frozen copy is made before adapters are added: it is the model as it came.
        self.frozen = copy.deepcopy(denoiser).eval() if settings.reference == "frozen" else None
        self.second = settings.reference == "adapters" and settings.reference_update in ("iteration", "ema")
        if settings.tuning == "lora":
            lora = LoraConfig(
                r=settings.lora_rank,
                lora_alpha=settings.lora_alpha or settings.lora_rank,
                target_modules=list(model.lora_targets),
                init_lora_weights="gaussian",
            )
            denoiser.add_adapter(lora, POLICY)
            if self.second:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Already found a `peft_config`")  # PEFT: two are wanted here
                    denoiser.add_adapter(lora, REFERENCE)
                denoiser.set_adapter(POLICY)  # and what trains
        else:
            denoiser.requires_grad_(True)
        for name, parameter in denoiser.named_parameters():
            if parameter.requires_grad or of_reference(name):
                parameter.data = parameter.data.float()  # half-precision weights cannot take steps of 1e-5
        if settings.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        if settings.compile:
            denoiser.compile(dynamic=False)
        self.denoiser = denoiser.train()
        if self.second:
            self.follow(0.0)
        nn.Module.register_state_dict_post_hook(self, _drop_what_never_changes)
        nn.Module.register_load_state_dict_post_hook(self, _allow_what_was_dropped)

    def __deepcopy__(self, memo: dict[int, Any]) -> Policy:
        # The average of weights copies the module; the pipeline around it is shared, not copied.
        memo[id(self.model)] = self.model
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__dict__ = copy.deepcopy(self.__dict__, memo)
        return new

    @classmethod
    def load(cls, model: str, settings: Train, sampler: Sampler | None = None) -> Policy:
        """The policy of a model: `tiny`, a diffusers folder, or a hub id. Raises UsageError.

        Args:
            sampler: where and in which precision it draws; None takes what this machine does best.
        """
        sampler = sampler or Sampler()
        device = hardware.device_of(sampler.device)
        precision: Any = hardware.dtype_for(settings.precision, device, "train.precision")
        settings = dataclasses.replace(
            settings, precision=precision, reference_update=settings.reference_update or "never"
        )
        return cls(open_for_training(models.resolve(model), sampler, settings), settings)

    def error_difference(self, group: TrainGroup, noise: NoiseSamples) -> Tensor:
        """s [k, n]: the policy's error less the reference's, of every sample and member, with the policy's gradient."""
        if self.settings.reference == "stored":
            raise UsageError("train.reference: expected adapters (LoRA) or frozen, found stored: only a run has them")
        return self.compared(group, noise).s.view(noise.u.shape)

    def saved_names(self) -> set[str]:
        """Names of the parameters that a checkpoint holds."""
        follows = self.settings.reference_update != "never"
        return {
            name
            for name, p in self.named_parameters()
            if p.requires_grad or (follows and name.startswith("frozen.")) or of_reference(name)
        }

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.denoiser.parameters() if p.requires_grad]

    def errors(
        self, group: TrainGroup, noise: NoiseSamples, rows: slice = slice(None), denoiser: nn.Module | None = None
    ) -> Tensor:
        """err of the flattened (noise sample, member) `rows`: [k * n][rows], float32."""
        target, x_t, t, conditioning = self._noised(group, noise, rows)
        return _mean_square(target - self._predict(denoiser or self.denoiser, x_t, t, conditioning))

    def compared(
        self, group: TrainGroup, noise: NoiseSamples, rows: slice = slice(None), mix: float | None = None
    ) -> Compared:
        """The numbers of `rows`; the reference is asked now, without gradients. `mix`: b of implicit predictions."""
        target, x_t, t, conditioning = self._noised(group, noise, rows)
        with torch.no_grad(), self.as_reference() as reference:
            theirs = self._predict(reference, x_t, t, conditioning)
        ours = self._predict(self.denoiser, x_t, t, conditioning)
        error = _mean_square(target - theirs)
        found = Compared(_mean_square(target - ours) - error, _mean_square(ours - theirs), error)
        if mix is None:
            return found
        with torch.no_grad():
            beyond = mix * (ours - theirs)
            spreads = [(target - theirs - side).abs().flatten(1).mean(1) for side in (beyond, -beyond)]
        return found.replace(t=t.float(), positive=spreads[0], negative=spreads[1])

    def _noised(
        self, group: TrainGroup, noise: NoiseSamples, rows: slice
    ) -> tuple[Tensor, Tensor, Tensor, Conditioning]:
        """(y, x_t, t, c) of `rows`, on the denoiser's device."""
        device = next(self.denoiser.parameters()).device
        k, members = noise.u.shape
        index = torch.arange(k * members)[rows]
        which = index % members
        t = self.model.time(noise.u, self.settings.timestep_shift).flatten()[index].to(device)
        e = noise.e[index // members, which].to(device)  # shared noise is stored once, and copied for these rows alone
        x_0 = group.latents[which].to(device).float()
        conditioning: Conditioning = {
            name: value.to(device).float().expand(len(index), *value.shape)
            for name, value in group.conditioning.items()
        }
        return self.model.target(x_0, e, t), self.model.noise(x_0, e, t), t, conditioning

    def _predict(self, denoiser: nn.Module, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """f(x_t, t, c), [., C, h, w], float32."""
        with torch.autocast(x_t.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            return self.model.predict(x_t, t, conditioning, denoiser).float()

    @torch.no_grad()
    def reference_errors(self, group: TrainGroup, noise: NoiseSamples) -> Tensor:
        """The reference's errors, [k, n], on the CPU."""
        with self.as_reference() as reference:
            return self.present_errors(group, noise, reference)

    @torch.no_grad()
    def present_errors(self, group: TrainGroup, noise: NoiseSamples, denoiser: nn.Module | None = None) -> Tensor:
        """The errors of the policy as it is now, or of another denoiser, [k, n], on the CPU."""
        size, (k, members) = self.settings.micro_batch_size, noise.u.shape
        parts = [
            self.errors(group, noise, slice(start, start + size), denoiser) for start in range(0, k * members, size)
        ]
        return torch.cat(parts).view(k, members).cpu()

    @contextmanager
    def as_reference(self) -> Iterator[nn.Module]:
        """The reference network. With `stored` it is the policy itself, asked before it moves, or an adapter's base."""
        if self.frozen is not None and self.settings.reference_offload:
            try:
                yield self.frozen.to(next(self.denoiser.parameters()).device)
            finally:
                self.frozen.to("cpu")
        elif self.frozen is not None:
            yield self.frozen
        elif self.second:
            denoiser: Any = self.denoiser
            denoiser.set_adapter(REFERENCE)
            try:
                yield self.denoiser
            finally:
                denoiser.set_adapter(POLICY)
        elif self.settings.reference == "adapters" or (
            self.settings.tuning == "lora" and self.settings.reference_update == "never"
        ):
            self.denoiser.disable_adapters()
            try:
                yield self.denoiser
            finally:
                self.denoiser.enable_adapters()
        else:
            yield self.denoiser

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """reference <- decay reference + (1 - decay) policy, of a frozen copy or of the second set of adapters."""
        for ours, theirs in self._followed():
            ours.lerp_(theirs.to(ours), 1 - decay)

    def _followed(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(parameter of the reference, of the policy)."""
        if self.frozen is not None:
            yield from zip(self.frozen.parameters(), self.denoiser.parameters(), strict=True)
            return
        named = dict(self.denoiser.named_parameters())
        for name, ours in named.items():
            if of_reference(name):
                yield ours, named[name.replace(f".{REFERENCE}.", f".{POLICY}.")]

    @property
    def reference_moves(self) -> bool:
        """Whether there is a reference beside the policy, that `follow` moves."""
        return self.second or (self.frozen is not None and self.settings.reference_update in ("iteration", "ema"))


def of_reference(name: str) -> bool:
    """Whether a parameter of the denoiser is of the second set of adapters."""
    return "lora_" in name and f".{REFERENCE}." in name


def _mean_square(difference: Tensor) -> Tensor:
    """[B, ...] -> [B]"""
    return (difference**2).flatten(1).mean(1)


def _drop_what_never_changes(module: nn.Module, state: dict[str, Any], prefix: str, local: dict[str, Any]) -> None:
    assert isinstance(module, Policy)
    kept = module.saved_names()
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name not in kept:
            state.pop(prefix + name, None)


def _allow_what_was_dropped(module: nn.Module, incompatible: Any) -> None:
    assert isinstance(module, Policy)
    kept = module.saved_names()
    incompatible.missing_keys[:] = [k for k in incompatible.missing_keys if any(k.endswith(name) for name in kept)]
