"""What a small move of the weights is worth where it is drawn: `python -m tests.bench.rounding`.

The tiny world's denoiser moves by `rate` a weight, along the sign of the gradient of its error on groups of its own, as
the first steps of AdamW do. s is how much the error falls, against the model as it is. Slope: s with the weights as
they are drawn, in two bytes, over s in float32, both computed in float32 arithmetic.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from gpo_data import models
from gpo_data.models.rounding import round_randomly
from gpo_data.recipe import Sampler

RATES = (2e-8, 2e-7, 2e-6, 2e-5, 6e-5, 2e-4, 1e-3)


def error(model: models.Model, denoiser: nn.Module, x_0: Tensor, e: Tensor, t: Tensor, c: dict[str, Tensor]) -> Tensor:
    said = model.predict(model.noise(x_0, e, t), t, c, denoiser)
    return (model.target(x_0, e, t) - said).double().pow(2).mean()


def rounded(w: Tensor, how: str, kind: torch.dtype, generator: torch.Generator) -> Tensor:
    if how == "float32":
        return w
    return (w.to(kind) if how == "nearest" else round_randomly(w, kind, generator)).float()


def main() -> None:
    torch.manual_seed(0)
    sampler = Sampler(num_inference_steps=8, guidance_scale=1.0, height=64, width=64, dtype="float32", device="cpu")
    model = models.load(models.resolve("tiny"), sampler)
    for stored in (torch.bfloat16, torch.float16):
        base = copy.deepcopy(model.denoiser)
        for p in base.parameters():
            p.data = p.data.to(stored).float()  # a model whose own weights are of two bytes
        c = models.repeat(model.encode(['a red sign that says "KITE"', "three blue squares"]), [8, 8])
        x_0 = model.draw(c, list(range(16))).float()
        e, t = torch.randn_like(x_0), model.time(torch.rand(16))
        before = error(model, base, x_0, e, t, c)
        gradients = torch.autograd.grad(before, list(base.parameters()), allow_unused=True)
        print(f"weights stored and drawn in {stored}: rate, share of weights that moved, slope: nearest | at random")
        for rate in RATES:
            found = {}
            for how in ("float32", "nearest", "random"):
                moved, generator, changed, total = copy.deepcopy(base), torch.Generator().manual_seed(1), 0, 0
                for p, g in zip(moved.parameters(), gradients, strict=True):
                    if g is None:
                        continue
                    w = rounded(p.data - rate * torch.sign(g), how, stored, generator)
                    changed, total = changed + int((w != p.data).sum()), total + w.numel()
                    p.data = w
                with torch.no_grad():
                    found[how] = (float(error(model, moved, x_0, e, t, c) - before), changed / total)
            exact = found["float32"][0]
            print(
                "  ".join(
                    [
                        f"{rate:.0e}",
                        f"s {exact:+.2e}",
                        *(
                            f"{how} {100 * found[how][1]:.2f}% {found[how][0] / exact:.3f}"
                            for how in ("nearest", "random")
                        ),
                    ]
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
