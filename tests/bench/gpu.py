"""What real sizes cost on a GPU: `make bench-gpu`, SD3.5 Medium's architecture with random weights in bfloat16.

1. drawing    images/s of the plain pipeline's call at several batch sizes, and of our encode + draw + decode at the
              same; FLOPs counted with torch.utils.flop_counter, as a share of the card's peak
2. a step     samples/s and peak memory of GPO, LoRA and full: a plain loop that holds a second copy of the model as
              reference, ours with the reference's own network, ours with stored errors (their computation included)
3. iteration  the second iteration of `gpo-train fit --mode online`: seconds of each part. Decoding, measuring and
              writing go on beside the denoiser; `waiting` is how long it stood still for them

    python -m tests.bench.gpu [--sizes 512] [--groups 2] [--group-size 8] [--tiny] [--json runs/bench-gpu.json]

At 512 px it takes about six minutes on an H200, at 1024 px six times as long; figures are written as they come.
`--groups 48 --group-size 32` is the online iteration of arXiv 2505.11070. `--tiny` is a few narrow layers and small
pictures, on any machine: it shows that the benchmark runs, its figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from gpo_data import models, recipe
from gpo_data.errors import UsageError
from gpo_data.models import repeat
from gpo_train.fit import fit
from gpo_train.online.iterations import Iteration
from tests.bench.gpu_step import measure_steps
from tests.bench.gpu_table import show
from tests.parts.sd35m import FULL, T5_TOKENS, TINY, build

# Dense bfloat16 with float32 accumulation, TFLOP/s, from NVIDIA's data sheets; by what the card's name contains.
DATA_SHEET = {"H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312, "L40S": 362, "L4": 121}
PROMPT = 'a red sign that says "AB"'


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", help="of the pictures, pixels (512; tiny: 64)")
    parser.add_argument("--steps", type=int, help="denoising steps (28; tiny: 2)")
    parser.add_argument("--batches", type=int, nargs="+", help="batch sizes to try (4 16; tiny: 1 2)")
    parser.add_argument("--rounds", type=int, default=2, help="calls timed a batch size")
    parser.add_argument("--groups", type=int, help="groups of the online iteration (2)")
    parser.add_argument("--group-size", type=int, help="members a group (8; tiny: 2)")
    parser.add_argument("--tiny", action="store_true", help="few narrow layers, on any machine")
    parser.add_argument("--json", type=Path, default=Path("runs/bench-gpu.json"), help="where the figures go as well")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available() and not options.tiny:
        print(
            "error: torch sees no CUDA device; run this on a GPU, or with --tiny to try it on the CPU", file=sys.stderr
        )
        return UsageError.exit_code
    few = {"sizes": [64], "steps": 2, "batches": [1, 2], "groups": 2, "group_size": 2}
    real = {"sizes": [512], "steps": 28, "batches": [4, 16], "groups": 2, "group_size": 8}
    for key, value in (few if options.tiny else real).items():
        setattr(options, key, getattr(options, key) or value)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    show(run(options))
    print(f"figures: {options.json}")
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    console = Console(stderr=True, highlight=False)
    found: dict[str, Any] = {"card": card(device), "architecture": "tiny" if options.tiny else "SD3.5 Medium"}
    found |= {"options": {k: v for k, v in vars(options).items() if k != "json"}, "sizes": {}}
    with tempfile.TemporaryDirectory() as scratch:
        console.print("building the model")
        folder = build(TINY if options.tiny else FULL, Path(scratch) / "model", device)
        clear(device)
        for size in options.sizes:
            made = recipe_of(options, folder, Path(scratch) / f"{size}", size, device)
            part: dict[str, Any] = found["sizes"].setdefault(str(size), {})
            console.print(f"{size} px: drawing")
            part["drawing"] = drawing(made, options, folder, device, found["card"])
            keep(found, options)  # what is measured is not lost with what fails after it
            made = recipe.load(made.lake + "/bench.yaml", ["--sampler.batch_size", str(part["drawing"]["batch"])])
            console.print(f"{size} px: two online iterations")
            part["iteration"], dataset = iteration(made, Path(scratch) / f"{size}" / "runs")
            keep(found, options)
            for tuning, variant, value in measure_steps(made, dataset, device, console):
                part.setdefault("step", {}).setdefault(tuning, {})[variant] = value
                keep(found, options)
    return found


def keep(found: dict[str, Any], options: argparse.Namespace) -> None:
    options.json.write_text(json.dumps(found, indent=2))


def recipe_of(options: argparse.Namespace, model: Path, lake: Path, size: int, device: str) -> recipe.Recipe:
    """Rewards by the pictures' entropy too: random weights write no words, and a group needs a better half."""
    lake.mkdir()
    content = {
        "name": "bench",
        "model": str(model),
        "lake": str(lake),
        "group_size": options.group_size,
        "groups_per_shard": min(8, options.groups),
        "task": {"kind": "text", "num_prompts": options.groups},
        "sampler": {
            "num_inference_steps": options.steps,
            "guidance_scale": 4.5,
            "height": size,
            "width": size,
            "max_sequence_length": T5_TOKENS,
            "dtype": "bfloat16",
            "device": device,
        },
        "evaluators": ["ocr"],
        "ocr": {"mode": "scene", "workers": 0 if options.tiny else 4},
        "reward": "0.5 * text_edit(target, ocr_text) + entropy / 16",
        "train": {
            "tuning": "lora",
            "precision": "bfloat16",
            "gradient_checkpointing": True,
            "loggers": ["csv"],
            "micro_batch_size": options.group_size,
            "timesteps_per_image": 2 if options.tiny else 5,
            "num_inner_epochs": 3,
            "learning_rate": 1e-6,
            "trainer": {"enable_progress_bar": False},
        },
        "online": {"iterations": 2, "grid_every": 0},
    }
    path = lake / "bench.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return recipe.load(path)


def card(device: str) -> dict[str, Any]:
    """The card, the versions, and its peak: TFLOP/s of a large bfloat16 matmul, and the data sheet's where known."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    n = 8192 if device == "cuda" else 512
    a, b = torch.randn(2, n, n, device=device, dtype=torch.bfloat16)
    rates = [2 * n**3 / seconds(lambda: a @ b, device) / 1e12 for _ in range(20)]
    sheet = next((value for key, value in DATA_SHEET.items() if key in name), None) if device == "cuda" else None
    return {
        "name": name,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "cuda": torch.version.cuda,
        "matmul_tflops": statistics.median(rates[5:]),
        "data_sheet_tflops": sheet,
    }


def seconds(call: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def drawing(
    made: recipe.Recipe, options: argparse.Namespace, folder: Path, device: str, card: dict[str, Any]
) -> dict[str, Any]:
    """images/s of the plain call and of ours at every batch size that fits, and the work of a picture."""
    model: Any = models.load(folder, made.sampler)
    common = {
        "height": made.sampler.height,
        "width": made.sampler.width,
        "guidance_scale": 4.5,
        "max_sequence_length": T5_TOKENS,
    }

    def plain(batch: int, steps: int = options.steps) -> Any:
        generator = [torch.Generator().manual_seed(seed) for seed in range(batch)]
        # Our pipeline is the plain one: this is its own `__call__`, from text to pictures.
        return model.pipe([PROMPT] * batch, generator=generator, num_inference_steps=steps, **common)

    def ours(batch: int) -> Any:
        return model.decode(model.draw(repeat(model.encode([PROMPT]), [batch]), list(range(batch))))

    work = [flops(partial(plain, 1, steps)) for steps in (1, 2)]
    image = work[0] + (options.steps - 1) * (work[1] - work[0])  # the steps are alike
    rates: dict[str, dict[int, float]] = {"plain": {}, "ours": {}}
    for batch in options.batches:
        for name, function in (("plain", plain), ("ours", ours)):
            call = partial(function, batch)
            try:
                call()  # the first call of a size chooses kernels
                rates[name][batch] = batch / statistics.median(seconds(call, device) for _ in range(options.rounds))
            except torch.OutOfMemoryError:
                continue
    best = {name: max(by_batch.items(), key=lambda item: item[1]) for name, by_batch in rates.items()}
    reached = best["ours"][1] * image / 1e12
    model = None
    clear(device)
    sheet = card["data_sheet_tflops"]
    return {
        "images_per_s": rates,
        "best_plain": best["plain"][1],
        "batch_plain": best["plain"][0],
        "best_ours": best["ours"][1],
        "batch": best["ours"][0],
        "ratio": best["ours"][1] / best["plain"][1],
        "tflop_per_image": image / 1e12,
        "tflops": reached,
        "share_of_matmul": reached / card["matmul_tflops"],
        "share_of_data_sheet": reached / sheet if sheet else None,
    }


def flops(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def iteration(made: recipe.Recipe, runs: Path) -> tuple[dict[str, Any], str]:
    """Seconds of the parts of the second online iteration, in which everything is loaded; and its dataset's name."""
    run = fit(made, "bench", Console(quiet=True), mode="online", runs=runs)
    last = Iteration(run.folder, 1)
    parts: dict[str, float] = last.expect_summary().seconds
    # Parts in the second thread (decode, measure, write) overlap with denoising; what is left is waiting for them.
    waiting = parts["draw"] - sum(parts.get(k, 0.0) for k in ("policy", "encode", "denoise"))
    total = sum(parts.get(k, 0.0) for k in ("draw", "catalog", "train"))
    pictures = made.group_size * (made.task.num_prompts or 0)
    return {
        "seconds": parts,
        "total": total,
        "waiting": waiting,
        "shares": {k: v / total for k, v in (parts | {"waiting": waiting}).items()},
        "images_per_s": pictures / (parts["draw"] - parts.get("policy", 0.0)),
    }, last.name


def clear(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
