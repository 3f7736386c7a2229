"""Drawing: our pipeline against the loop a user would write by hand, same model, precision, steps and OCR, in one run.

By hand: for each prompt, `pipe(prompt, num_images_per_prompt=G)`, OCR inline, `wds.ShardWriter`. Ours: `gpo-data
shards`' own generator, batches across prompts, measuring and writing beside the drawing. The two take turns; the
figure is the ratio of the medians.

    python -m tests.bench.draw [--prompts 32] [--rounds 2] [--group_size 32]
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from rich.console import Console

from gpo_data import evaluators, hardware, models, recipe
from gpo_data.generation.generate import draw
from gpo_data.generation.plan import plan
from gpo_data.lake.manifest import settle

RECIPE = Path(__file__).parents[2] / "recipes" / "text-tiny.yaml"


def by_hand(made: recipe.Recipe, ocr: object, folder: Path) -> None:
    sampler, dtype = made.sampler, settle(made).sampler.dtype
    pipe = StableDiffusion3Pipeline.from_pretrained(models.resolve(made.model), dtype=getattr(torch, dtype))
    pipe.set_progress_bar_config(disable=True)
    with wds.ShardWriter(str(folder / "%06d.tar"), maxcount=8, verbose=0) as writer:
        for shard in plan(made):
            for group in shard.groups:
                images = pipe(
                    group.prompt.text,
                    num_images_per_prompt=made.group_size,
                    generator=[torch.Generator().manual_seed(s) for s in group.seeds],
                    num_inference_steps=sampler.num_inference_steps,
                    guidance_scale=sampler.guidance_scale,
                    height=sampler.height,
                    width=sampler.width,
                    max_sequence_length=sampler.max_sequence_length or 256,
                ).images
                read = ocr.measure([np.asarray(i) for i in images], [group.prompt.target] * len(images))  # type: ignore[attr-defined]
                sample: dict[str, Any] = {"__key__": group.key, "json": {"prompt": group.prompt.text, "read": read}}
                for member, image in enumerate(images):
                    sample[f"{member:02d}.png"] = png(image)
                writer.write(sample)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--group_size", type=int, default=32)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"by hand": [], "gpo-data": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            made = recipe.load(
                RECIPE,
                [
                    "--lake",
                    scratch,
                    "--task.num_prompts",
                    str(options.prompts),
                    "--group_size",
                    str(options.group_size),
                ],
            )
            ocr = next(e for e in evaluators.build(made) if e.name == "ocr")
            ocr.measure([np.zeros((64, 64, 3), np.uint8)], [{}])  # both sides start with the reader loaded
            started = time.perf_counter()
            by_hand(made, ocr, Path(scratch))
            seconds["by hand"].append(time.perf_counter() - started)
            started = time.perf_counter()
            draw(made, Console(quiet=True))
            seconds["gpo-data"].append(time.perf_counter() - started)
    members = options.prompts * options.group_size
    for name, times in seconds.items():
        print(
            f"{name:10s} {members / statistics.median(times):6.1f} images/s  (seconds: {[round(t, 1) for t in times]})"
        )
    ratio = statistics.median(seconds["by hand"]) / statistics.median(seconds["gpo-data"])
    print(
        f"ratio      {ratio:6.2f}  ({members} images a round, {hardware.describe('cpu', settle(made).sampler.dtype)})"
    )


if __name__ == "__main__":
    main()
