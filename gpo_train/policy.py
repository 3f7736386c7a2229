"""Policy and reference: what trains, what it is compared with, and the noise samples at which both are asked.

For a group with latents x_0 [n, C, h, w], sample j gives (t_j, e_j), and the error of a denoiser f is

    err_ij = mean over elements || y - f(x_t, t, c) ||^2,   x_t = noise(x_0, e, t),   y = target(x_0, e, t)

With `train.guidance_scale` w the prediction that is trained, the reference's too, is that of a sampler with guidance:
in the place of f(x_t, t, c)

    f(x_t, t, u) + w (f(x_t, t, c) - f(x_t, t, u))        u: the dataset's unconditional embedding

in one call of both halves, with gradients through both (as AWM's code; Flow-GRPO's detaches f(x_t, t, u), DGPO and
DiffusionNFT train without guidance). A sample whose caption is dropped has c = u: there it is f(x_t, t, u), value and
gradient.

The reference is the same network with its adapters off, a frozen copy, or its errors stored before the first step. If
it is to follow the policy under LoRA, it is the same network with a second set of adapters, whose matrices are those of
the policy at an iteration's start, or their average over steps: A and B each by itself, not their product. With
`kl_reference: base` it is the base that is asked, and the policy at an iteration's start is known by its errors alone.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from gpo_data import hardware, models
from gpo_data.errors import UsageError
from gpo_data.lake.reader import TrainGroup
from gpo_data.models import Model
from gpo_data.recipe import Sampler, Train
from gpo_train import gradcache
from gpo_train.noise import NoiseSamples
from gpo_train.rows import Asked, Compared, conditioning_of

POLICY, REFERENCE = "default", "reference"  # sets of adapters; PEFT's files know the first


def open_for_training(folder: Path, sampler: Sampler, settings: Train) -> Model:
    """The model in the precision that trains: float32 master weights, or, under LoRA, a base in bfloat16."""
    half = settings.tuning == "lora" and settings.precision == "bfloat16"
    return models.load(folder, dataclasses.replace(sampler, dtype="bfloat16" if half else "float32"), for_training=True)


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
                "policy: expected whole weights to train on, found a LoRA; merge it into the model (`gpo-train export "
                "--merge` a run's; of others diffusers: load_lora_weights, fuse_lora, unload_lora_weights, "
                "save_pretrained), set model: to that folder, and leave policy: out"
            )
        denoiser.requires_grad_(False)
        # A frozen copy is made before adapters are added: it is the model as it came.
        self.frozen = copy.deepcopy(denoiser).eval() if settings.reference == "frozen" else None
        self.second = settings.reference == "adapters" and self.follows
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
        return {
            name
            for name, p in self.named_parameters()
            if p.requires_grad or (self.follows and name.startswith("frozen.")) or of_reference(name)
        }

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.denoiser.parameters() if p.requires_grad]

    def errors(
        self, group: TrainGroup, noise: NoiseSamples, rows: slice = slice(None), denoiser: nn.Module | None = None
    ) -> Tensor:
        """err of the flattened (noise sample, member) `rows`: [k * n][rows], float32."""
        asked = self._asked(group, noise, rows)
        return _mean_square(asked.target - self._predict(denoiser or self.denoiser, asked))

    def compared(
        self, group: TrainGroup, noise: NoiseSamples, rows: slice = slice(None), mix: float | None = None
    ) -> Compared:
        """The numbers of `rows`; the reference is asked now, without gradients. `mix`: b of implicit predictions."""
        asked = self._asked(group, noise, rows)
        target = asked.target
        with torch.no_grad(), self.as_reference() as reference:
            theirs = self._predict(reference, asked)
        ours = self._predict(self.denoiser, asked)
        error = _mean_square(target - theirs)
        found = Compared(_mean_square(target - ours) - error, _mean_square(ours - theirs), error)
        if mix is None:
            return found
        with torch.no_grad():
            beyond = mix * (ours - theirs)
            spreads = [(target - theirs - side).abs().flatten(1).mean(1) for side in (beyond, -beyond)]
        return found.replace(t=asked.t.float(), positive=spreads[0], negative=spreads[1])

    def _asked(self, group: TrainGroup, noise: NoiseSamples, rows: slice) -> Asked:
        device = next(self.denoiser.parameters()).device
        k, members = noise.u.shape
        index = torch.arange(k * members)[rows]
        which = index % members
        t = self.model.time(noise.u, self.settings.timestep_shift).flatten()[index].to(device)
        e = noise.e[index // members, which].to(device)  # shared noise is stored once, and copied for these rows alone
        x_0 = group.latents[which].to(device).float()
        dropped = torch.zeros(len(index), dtype=torch.bool)
        if noise.dropped is not None:
            dropped = noise.dropped[index // members]
        asked = Asked(
            self.model.target(x_0, e, t), self.model.noise(x_0, e, t), t, conditioning_of(group, dropped, device)
        )
        if self.settings.guidance_scale == 1:
            return asked
        return dataclasses.replace(asked, unconditional=conditioning_of(group, torch.ones_like(dropped), device))

    def _predict(self, denoiser: nn.Module, asked: Asked) -> Tensor:
        """f(x_t, t, c), [., C, h, w], float32, guided where that is asked for."""
        x_t, t, conditioning = asked.x_t, asked.t, asked.conditioning
        if asked.unconditional is not None:
            x_t, t = torch.cat([x_t, x_t]), torch.cat([t, t])
            conditioning = {name: torch.cat([asked.unconditional[name], value]) for name, value in conditioning.items()}
        with torch.autocast(x_t.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            said = self.model.predict(x_t, t, conditioning, denoiser).float()
        if asked.unconditional is None:
            return said
        without, prompted = said.chunk(2)
        return without + self.settings.guidance_scale * (prompted - without)

    @torch.no_grad()
    def reference_errors(self, group: TrainGroup, noise: NoiseSamples, most: int = 0) -> Tensor:
        """The reference's errors, [k, n], on the CPU."""
        with self.as_reference() as reference:
            return self.present_errors(group, noise, most, reference)

    @torch.no_grad()
    def present_errors(
        self, group: TrainGroup, noise: NoiseSamples, most: int = 0, denoiser: nn.Module | None = None
    ) -> Tensor:
        """[k, n] on the CPU, of the policy as it is now or of another denoiser; `most`: see gradcache.py."""
        size, (k, members) = self.settings.micro_batch_size, noise.u.shape
        found = [
            self.errors(group, noise, gradcache.filled(part), denoiser)[: part.stop - part.start]
            for part in gradcache.parts(slice(0, k * members), size, k * most)
        ]
        return torch.cat(found).view(k, members).cpu()

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
        elif self.settings.reference == "adapters" or (self.settings.tuning == "lora" and not self.follows):
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
        return self.second or (self.frozen is not None and self.follows)

    @property
    def follows(self) -> bool:
        """Whether what is asked as the reference is another network from time to time, and not the base."""
        return self.settings.reference_update in ("iteration", "ema") and not self.settings.anchored


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
