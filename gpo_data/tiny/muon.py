"""Muon with the matrices of equal shape orthogonalised together, in float32.

    M <- M + (1 - m)(G - M)            momentum, m = 0.95
    N  = G + m (M - G)                 Nesterov
    O  = NS_5(N)                       Newton-Schulz: the singular values of N become about 1
    W <- (1 - lr wd) W - lr 0.2 sqrt(max(rows, columns)) O

The rule of torch.optim.Muon(adjust_lr_fn="match_rms_adamw"), which walks matrix by matrix in
bfloat16: on two cores without AMX that was half of a training step. The polynomials are
evaluated on the small Gram matrix alone, X_k = P_k X_0, and X_0 is multiplied once at the end.
"""

from collections import defaultdict

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS, MOMENTUM, EPS = 5, 0.95, 1e-7


def orthogonalised(x: torch.Tensor) -> torch.Tensor:
    """float32 [n, r, c] with r <= c -> [n, r, c]: NS_5 of each of the n matrices."""
    a, b, c = COEFFICIENTS
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    gram = x @ x.mT
    product = None
    for step in range(STEPS):
        # X <- (a + b G + c G G) X = p X, and with it G <- p G p: all symmetric, all r x r.
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=1, dim2=2).add_(a)
        product = p if product is None else p @ product
        if step < STEPS - 1:
            gram = p @ gram @ p
    return product @ x


class BatchedMuon(torch.optim.Optimizer):
    """For matrices only; one parameter group's matrices of one shape are one batched product."""

    def __init__(self, params, lr: float, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            shapes = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.ndim != 2:
                    raise ValueError(f"expected a matrix, found the shape {tuple(parameter.shape)}")
                shapes[tuple(sorted(parameter.shape))].append(parameter)
            for (_, longest), parameters in shapes.items():
                self._step_one_shape(parameters, group["lr"], group["weight_decay"], 0.2 * longest**0.5)

    def _step_one_shape(self, parameters: list, lr: float, weight_decay: float, scale: float) -> None:
        gradients = [p.grad for p in parameters]
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        updates = torch._foreach_lerp(gradients, momenta, MOMENTUM)
        tall = [u.size(0) > u.size(1) for u in updates]
        stacked = orthogonalised(torch.stack([u.T if t else u for u, t in zip(updates, tall, strict=True)]))
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        for p, update, t in zip(parameters, stacked, tall, strict=True):
            p.add_(update.T if t else update, alpha=-lr * scale)
