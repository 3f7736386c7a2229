"""What every family does alike: open a diffusers folder, draw through its `__call__`, decode.

Drawing goes through the pipeline's own `__call__`, with one CPU generator a member, so a member is what anybody gets
from `pipe(prompt, generator=torch.Generator().manual_seed(seed))`. The unconditional half of classifier-free guidance
is encoded once from `negative_prompt`; it is needed to draw, and, where it is stored, to train without the prompt.

Loaded for training, a pipeline is its denoiser and scheduler, on the CPU: `predict`, `noise`, `target` and `time` work,
and Lightning moves the denoiser to the device of each rank. memory.py has what is done to save memory.

A family names its diffusers class and says how it encodes, what else `__call__` takes and what its denoiser is given;
its forward process is ddpm.py's or flow.py's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

from gpo_data import hardware
from gpo_data.models import Conditioning, cpu, memory, truncation
from gpo_data.models.folder import variant_of
from gpo_data.models.weights import weight_files
from gpo_data.recipe import Sampler

# A folder may hold another tokenizer class than the signature's; diffusers says so at every load.
logging.getLogger("diffusers.pipelines.pipeline_utils").setLevel(logging.ERROR)
# A policy's LoRA holds the denoiser alone; diffusers remarks on each text encoder that it does not hold.
logging.getLogger("diffusers.loaders.lora_base").setLevel(logging.ERROR)
# Pipelines count the tokens of a prompt beyond what they read, to say so; the tokenizer warns of that as of an error.
logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
truncation.say_once()
# The caller says that it loads; bars of a millisecond each are noise.
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()


class Pipeline:
    """The base of the families.

    Class attributes:
        pipeline_class: of diffusers.
        denoiser_name: the pipeline's own name of the denoiser, `transformer` or `unet`.
        open_with: arguments of `from_pretrained` besides the dtype.
        large_text_encoder: the pipeline's own name of the one worth 8 bits.
        multiple_of: pixels a side, whatever the networks could do, that diffusers insists on.
        starting_dtype: of the noise that `__call__` starts from, where it is not the sampler's.
        whole_steps: whether a time is one of the scheduler's training steps, and no number between two.
        has_unconditional: whether guidance is a second, unconditional call, and there is something to tell it.
        told: what of `sampler:` the denoiser is told by an embedding of its own, in drawing and in training.
        lora_targets: names of the denoiser's linear layers that get adapters, as PEFT matches them: by suffix.
    """

    pipeline_class: ClassVar[Any]
    denoiser_name: ClassVar[str] = "transformer"
    open_with: ClassVar[dict[str, Any]] = {}
    large_text_encoder: ClassVar[str | None] = None
    multiple_of: ClassVar[int] = 8
    starting_dtype: ClassVar[torch.dtype | None] = None
    has_unconditional: ClassVar[bool] = True
    whole_steps: bool = False
    told: tuple[str, ...] = ()
    lora_targets: tuple[str, ...]

    def __init__(self, folder: Path, sampler: Sampler, for_training: bool = False) -> None:
        self.folder, self.sampler = folder, sampler
        self.device = hardware.torch_device(sampler.device)
        self.dtype: torch.dtype = getattr(torch, hardware.dtype_for(sampler.dtype, str(self.device)))
        how = dict(self.open_with)
        if variant := variant_of(folder, self.denoiser_name):
            how["variant"] = variant
        if for_training:
            how |= memory.load_denoiser_only(folder)
        elif sampler.text_encoder_8bit:
            how |= memory.in_8_bit(self.large_text_encoder, folder)
        self.pipe = self.pipeline_class.from_pretrained(folder, dtype=self.dtype, **how)
        self.pipe.set_progress_bar_config(disable=True)
        self._negative: Conditioning | None = None
        cpu.quicken(self.denoiser)
        if sampler.attention_backend is not None:
            memory.set_attention(self.denoiser, sampler.attention_backend, for_training)
        if for_training:
            self.pipe.vae = None
            return
        memory.enable_vae_slicing(self.pipe.vae, sampler.vae_slicing, sampler.vae_tiling)
        self.place(self.device)
        if sampler.compile:
            self.denoiser.compile()
        if self.device.type == "cpu":
            self.pipe.vae.to(memory_format=torch.channels_last)  # convolutions then need no reordering

    @property
    def denoiser(self) -> torch.nn.Module:
        denoiser: torch.nn.Module = getattr(self.pipe, self.denoiser_name)
        return denoiser

    def denoiser_files(self) -> list[Path]:
        """The model's own weights of the denoiser."""
        return weight_files(self.folder / self.denoiser_name)

    def place(self, device: torch.device) -> None:
        """Move the networks to `device`; the text encoders stay where `sampler.text_encoders` has them."""
        memory.place(
            self.pipe, device, but=[] if self.sampler.text_encoders == "device" else memory.text_encoders_of(self.pipe)
        )

    def starting_noise(self, seeds: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The noise [n, *shape], float32, of variance 1, from which `draw` in `dtype` makes the members of `seeds`."""
        kind = self.starting_dtype or dtype  # the same generator gives other numbers in another precision
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        return torch.cat([torch.randn((1, *shape), generator=g, dtype=kind) for g in generators]).float()

    def encode(self, prompts: list[str]) -> Conditioning:
        raise NotImplementedError

    @contextmanager
    def encoding(self) -> Iterator[torch.device]:
        """The device on which the text encoders are while prompts are embedded."""
        encoders = memory.text_encoders_of(self.pipe)
        if not encoders:
            raise RuntimeError("the model was loaded for training, without text encoders; load it with `models.load`")
        if self.sampler.text_encoders == "cpu":
            yield torch.device("cpu")
            return
        if self.sampler.text_encoders == "device":
            yield self.device
            return
        try:
            for encoder in encoders:
                encoder.to(self.device)
            yield self.device
        finally:
            for encoder in encoders:
                encoder.to("cpu")

    def encode_negative(self) -> Conditioning:
        """The unconditional half, [1, ...] each, under the names of `encode`."""
        return self.encode([self.sampler.negative_prompt])

    def _negative_once(self) -> Conditioning:
        if self._negative is None:
            self._negative = self.encode_negative()
        return self._negative

    def unconditional(self) -> Conditioning:
        """The unconditional half as a group stores it, without a batch axis. What it lacks is as with a prompt."""
        return {name: value[0].cpu().clone() for name, value in self._negative_once().items()}

    def call_arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        """What `__call__` takes of a batch's conditioning, with the unconditional half if guidance is on."""
        if self.sampler.guidance_scale <= 1:
            return dict(conditioning)
        size = len(next(iter(conditioning.values())))
        negative = {f"negative_{k}": v.to(self.device) for k, v in self._negative_once().items()}
        return conditioning | {k: v.expand(size, *v.shape[1:]) for k, v in negative.items()}

    def unpack(self, latents: torch.Tensor) -> torch.Tensor:
        """The pipeline's final latents as [B, C, h, w]."""
        return latents

    @torch.inference_mode()
    def draw(
        self, conditioning: Conditioning, seeds: list[int], on_step: Callable[[], None] | None = None
    ) -> torch.Tensor:
        def step_end(pipe: object, step: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
            if on_step:
                on_step()
            return tensors

        output = self.pipe(
            **self.call_arguments({k: v.to(self.device) for k, v in conditioning.items()}),
            height=self.sampler.height,
            width=self.sampler.width,
            num_inference_steps=self.sampler.num_inference_steps,
            guidance_scale=self.sampler.guidance_scale,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="latent",
            callback_on_step_end=step_end,
            callback_on_step_end_tensor_inputs=[],
        )
        return self.unpack(output.images).cpu()

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> list[np.ndarray]:
        vae = self.pipe.vae
        latents = latents.to(self.device, vae.dtype) / vae.config.scaling_factor
        if (shift := vae.config.get("shift_factor")) is not None:
            latents = latents + shift
        at_once = 16 if self.device.type == "cpu" else len(latents)  # what a cache still holds parts of
        images = torch.cat([vae.decode(part, return_dict=False)[0] for part in latents.split(at_once)])
        pictures = self.pipe.image_processor.postprocess(images.float(), output_type="np")
        return list((pictures * 255).round().astype(np.uint8))

    @torch.inference_mode()
    def encode_images(self, images: list[np.ndarray]) -> torch.Tensor:
        """The inverse of `decode`, as far as the autoencoder has one: [B, C, h, w], the mode of its posterior."""
        vae = self.pipe.vae
        pixels = self.pipe.image_processor.preprocess([Image.fromarray(image) for image in images])
        encoded = vae.encode(pixels.to(self.device, vae.dtype))
        latents: torch.Tensor = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
        if (shift := vae.config.get("shift_factor")) is not None:
            latents = latents - shift
        latents = latents * vae.config.scaling_factor
        return latents.to(self.dtype).cpu()
