"""How good the tiny world is: `python -m gpo_data.tiny.accuracy [--weights DIR] [--groups 25] [--speed]`.

Tables, all on held-out words and counts:
1. rendered pictures: OCR exact, YOLO exact (the evaluators)
2. the same after the autoencoder
3. the base model by word length and by count; groups with right and wrong members
4. images/s drawn, by precision, batch size and compilation (--speed)

DIR is what `python -m gpo_data.tiny` writes. Exit code 0: done; 2: the command line is wrong.
"""

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline

from gpo_data import hardware, models
from gpo_data.errors import UsageError
from gpo_data.evaluators.build import installed
from gpo_data.tiny import WEIGHTS, YOLO_WEIGHTS
from gpo_data.tiny.reading import count_shapes, read_words
from gpo_data.tiny.render import sample_scene
from gpo_data.tiny.training import to_pictures, to_tensor

LEVELS = {"text": (2, 3, 4, 5), "count": (1, 2, 3, 4, 5, 6)}


def right(task: str, pictures: np.ndarray, targets: list[dict], yolo) -> np.ndarray:
    """bool [N]: exactly the word, or exactly the number of the asked shape."""
    if task == "text":
        return np.array([w == t["word"] for w, t in zip(read_words(pictures), targets, strict=True)])
    numbers = count_shapes(pictures, yolo, [t["shape"] for t in targets])
    return np.array([m == t["n"] for m, t in zip(numbers, targets, strict=True)])


def report(name: str, task: str, levels: list[int], ok: np.ndarray) -> None:
    by_level = defaultdict(list)
    for level, value in zip(levels, ok, strict=True):
        by_level[level].append(value)
    cells = "  ".join(f"{k}: {100 * np.mean(v):5.1f}%" for k, v in sorted(by_level.items()))
    print(f"{name:<16}{task:<7}{100 * ok.mean():5.1f}% of {len(ok)}   {cells}", flush=True)


def scenes_of(task: str, n: int, seed: int):
    """n held-out scenes, levels in turn: levels, pictures, captions, targets."""
    rng = np.random.default_rng(seed)
    levels = [LEVELS[task][i % len(LEVELS[task])] for i in range(n)]
    drawn = [sample_scene(rng, task, held=True, level=level) for level in levels]
    return levels, np.stack([d[0] for d in drawn]), [d[1] for d in drawn], [d[2] for d in drawn]


@torch.no_grad()
def draw(pipe, captions: list[str], seeds: list[int], args) -> np.ndarray:
    """Pictures uint8 [N, 64, 64, 3], one generator a picture."""
    parts = []
    for start in range(0, len(captions), args.batch):
        generators = [torch.Generator().manual_seed(s) for s in seeds[start : start + args.batch]]
        images = pipe(
            captions[start : start + args.batch],
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            generator=generators,
            max_sequence_length=args.max_sequence_length,
            output_type="np",
        ).images
        parts.append((images * 255).round().astype(np.uint8))
    return np.concatenate(parts)


def speed_table(pipe, args) -> None:
    """Images/s by precision, batch and compilation; the share of the time inside the transformer."""
    _, _, captions, _ = scenes_of("text", 128, seed=13)
    spent = [0.0]

    def timed(transformer):
        def forward(*inputs, **named):
            started = time.monotonic()
            output = transformer(*inputs, **named)
            spent[0] += time.monotonic() - started
            return output

        return forward

    original = pipe.transformer.forward
    for dtype, compiles, batch in (
        (torch.float32, False, 16),
        (torch.float32, False, 64),
        (torch.float32, True, 64),
        (torch.bfloat16, False, 16),
        (torch.bfloat16, False, 32),
        (torch.bfloat16, False, 64),
        (torch.bfloat16, True, 64),
    ):
        if dtype == torch.bfloat16 and not hardware.bfloat16_units(hardware.device_of("auto")):
            continue
        pipe.to(dtype)
        pipe.transformer.forward = timed(torch.compile(original, dynamic=False) if compiles else original)
        options = argparse.Namespace(**{**vars(args), "batch": batch})
        draw(pipe, captions[:batch], list(range(batch)), options)  # compiles, warms up
        spent[0], started = 0.0, time.monotonic()
        draw(pipe, captions, list(range(len(captions))), options)
        seconds = time.monotonic() - started
        print(
            f"drawing         {str(dtype)[6:]:<9}batch {batch:<3}{'compiled' if compiles else 'eager':<9}"
            f"{len(captions) / seconds:5.1f} images/s, {100 * spent[0] / seconds:3.0f}% in the transformer",
            flush=True,
        )
    pipe.transformer.forward = original


def detector(weights: Path) -> Path:
    """The folder's own, or where it has none the package's. Raises UsageError."""
    if not installed("ultralytics"):
        raise UsageError("counting needs ultralytics, not installed here: pip install 'gpo[yolo]'")
    if (own := weights / "yolo.pt").is_file():
        return own
    print(f"no {own}: the package's detector counts", flush=True)
    return YOLO_WEIGHTS


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gpo_data.tiny.accuracy")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--max-sequence-length", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rendered", type=int, default=600, help="pictures a task, tables 1, 2")
    parser.add_argument("--prompts", type=int, default=300, help="prompts a task, table 3")
    parser.add_argument("--groups", type=int, default=0, help="groups of 32 a task")
    parser.add_argument("--speed", action="store_true", help="table 4")
    args = parser.parse_args(argv)
    try:
        measure(args)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def measure(args: argparse.Namespace) -> None:
    """Print the tables. Raises UsageError."""
    model = models.resolve(str(args.weights.absolute() / "sd3"))
    yolo_weights = detector(args.weights)
    hardware.take_threads()
    dtype = getattr(torch, hardware.dtype_for("auto", hardware.device_of("auto")))
    from ultralytics import YOLO

    yolo = YOLO(str(yolo_weights))
    pipe = StableDiffusion3Pipeline.from_pretrained(model, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    for task in LEVELS:
        levels, pictures, captions, targets = scenes_of(task, args.rendered, seed=123)
        report("rendered", task, levels, right(task, pictures, targets, yolo))
        with torch.no_grad():
            decoded = np.concatenate(
                [
                    to_pictures(pipe.vae.decode(pipe.vae.encode(x).latent_dist.mode()).sample)
                    for x in to_tensor(pictures).to(pipe.vae.dtype).split(64)
                ]
            )
        report("autoencoder", task, levels, right(task, decoded, targets, yolo))
    for task in LEVELS:
        levels, _, captions, targets = scenes_of(task, args.prompts, seed=7)
        started = time.monotonic()
        pictures = draw(pipe, captions, list(range(len(captions))), args)
        rate = len(captions) / (time.monotonic() - started)
        report("base model", task, levels, right(task, pictures, targets, yolo))
        print(f"{'':<16}{task:<7}{rate:5.1f} images/s, decoding included")
    for task in LEVELS:
        if not args.groups:
            continue
        _, _, captions, targets = scenes_of(task, args.groups, seed=11)
        pictures = draw(
            pipe,
            [c for c in captions for _ in range(32)],
            [1000 * g + member for g in range(args.groups) for member in range(32)],
            args,
        )
        ok = right(task, pictures, [t for t in targets for _ in range(32)], yolo).reshape(-1, 32)
        mixed = (ok.any(1) & ~ok.all(1)).mean()
        print(f"groups of 32    {task:<7}{100 * mixed:5.1f}% of {len(ok)} have right and wrong")
    if args.speed:
        speed_table(pipe, args)


if __name__ == "__main__":
    sys.exit(main())
