"""Train the tiny world from nothing: `python -m gpo_data.tiny recipes/tiny.yaml --out DIR`.

Autoencoder in stages, its decoder once more, detector, transformer in stages, in this order; where the recipe says
`autoencoder: tiny`, on the latents of the package's. A decoder or detector without a section is not trained
(recipes/experiments/bases/ has the transformer alone). Everything lands in DIR:
`sd3/`, `yolo.pt`, and for every part and stage a checkpoint and a sample grid (PNG). A killed run continues when the
same command is given again. Copy `sd3/` and `yolo.pt` to gpo_data/tiny/weights/ to make them the package's own.

Exit code 0: done; 1: the disk failed; 2: the recipe or the command line is wrong; 130: stopped by Ctrl-C.
"""

import argparse
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from gpo_data import hardware, models
from gpo_data.errors import RunError, UsageError
from gpo_data.evaluators.build import installed
from gpo_data.out_folder import make_folder
from gpo_data.tiny.recipe import TinyRecipe, load
from gpo_data.tiny.train_autoencoder import polish_decoder, train_autoencoder
from gpo_data.tiny.train_transformer import train_transformer
from gpo_data.tiny.train_yolo import train_yolo
from gpo_data.tiny.training import device


def train(recipe: TinyRecipe, out: Path) -> None:
    """All parts; what is finished in `out` is loaded, not trained again. Raises UsageError, RunError."""
    torch.set_num_threads(min(recipe.threads, hardware.threads()))
    if isinstance(recipe.autoencoder, str):
        vae = AutoencoderKL.from_pretrained(models.resolve(recipe.autoencoder), subfolder="vae").to(device())
    else:
        vae = train_autoencoder(recipe.autoencoder, out)
    if recipe.decoder is not None:
        vae = polish_decoder(recipe.decoder, vae, out)
    if recipe.yolo is not None:
        train_yolo(recipe.yolo, out, out / "yolo.pt")
    train_transformer(recipe.transformer, vae, out, out / "sd3")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gpo_data.tiny", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder; made if missing")
    arguments = parser.parse_args(argv)
    try:
        recipe = load(arguments.recipe)
        if recipe.yolo is not None and not installed("ultralytics"):  # hours before it is used
            raise UsageError("yolo: its training needs ultralytics, not installed here: pip install 'gpo[yolo]'")
        make_folder(arguments.out)
        train(recipe, arguments.out)
    except (UsageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
