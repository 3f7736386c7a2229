"""Evaluator `yolo`: what an ultralytics detector sees in a picture.

    n_detected   detections of the class that was asked for, at `yolo.confidence` and after non-maximum suppression;
                 NULL where the prompt asks for none. `television` is `tv`: tasks/classes.py says what a name means
    detections   all of them: class, confidence, box [x0, y0, x1, y1] in pixels; most confident first

ultralytics is AGPL-3.0: it is imported here, at the first picture, and by the trainer of the tiny world only. Another
detector takes its place by being another file with the same columns.
What always holds: nothing is downloaded; a missing weights file is an error that says where it comes from.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gpo_data import hardware
from gpo_data.errors import UsageError, words
from gpo_data.evaluators.ocr import import_cv2
from gpo_data.evaluators.pool import Batch, Measure, Pool
from gpo_data.evaluators.version import as_version
from gpo_data.recipe import Recipe, Yolo
from gpo_data.tasks import TASKS
from gpo_data.tasks.classes import canonical


@dataclass(frozen=True)
class Settings:
    """What a process needs to load the detector; picklable."""

    yolo: Yolo
    weights: Path


COLUMNS: dict[str, pa.DataType] = {
    "n_detected": pa.int32(),
    "detections": pa.list_(
        pa.struct({"class": pa.string(), "confidence": pa.float64(), "box": pa.list_(pa.float64())}.items())
    ),
}


class YoloEvaluator:
    name = "yolo"
    columns = COLUMNS
    needs = ("yolo", "ultralytics")

    @classmethod
    def of(cls, name: str, recipe: Recipe, threads: int | None) -> YoloEvaluator:
        if "target_class" not in TASKS[recipe.task.kind].columns:
            kinds = " or ".join(kind for kind, task in TASKS.items() if "target_class" in task.columns)
            raise UsageError(
                f"evaluators: yolo counts the class of task.kind {kinds}, found task.kind {recipe.task.kind}"
            )
        return cls(recipe.yolo)

    def __init__(self, yolo: Yolo) -> None:
        """Finds the weights file, or raises UsageError. The detector loads at the first picture."""
        import_cv2()
        device_of(yolo)
        weights = find_weights(yolo.weights)
        self.version = _version(yolo, weights)
        self._settings = Settings(yolo, weights)
        self._pool = Pool(load, self._settings, yolo.workers, yolo.batch_size)

    def classes(self) -> list[str]:
        """What the detector knows. Raises UsageError."""
        return list(class_names(self._settings))

    def measure(self, images: list[np.ndarray], targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """images: uint8 [H, W, 3] RGB; targets: {"target_class": ...} each, or none.

        Raises UsageError if the detector does not know a target's class.
        """
        return self._pool(list(zip(images, targets, strict=True)))

    def close(self) -> None:
        self._pool.close()


def device_of(yolo: Yolo) -> str:
    return hardware.device_of(f"cuda:{yolo.device}" if yolo.device.isdecimal() else yolo.device, "yolo.device")


def find_weights(setting: str) -> Path:
    """The weights file of a setting: `tiny`, a path, or a name in ultralytics' own weights folder."""
    if setting == "tiny":
        from gpo_data.tiny import YOLO_WEIGHTS

        if not YOLO_WEIGHTS.is_file():
            raise UsageError(
                f"yolo.weights: the embedded detector {YOLO_WEIGHTS} is missing; install the package again"
            )
        return YOLO_WEIGHTS
    if (path := Path(setting).expanduser()).is_file():
        return path
    _quiet()
    from ultralytics.utils import SETTINGS

    known = Path(SETTINGS["weights_dir"]) / setting
    if known.is_file():
        return known
    name = Path(setting).name
    raise UsageError(
        f"yolo.weights: no file {setting}; get {name} (for an official model: "
        f"github.com/ultralytics/assets/releases, or `yolo predict model={name}` where there is a network) and put it "
        f"in {known.parent}, or set yolo.weights to its path and say --trust; `tiny` is the embedded detector"
    )


def load(settings: Settings, threads: int) -> Measure:
    """A function over batches. In a process of its own torch gets `threads` threads."""
    _quiet()
    import multiprocessing

    import torch

    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(threads)  # the drawing process keeps its own number: the denoiser needs it
    yolo = settings.yolo
    detector = opened(settings)
    classes = names_of(detector)
    known = {canonical(name) for name in classes.values()}
    # A torch.device, not a string: for "cpu" ultralytics would hide every GPU from this process.
    device = torch.device(device_of(yolo))

    def measure(batch: Batch) -> list[dict[str, Any]]:
        asked = {str(target["target_class"]) for _, target in batch if target.get("target_class")}
        for name in sorted(name for name in asked if canonical(name) not in known):
            raise UsageError(
                f"yolo.weights: {settings.weights.name} does not detect {name!r}; its classes: "
                f"{', '.join(classes.values())}"
            )
        found = detect(
            detector,
            [image for image, _ in batch],
            imgsz=yolo.image_size,
            conf=yolo.confidence,
            iou=yolo.iou,
            device=device,
        )
        return [_row(result, classes, target) for result, (_, target) in zip(found, batch, strict=True)]

    return measure


@functools.cache
def class_names(settings: Settings) -> tuple[str, ...]:
    """What a detector knows: to ask, it has to be opened. Raises UsageError."""
    return tuple(names_of(opened(settings)).values())


def opened(settings: Settings) -> Any:
    """ultralytics' model. Raises UsageError."""
    _quiet()
    import ultralytics

    try:
        return ultralytics.YOLO(str(settings.weights))
    except Exception as error:  # torch, zip and ultralytics each have their own for a file that is not weights
        reason = words(error, 200)
        raise UsageError(
            f"yolo.weights: {settings.weights} is not a detector that ultralytics opens: {reason}"
        ) from None


def names_of(detector: Any) -> dict[int, str]:
    return {int(number): str(name) for number, name in detector.names.items()}


def detect(detector: Any, images: list[np.ndarray], **options: Any) -> list[Any]:
    """ultralytics' results of uint8 [H, W, 3] RGB pictures; torch keeps its number of threads."""
    with hardware.same_threads():  # its first call takes all but one: of two cores, half the speed of what follows
        # ultralytics reads BGR
        return list(
            detector.predict([np.ascontiguousarray(image[..., ::-1]) for image in images], verbose=False, **options)
        )


def _row(result: Any, classes: dict[int, str], target: dict[str, Any]) -> dict[str, Any]:
    # Rounded, because the last bits depend on the size of the batch.
    detections = [
        {"class": classes[int(kind)], "confidence": round(confidence, 5), "box": [round(v, 2) for v in box]}
        for kind, confidence, box in zip(
            result.boxes.cls.tolist(), result.boxes.conf.tolist(), result.boxes.xyxy.tolist(), strict=True
        )
    ]
    wanted = target.get("target_class")
    number = None if wanted is None else sum(canonical(d["class"]) == canonical(wanted) for d in detections)
    return {"n_detected": number, "detections": detections}


def _quiet() -> None:
    """ultralytics asks at import whether it is online and may install packages; neither is wanted here."""
    for name, value in (("YOLO_OFFLINE", "true"), ("YOLO_AUTOINSTALL", "false")):
        os.environ.setdefault(name, value)


def _version(yolo: Yolo, weights: Path) -> str:
    """Package, weights, and a hash of the weights file and of every setting that changes what is seen."""
    digest = hashlib.blake2b(f"{yolo.confidence} {yolo.iou} {yolo.image_size}".encode(), digest_size=4)
    digest.update(weights.read_bytes())
    version = f"ultralytics-{importlib.metadata.version('ultralytics')}-{weights.stem}-{digest.hexdigest()}"
    return as_version(version)
