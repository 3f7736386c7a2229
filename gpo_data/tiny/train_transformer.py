"""Train the tiny SD3 transformer and its two text encoders, by flow matching.

    x_t = (1 - t) x_0 + t e,  t = sigmoid(n), n ~ N(0, 1);   L = mean || v(x_t, t, c) - (e - x_0) ||^2

Matrices of the blocks are trained by Muon, all else by AdamW; an exponential moving average
of the weights is what is saved. The caption is "" one time in ten, which is what the pipeline
gives as the unconditional prompt. Weights and average go on from stage to stage, each in a wider world.
"""

from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from gpo_data.tiny.muon import BatchedMuon
from gpo_data.tiny.pipeline import (
    ZeroRows,
    encode,
    new_text_encoder,
    new_tokenizer,
    new_transformer,
    save_pipeline,
    tokenize,
)
from gpo_data.tiny.recipe import Transformer, TransformerStage
from gpo_data.tiny.train_autoencoder import scenes
from gpo_data.tiny.training import Run, autocast, compiled, device, digest, picture_grid, stages_left, to_tensor

GRID_CAPTIONS = [
    'a red sign that says "KITE"',
    'a blue sign that says "OX"',
    'a green sign that says "ZEBRA"',
    'a black sign that says "SKY"',
    'a teal sign that says "QUIZ"',
    'a brown sign that says "TJVB"',
    'a purple sign that says "WXM"',
    'a orange sign that says "HELLO"',
    "one red circle",
    "two blue squares",
    "three green triangles",
    "four black circles",
    "five teal squares",
    "six purple triangles",
    "four orange squares",
    "three red circles",
]


class Average:
    """theta_ema <- d theta_ema + (1 - d) theta, d rising to `decay`; four steps are taken at once.

    The steps are counted over all stages: d rising again would forget what the last one averaged.
    """

    EVERY = 4

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.model, self.decay = deepcopy(model).eval().requires_grad_(False), decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        step, self.steps = self.steps, self.steps + 1
        if step % self.EVERY:
            return
        decay = min(self.decay, (1 + step) / (10 + step)) ** self.EVERY
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)

    def state_dict(self) -> dict:
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]


def optimizers(model: torch.nn.Module, stage: TransformerStage) -> tuple[BatchedMuon, torch.optim.AdamW]:
    """Muon for the matrices of the transformer's blocks, AdamW for all else."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        # The modulations (norm1, norm1_context) are half of Muon's cost and gain least by it.
        block = "transformer_blocks" in name and parameter.ndim == 2 and "norm" not in name
        (matrices if block else rest).append(parameter)
    muon = BatchedMuon(matrices, lr=stage.lr)
    adamw = torch.optim.AdamW(rest, lr=stage.lr_adamw, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    return muon, adamw


@torch.no_grad()
def to_latents(vae: AutoencoderKL, pictures: np.ndarray) -> torch.Tensor:
    """uint8 [B, 64, 64, 3] -> latents [B, 16, 8, 8] of mean 0 and unit std."""
    with autocast():
        latents = vae.encode(to_tensor(pictures)).latent_dist.sample()
    return (latents.float() - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def draw_grid(model, tokenizer, vae: AutoencoderKL, path: Path, steps: int = 16) -> None:
    """Euler from t=1 to 0 at guidance 2, for people to look at while it trains."""
    captions = GRID_CAPTIONS
    x = torch.randn(len(captions), 16, 8, 8, generator=torch.Generator().manual_seed(0))
    x = x.to(device())
    embeds, pooled = encode(tokenize(tokenizer, captions + [""] * len(captions)).to(device()), model["encoders"])
    times = torch.linspace(1, 0, steps + 1)
    for t, t_next in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        timestep = torch.full((2 * len(x),), 1000 * t, device=device())
        with autocast():
            v = model["transformer"](torch.cat([x, x]), embeds, pooled, timestep).sample.float()
        with_caption, without = v.chunk(2)
        x = x + (t_next - t) * (without + 2.0 * (with_caption - without))
    with autocast():
        images = vae.decode(x / vae.config.scaling_factor + vae.config.shift_factor).sample
    picture_grid(images, path)


def train_transformer(settings: Transformer, vae: AutoencoderKL, folder: Path, weights: Path) -> None:
    """Train through the stages; the pipeline folder `weights` is rewritten as it goes."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    tokenizer = new_tokenizer()
    encoders = torch.nn.ModuleList([new_text_encoder(tokenizer) for _ in range(2)])
    sizes = {"layers": settings.layers, "heads": settings.heads}
    encoder = digest(vae.encoder)
    model = torch.nn.ModuleDict({"transformer": new_transformer(**sizes), "encoders": encoders})
    model = model.to(device())
    zero_rows = ZeroRows()
    model["transformer"].set_attn_processor(zero_rows)
    average = Average(model, settings.ema)
    # The copies of the average must not share the processor: theirs draw with one zero row.
    average.model["transformer"].set_attn_processor(ZeroRows())

    def save(name: str) -> None:
        draw_grid(average.model, tokenizer, vae, folder / f"{name}.png")
        plain = new_transformer(**sizes).to(device())
        plain.load_state_dict(average.model["transformer"].state_dict())
        save_pipeline(weights, vae, plain, average.model["encoders"], tokenizer)

    batch, per_chunk = settings.batch, 8
    transformer = compiled(model["transformer"], folder)
    for name, stage, others in stages_left(folder, "transformer", settings):
        muon, adamw = optimizers(model, stage)
        parts = {"model": model, "average": average, "muon": muon, "adamw": adamw}
        run = Run(folder, name, stage, parts, rng, autoencoder=encoder, **others)
        if not average.steps:
            save(name)  # what cannot be written fails now
        while not run.done():
            pictures, captions = scenes(rng, batch * per_chunk, settings.text_share, stage.world)
            captions = [c if rng.random() >= settings.dropout else "" for c in captions]
            chunk = to_latents(vae, pictures).chunk(per_chunk)
            ids = tokenize(tokenizer, captions).to(device()).chunk(per_chunk)
            for x0, token_ids in zip(chunk, ids, strict=True):
                run.set_lr(muon, adamw)
                zero_rows.rows = 1 if rng.random() < 0.5 else 256
                noise = torch.randn_like(x0)
                t = torch.randn(len(x0), device=x0.device).sigmoid()
                x_t = torch.lerp(x0, noise, t[:, None, None, None])
                with autocast():
                    embeds, pooled = encode(token_ids, model["encoders"])
                    v = transformer(x_t, embeds, pooled, 1000 * t).sample
                loss = ((v.float() - (noise - x0)) ** 2).mean()
                muon.zero_grad(set_to_none=True)
                adamw.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                muon.step()
                adamw.step()
                average.update(model)
                if run.step_done(loss.item(), batch):
                    save(name)
        save(name)
