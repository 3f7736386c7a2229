"""Train the tiny world from nothing: `python -m gpo_data.tiny recipes/tiny.yaml --out DIR`.

Autoencoder, its decoder once more, detector, transformer, in this order. Everything lands in DIR: `sd3/`, `yolo.pt`,
checkpoints, and sample grids (PNG). A killed run continues when the same command is given
again. Copy `sd3/` and `yolo.pt` to gpo_data/tiny/weights/ to make them the package's own.
"""

import argparse
from pathlib import Path

import torch
import yaml

from gpo_data.tiny.train_autoencoder import polish_decoder, train_autoencoder
from gpo_data.tiny.train_transformer import train_transformer
from gpo_data.tiny.train_yolo import train_yolo


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gpo_data.tiny", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    recipe = yaml.safe_load(arguments.recipe.read_text())
    wanted = {"threads", "autoencoder", "decoder", "yolo", "transformer"}
    if set(recipe) != wanted:
        raise SystemExit(f"{arguments.recipe}: expected the keys {sorted(wanted)}, found {sorted(recipe)}")
    torch.set_num_threads(recipe["threads"])
    out = arguments.out
    vae = train_autoencoder(recipe["autoencoder"], out)
    vae = polish_decoder(recipe["decoder"], vae, out)
    if not (out / "yolo.pt").exists():
        train_yolo(recipe["yolo"], out, out / "yolo.pt")
    train_transformer(recipe["transformer"], vae, out, out / "sd3")


if __name__ == "__main__":
    main()
