"""Train the tiny detector: YOLO11 with an eighth of the width, for circle, square, triangle.

The pictures come from the renderer, enlarged to 128 pixels; half of them are blurred and
noised, because the detector will judge pictures that went through an autoencoder.
ultralytics (AGPL-3.0) is imported only here and by the counting evaluator.

    yolo.json    the settings that it was begun with, under which alone it goes on
"""

import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from gpo_data.lake.document import read_document, write_document
from gpo_data.tiny.recipe import Yolo
from gpo_data.tiny.render import SIZE, sample_scene
from gpo_data.tiny.training import expect_same
from gpo_data.tiny.words import SHAPES

ARCHITECTURE = Path(__file__).with_name("yolo.yaml")


def write_pictures(folder: Path, split: str, n: int, rng: np.random.Generator) -> None:
    """n counting pictures and their labels, in the layout of ultralytics."""
    for kind in ("images", "labels"):
        (folder / kind / split).mkdir(parents=True, exist_ok=True)
    for index in range(n):
        picture, _, target = sample_scene(rng, "count", held=None)
        image = Image.fromarray(picture)
        if rng.random() < 0.5:
            image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.9))))
            noise = rng.normal(0, rng.uniform(0, 10), picture.shape)
            image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
        image.save(folder / "images" / split / f"{index:06d}.png")
        lines = []
        for x0, y0, x1, y1 in target["boxes"]:
            box = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
            lines.append(" ".join([str(target["class"]), *(f"{v / SIZE:.5f}" for v in box)]))
        (folder / "labels" / split / f"{index:06d}.txt").write_text("\n".join(lines))


def train_yolo(settings: Yolo, folder: Path, weights: Path) -> None:
    """Train from scratch (or resume `folder`) and write the stripped file `weights`; nothing where that is there.

    Raises UsageError: under other settings than it was begun with.
    """
    begun = folder / "yolo.json"
    if begun.exists():
        then = read_document(Yolo, begun, "give another --out")
        expect_same("yolo", weights, asdict(then), asdict(settings))
    elif weights.exists():
        print(f"yolo: {weights} is taken as it is; there is no {begun.name} of how it was trained", flush=True)
    else:
        write_document(settings, begun)
    if weights.exists():
        return
    from ultralytics import YOLO
    from ultralytics import settings as ultralytics_settings

    ultralytics_settings.update({"sync": False})
    data = folder / "yolo_data"
    if not (data / "data.yaml").exists():
        rng = np.random.default_rng(settings.seed)
        write_pictures(data, "train", settings.pictures, rng)
        write_pictures(data, "val", 200, rng)
        names = "".join(f"  {i}: {shape}\n" for i, shape in enumerate(SHAPES))
        (data / "data.yaml").write_text(
            f"path: {data.resolve()}\ntrain: images/train\nval: images/val\nnames:\n{names}"
        )
    last = folder / "yolo" / "weights" / "last.pt"
    options = {
        "data": str(data / "data.yaml"),
        "project": str(folder.resolve()),
        "name": "yolo",
        "exist_ok": True,
        **{key: getattr(settings, key) for key in ("seed", "epochs", "imgsz", "batch")},
        "optimizer": "AdamW",
        "lr0": settings.lr,
        "cos_lr": True,
        "warmup_epochs": 0.5,
        "amp": False,  # its check would download a model
        "pretrained": False,
        "mosaic": 0.0,
        "scale": 0.2,
        "translate": 0.05,
        "erasing": 0.0,
        "hsv_h": 0.0,
        "workers": 0,
        "plots": False,
        "val": False,
    }
    if last.exists():
        YOLO(str(last)).train(resume=True)
    else:
        YOLO(str(ARCHITECTURE)).train(**options)
    # ultralytics strips the optimizer and halves the weights of last.pt when a run ends.
    weights.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(last, weights)
