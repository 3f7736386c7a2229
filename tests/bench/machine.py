"""How close to the machine: `python -m tests.bench.machine [--rounds 5]`, in each precision that it has in hardware.

1. the machine's own product: GFLOP/s of a square matrix product, n = 1024
2. drawing, a batch of recipes/text-tiny.yaml by `Model.draw`, and decoding it
3. training, a step of it through GPOModule and Lightning: forward, backward, AdamW, with stored reference errors

GFLOP are counted once, by torch's FlopCounterMode, on diffusers' own modules; what is measured is ours. The share is
GFLOP/s over the product's, which moves the least memory for its arithmetic: a small network reaches less of it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from gpo_data import hardware, models, recipe
from gpo_data.generation.generate import draw
from gpo_data.lake import catalog
from gpo_data.lake.reader import Reader
from gpo_data.lake.snapshot import take_snapshot
from gpo_train.lightning_fixes import quiet
from gpo_train.settings import train_settings
from tests.bench.train import RECIPE, ours

STEPS = 8  # of training; the first two are not counted


def gflop(call: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops()) / 1e9


def seconds(call: Callable[[], Any], rounds: int) -> float:
    call()  # chooses kernels, packs weights
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def product(dtype: str, rounds: int, n: int = 1024) -> float:
    """GFLOP/s."""
    a, b = torch.randn(2, n, n).to(getattr(torch, dtype))
    return 2 * n**3 / 1e9 / seconds(lambda: a @ b, 4 * rounds)


def work(made: recipe.Recipe) -> tuple[float, float, float]:
    """GFLOP of a sample's forward pass, of its forward and backward pass, and of decoding a picture."""
    pipe = StableDiffusion3Pipeline.from_pretrained(models.resolve(made.model), dtype=torch.float32)
    asked = {"prompt_embeds": torch.randn(1, 15, 128), "pooled_prompt_embeds": torch.randn(1, 128)}
    latents = torch.randn(1, 16, 8, 8)

    def forward() -> torch.Tensor:
        said = pipe.transformer(latents, asked["prompt_embeds"], asked["pooled_prompt_embeds"], torch.ones(1)).sample
        assert isinstance(said, torch.Tensor)
        return said

    with torch.no_grad():
        one, decode = gflop(forward), gflop(lambda: pipe.vae.decode(latents))
    return one, gflop(lambda: forward().sum().backward()), decode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    quiet()
    hardware.take_threads()
    print(hardware.describe("cpu", hardware.dtype_for("auto", "cpu")))
    forward, both, decode = work(recipe.load(RECIPE))
    for dtype in ("float32", *(["bfloat16"] if hardware.bfloat16_units("cpu") else [])):
        own = product(dtype, rounds)
        print(f"{dtype:<9} the machine's product     {own:7.0f} GFLOP/s")
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            made = recipe.load(
                RECIPE,
                [
                    "--lake",
                    f"{folder}/lake",
                    "--task.num_prompts",
                    "8",
                    "--sampler.dtype",
                    dtype,
                    "--sampler.device",
                    "cpu",
                    "--train.precision",
                    dtype,
                ],
            )
            sampler = made.sampler
            model = models.load(models.resolve(made.model), sampler)
            asked = models.repeat(model.encode(['a red sign that says "KITE"']), [sampler.batch_size])
            seeds = list(range(sampler.batch_size))
            latents = model.draw(asked, seeds)
            samples = made.group_size * train_settings(made).timesteps_per_image
            for name, count, each, taken in (
                (
                    "drawing, pictures",
                    len(seeds),
                    forward * sampler.num_inference_steps,
                    seconds(lambda: model.draw(asked, seeds), rounds),  # noqa: B023
                ),
                ("decoding, pictures", len(seeds), decode, seconds(lambda: model.decode(latents), rounds)),  # noqa: B023
                ("training, samples", samples, both, step(made, folder)),
            ):
                rate = count * each / taken
                print(
                    f"{dtype:<9} {name:<24} {rate:9.0f} GFLOP/s {100 * rate / own:6.0f}% of the product"
                    f"{count / taken:9.1f} /s"
                )
            os.chdir("/")


def step(made: recipe.Recipe, folder: str) -> float:
    """Seconds."""
    draw(made, Console(quiet=True))
    reader = Reader(made.lake, take_snapshot(catalog.connect(made.lake), str(made.name)))
    return statistics.median(ours(made, reader, Path(folder) / "run", STEPS).steps[2:])


if __name__ == "__main__":
    main()
