"""Train the tiny autoencoder: pictures [B, 3, 64, 64] <-> latents [B, 16, 8, 8].

    L = mean |x - D(z)| + mean (x - D(z))^2 + 1e-3 * mean KL(q(z|x) || N(0, 1))

The schedule is a function of seconds trained (kept in the checkpoint), so that a budget
of time is met on any machine and a killed run continues where it was. The autoencoder is
trained in stages, its decoder once more in the whole world.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from gpo_data.split import held_out
from gpo_data.tiny.recipe import Autoencoder, Decoder
from gpo_data.tiny.render import WHOLE_WORLD, World, render_text, sample_scene, word_of
from gpo_data.tiny.training import Run, autocast, device, digest, picture_grid, stages_left, to_tensor
from gpo_data.tiny.words import COLORS


def new_autoencoder() -> AutoencoderKL:
    """0.97 M parameters; no attention: letters are local."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def scenes(
    rng: np.random.Generator, n: int, text_share: float, world: World = WHOLE_WORLD
) -> tuple[np.ndarray, list[str]]:
    """n training pictures uint8 [n, 64, 64, 3] and their captions."""
    drawn = [sample_scene(rng, "text" if rng.random() < text_share else "count", world=world) for _ in range(n)]
    return np.stack([picture for picture, _, _ in drawn]), [caption for _, caption, _ in drawn]


def scenes_with(
    rng: np.random.Generator, n: int, text_share: float, letter: str, world: World = WHOLE_WORLD
) -> np.ndarray:
    """As `scenes`, pictures only; half of the training words get `letter`, which the world has, in a random place."""
    pictures, _ = scenes(rng, n, text_share, world)
    pictures = pictures.copy()
    for i in range(round(n * text_share / 2)):
        word = word_of(world, rng)
        place = rng.integers(len(word))
        word = word[:place] + letter + word[place + 1 :]
        if not held_out(word):
            color = list(COLORS)[rng.integers(len(COLORS))]
            pictures[i] = render_text(word, color=color, world=world, rng=rng)
    return pictures


def train_autoencoder(settings: Autoencoder, folder: Path) -> AutoencoderKL:
    """Train through the stages, or pick up the checkpoints in `folder`.

    settings.letter is drawn far more often: the tail that makes an O a Q was lost (all but
    one of the misread words had a Q).
    """
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    vae = new_autoencoder().to(device(), memory_format=torch.channels_last)
    for name, stage, others in stages_left(folder, "autoencoder", settings):
        optimizer = torch.optim.AdamW(vae.parameters(), lr=stage.lr, betas=(0.9, 0.95), weight_decay=0)
        run = Run(folder, name, stage, {"vae": vae, "optimizer": optimizer}, rng, **others)
        while not run.done():
            run.set_lr(optimizer)
            x = to_tensor(scenes_with(rng, settings.batch, settings.text_share, settings.letter, stage.world))
            with autocast():
                posterior = vae.encode(x).latent_dist
                decoded = vae.decode(posterior.sample()).sample
            difference = decoded.float() - x
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
            loss = difference.abs().mean() + (difference**2).mean() + 1e-3 * kl
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            if run.step_done(loss.item(), settings.batch):
                reconstruction_grid(vae, stage.world, folder / f"{name}.png")
        reconstruction_grid(vae, stage.world, folder / f"{name}.png")
    measure_latents(vae, rng, settings.text_share)
    return vae.eval()


def polish_decoder(settings: Decoder, vae: AutoencoderKL, folder: Path) -> AutoencoderKL:
    """Train the decoder on, the encoder frozen: the latents, and so the transformer, stay valid."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    decoder = vae.decoder.train()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=0)
    parts = {"decoder": decoder, "optimizer": optimizer}
    run = Run(folder, "decoder", settings, parts, rng, autoencoder=digest(vae.encoder))
    while not run.done():
        run.set_lr(optimizer)
        x = to_tensor(scenes_with(rng, settings.batch, settings.text_share, settings.letter))
        with autocast():
            with torch.no_grad():
                latents = vae.encode(x).latent_dist.sample()
            decoded = vae.decode(latents).sample
        difference = decoded.float() - x
        loss = difference.abs().mean() + (difference**2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        if run.step_done(loss.item(), settings.batch):
            reconstruction_grid(vae, WHOLE_WORLD, folder / "decoder.png")
    reconstruction_grid(vae, WHOLE_WORLD, folder / "decoder.png")
    return vae.eval()


@torch.no_grad()
def reconstruction_grid(vae: AutoencoderKL, world: World, path: Path) -> None:
    """Sixteen pictures, always the same ones, and below each what the autoencoder makes of it."""
    pictures, _ = scenes(np.random.default_rng(0), 16, text_share=0.75, world=world)
    x = to_tensor(pictures)
    with autocast():
        decoded = vae.decode(vae.encode(x).latent_dist.mode()).sample
    picture_grid(torch.cat([x, decoded.float()]), path)


@torch.no_grad()
def measure_latents(vae: AutoencoderKL, rng: np.random.Generator, text_share: float) -> None:
    """Set shift and scaling so that (z - shift) * scale has mean 0 and unit std in the whole world."""
    pictures, _ = scenes(rng, 512, text_share)
    latents = vae.encode(to_tensor(pictures)).latent_dist.sample()
    shift = latents.mean().item()
    scale = 1.0 / latents.std().item()
    vae.register_to_config(shift_factor=shift, scaling_factor=scale)
