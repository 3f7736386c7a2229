"""The forward process of rectified flow: a straight line from the latents to the noise.

    x_t = (1 - t) x_0 + t e,   y = e - x_0,   t in [0, 1] is the scheduler's sigma

Source: Flow Matching (arXiv 2210.02747), Rectified Flow (arXiv 2209.03003), as diffusers'
FlowMatchEulerDiscreteScheduler has them.
"""

from __future__ import annotations

from pathlib import Path

import torch

from gpo_data.errors import UsageError
from gpo_data.models.pipeline import Pipeline
from gpo_data.recipe import Sampler

# Linear layers of a block of two streams, picture and text, which get adapters: attention and MLP of both.
JOINT_BLOCK = (
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context.net.0.proj", "ff_context.net.2"),
)


class Flow(Pipeline):
    def __init__(self, folder: Path, sampler: Sampler, for_training: bool = False) -> None:
        super().__init__(folder, sampler, for_training)
        config = self.pipe.scheduler.config
        if not config.get("use_flow_sigmas", "shift" in config):
            raise UsageError(
                f"model {folder}: scheduler {type(self.pipe.scheduler).__name__}: expected one of rectified flow, "
                f"FlowMatchEulerDiscreteScheduler or one with use_flow_sigmas"
            )
        if for_training and config.get("use_dynamic_shifting") and type(self).time is Flow.time:
            raise UsageError(
                f"model {folder}: scheduler: use_dynamic_shifting: training asks {type(self).__name__} at noise "
                f"levels of a shift that is one number; set it to false there, and shift to what it draws with"
            )

    def noise(self, x_0: torch.Tensor, e: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t for t [B] in [0, 1]; the interpolation of FlowMatchEulerDiscreteScheduler.scale_noise."""
        t = t.view(-1, *[1] * (x_0.ndim - 1)).to(x_0.dtype)
        return t * e + (1.0 - t) * x_0

    def target(self, x_0: torch.Tensor, e: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return e - x_0

    def time(self, u: torch.Tensor, shifted: bool = True) -> torch.Tensor:
        """shift u / (1 + (shift - 1) u), as FlowMatchEulerDiscreteScheduler shifts its sigmas; else u itself."""
        if not shifted:
            return u
        config = self.pipe.scheduler.config
        shift = config.flow_shift if "flow_shift" in config else config.shift  # a DPM-Solver's name for it
        t: torch.Tensor = shift * u / (1 + (shift - 1) * u)
        return t
