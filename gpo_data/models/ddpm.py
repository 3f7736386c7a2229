"""The forward process of the diffusion models with a UNet: noise added in `num_train_timesteps` discrete steps.

    x_t = a_t x_0 + s_t e,   a_t^2 = alphas_cumprod[t] = 1 - s_t^2,   t an integer in [0, num_train_timesteps)

    y = e                    prediction_type epsilon
    y = a_t e - s_t x_0      prediction_type v_prediction (arXiv 2202.00512)

The folder's scheduler is a sampler (PNDM, Euler, DDIM, ...), and some of them sample in other variables: Euler adds
sigma e to an unscaled x_0. A DDPMScheduler with the same configuration has the process that the UNet was trained on,
and its own `add_noise` and `get_velocity` are what is used here; no alpha is computed in this file.
Source: DDPM (arXiv 2006.11239), as diffusers' training scripts use it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDPMScheduler

from gpo_data.errors import UsageError
from gpo_data.models.pipeline import Pipeline
from gpo_data.recipe import Sampler

PREDICTION_TYPES = ("epsilon", "v_prediction")


class DDPM(Pipeline):
    denoiser_name = "unet"
    whole_steps = True
    # Attention and MLP of the UNet's transformer blocks.
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")

    def __init__(self, folder: Path, sampler: Sampler, for_training: bool = False) -> None:
        if sampler.max_sequence_length is not None:
            raise UsageError(
                f"sampler.max_sequence_length: expected null, found {sampler.max_sequence_length}: "
                f"the model in {folder} has no T5 encoder, and its CLIP encoders take a fixed number of tokens"
            )
        super().__init__(folder, sampler, for_training)
        config = self.pipe.scheduler.config
        self.prediction_type = config.get("prediction_type", "epsilon")
        if "beta_schedule" not in config or self.prediction_type not in PREDICTION_TYPES:
            # EDM and consistency schedulers weigh x_0 and e in other ways.
            raise UsageError(
                f"model {folder}: scheduler {type(self.pipe.scheduler).__name__} with prediction_type "
                f"{self.prediction_type}: expected one with a beta_schedule and {' or '.join(PREDICTION_TYPES)}"
            )
        if self.pipe.unet.config.time_cond_proj_dim is not None:
            raise UsageError(
                f"model {folder}: a UNet distilled for few steps with guidance as an input (LCM) is not supported; "
                f"give the model that it was distilled from"
            )
        self.process = DDPMScheduler.from_config(config)

    def noise(self, x_0: torch.Tensor, e: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t for integers t [B]."""
        x_t: torch.Tensor = self.process.add_noise(x_0, e, t)
        return x_t

    def target(self, x_0: torch.Tensor, e: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return e if self.prediction_type == "epsilon" else self.process.get_velocity(x_0, e, t)

    def time(self, u: torch.Tensor, shifted: bool = True) -> torch.Tensor:
        """The training timestep floor(u N), int64; each of the N is as likely as another, as in training: no shift."""
        steps: int = self.process.config.num_train_timesteps
        return (u * steps).long().clamp(0, steps - 1)  # a u that was rounded up to 1 is the last step too
