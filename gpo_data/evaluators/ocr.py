"""Evaluator `ocr`: what PaddleOCR reads in a picture.

    scene         text lines are found, then read, each with its box; the picture may hold other things
    recognition   the whole picture is read as one line, after an even border is cut off: for small signs

    ocr_text        all lines joined by one space, in reading order; '' where nothing is read
    ocr_confidence  mean over the lines, 0 where there are none
    ocr_lines       text, confidence, box [x0, y0, x1, y1] in pixels of the picture as drawn

What always holds: pictures are brought to a few widths before reading, so a picture is read the same whatever else is
in its batch. Cutting the border matters: of 40 two-letter signs 28 are read without it and 40 with it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gpo_data.errors import UsageError
from gpo_data.evaluators import ocr_models
from gpo_data.evaluators.pool import Measure, Pool
from gpo_data.evaluators.version import as_version
from gpo_data.recipe import Ocr, Recipe

LINE_HEIGHT = 48  # pixels; what recognition models are built for
WIDTH_STEP = 16  # pixels at that height; crops are padded to a few widths, so that they share batches
BORDER_TOLERANCE = 40  # sum over R, G, B; above it a pixel is not border
BORDER_SHARE = 0.1  # of a row or a column that must differ from the border before it counts as picture


@dataclass(frozen=True)
class Settings:
    """What a process needs to load the models; picklable."""

    ocr: Ocr
    recognition: Path
    detection: Path | None


COLUMNS: dict[str, pa.DataType] = {
    "ocr_text": pa.string(),
    "ocr_confidence": pa.float64(),
    "ocr_lines": pa.list_(
        pa.struct({"text": pa.string(), "confidence": pa.float64(), "box": pa.list_(pa.float64())}.items())
    ),
}


class OcrEvaluator:
    name = "ocr"
    columns = COLUMNS
    needs = ("ocr", "paddleocr", "rapidocr", "onnxruntime")

    @classmethod
    def of(cls, name: str, recipe: Recipe, threads: int | None) -> OcrEvaluator:
        return cls(recipe.ocr, threads)

    def __init__(self, ocr: Ocr, threads: int | None = None) -> None:
        """Finds the model files, or raises UsageError. The models load at the first picture, with so many threads."""
        import_cv2()
        _expect_device(ocr.device)
        recognition = ocr_models.resolve(ocr.recognition_model, "ocr.recognition_model", "rec", ocr.mode)
        detection = None
        if ocr.mode == "scene":
            detection = ocr_models.resolve(ocr.detection_model, "ocr.detection_model", "det", ocr.mode)
        self.version = _version(ocr, [p for p in (recognition, detection) if p])
        self._pool = Pool(load, Settings(ocr, recognition, detection), ocr.workers, ocr.batch_size, threads)

    def measure(self, images: list[np.ndarray], targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """images: uint8 [H, W, 3] RGB; the targets play no part in what is read."""
        return self._pool([(image, {}) for image in images])

    def close(self) -> None:
        self._pool.close()


def _expect_device(setting: str) -> None:
    import onnxruntime

    gpu = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if setting != "cpu" and not (gpu and re.fullmatch(r"gpu(:\d+)?", setting)):
        there = "cpu, gpu or gpu:0" if gpu else "cpu (this onnxruntime has no CUDA; that of onnxruntime-gpu has)"
        raise UsageError(f"ocr.device: expected {there}, found {setting!r}")


def import_cv2() -> Any:
    """cv2; where a system library is missing, a UsageError that says what to install."""
    try:
        import cv2
    except ImportError as error:
        raise UsageError(
            f"cv2 does not import ({error}); on a machine without libGL: pip install --force-reinstall --no-deps "
            f"opencv-contrib-python-headless, or install the system packages libgl1 and libglib2.0-0"
        ) from None
    return cv2


@contextmanager
def _quick_yaml() -> Iterator[None]:
    """PaddleX reads a model's description with PyYAML's Python parser: 1 to 1.4 s on an AMD EPYC (Zen 3), in C 0.1."""
    import yaml

    python = yaml.FullLoader
    yaml.FullLoader = getattr(yaml, "CFullLoader", python)  # the same constructor and resolver
    try:
        yield
    finally:
        yaml.FullLoader = python


@_quick_yaml()
def load(settings: Settings, threads: int) -> Measure:
    """A function over batches; `threads` of onnxruntime a model."""
    import paddleocr

    # After the import, which sets its own level; below an error it says nothing that a user can act on.
    logging.getLogger("paddlex").setLevel(logging.ERROR)
    cv2, ocr = import_cv2(), settings.ocr
    common = {
        "engine": "onnxruntime",
        "engine_config": {"intra_op_num_threads": threads, "inter_op_num_threads": 1, "log_severity_level": 3},
        "device": ocr.device,
    }

    def prepared(image: np.ndarray) -> np.ndarray:
        if ocr.upscale != 1:
            image = cv2.resize(image, None, fx=ocr.upscale, fy=ocr.upscale, interpolation=cv2.INTER_CUBIC)
        return np.ascontiguousarray(image[..., ::-1])  # PaddleOCR reads BGR

    if ocr.mode == "recognition":
        reader = paddleocr.TextRecognition(
            model_name=ocr_models.model_name(settings.recognition), model_dir=str(settings.recognition), **common
        )
        return lambda batch: _recognise(reader, [image for image, _ in batch], prepared)
    scene = paddleocr.PaddleOCR(
        text_detection_model_name=ocr_models.model_name(settings.detection or Path()),
        text_detection_model_dir=str(settings.detection),
        text_recognition_model_name=ocr_models.model_name(settings.recognition),
        text_recognition_model_dir=str(settings.recognition),
        use_doc_orientation_classify=False,
        use_doc_unwarping=False,
        use_textline_orientation=False,
        **common,
    )
    return lambda batch: [_scene(found, ocr.upscale) for image, _ in batch for found in scene.predict(prepared(image))]


def _recognise(reader: Any, images: list[np.ndarray], prepared: Any) -> list[dict[str, Any]]:
    boxes = [content_box(image) for image in images]
    crops = [prepared(image[y0:y1, x0:x1]) for image, (x0, y0, x1, y1) in zip(images, boxes, strict=True)]
    crops = [_pad(crop) for crop in crops]
    widths: dict[int, list[int]] = {}
    for i, crop in enumerate(crops):
        widths.setdefault(_width(crop), []).append(i)
    rows: list[dict[str, Any]] = [{}] * len(images)
    for members in widths.values():
        found = reader.predict([crops[i] for i in members], batch_size=len(members))
        for i, line in zip(members, found, strict=True):
            rows[i] = _row([(line["rec_text"], line["rec_score"], boxes[i])])
    return rows


def border_color(image: np.ndarray) -> np.ndarray:
    """The median of the first and the last row, float [3]."""
    return np.asarray(np.median(np.concatenate([image[0], image[-1]]), axis=0))


def content_box(image: np.ndarray) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of what is inside an even border; the whole picture if there is none, or nothing in it."""
    height, width = image.shape[:2]
    differs = np.abs(image - border_color(image)).sum(-1) > BORDER_TOLERANCE
    rows = np.flatnonzero(differs.mean(1) > BORDER_SHARE)
    columns = np.flatnonzero(differs.mean(0) > BORDER_SHARE)
    if len(rows) < 4 or len(columns) < 4:
        return 0, 0, width, height
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _width(crop: np.ndarray) -> int:
    """Pixels that a crop is wide at LINE_HEIGHT, in whole steps."""
    steps = -(-crop.shape[1] * LINE_HEIGHT // (crop.shape[0] * WIDTH_STEP))
    return max(ocr_models.WIDTHS["recognition"], int(steps) * WIDTH_STEP)


def _pad(crop: np.ndarray) -> np.ndarray:
    """Grey on the right up to a whole step of width: what PaddleOCR pads a batch with."""
    missing = _width(crop) * crop.shape[0] // LINE_HEIGHT - crop.shape[1]
    return np.pad(crop, ((0, 0), (0, max(0, missing)), (0, 0)), constant_values=127)


def _scene(found: Any, upscale: float) -> dict[str, Any]:
    boxes = np.asarray(found["rec_boxes"], dtype=np.float64).reshape(-1, 4) / upscale
    return _row(list(zip(found["rec_texts"], found["rec_scores"], boxes.tolist(), strict=True)))


def _row(lines: list[tuple[str, float, Any]]) -> dict[str, Any]:
    # Rounded, because the last bits of a confidence depend on the size of the batch.
    kept = [
        {"text": text, "confidence": round(float(score), 5), "box": [round(float(v), 2) for v in box]}
        for text, score, box in lines
        if text
    ]
    return {
        "ocr_text": " ".join(str(line["text"]) for line in kept),
        "ocr_confidence": round(float(np.mean([line["confidence"] for line in kept])), 5) if kept else 0.0,
        "ocr_lines": kept,
    }


def _version(ocr: Ocr, folders: list[Path]) -> str:
    """Package, models, and a hash of the model files and of every setting that changes what is read."""
    digest = hashlib.blake2b(f"{ocr.mode} {ocr.upscale}".encode(), digest_size=4)
    for folder in folders:
        for name in ocr_models.FILES:
            digest.update((folder / name).read_bytes())
    models = "-".join(ocr_models.model_name(folder) for folder in folders)
    version = f"paddleocr-{importlib.metadata.version('paddleocr')}-{models}-{digest.hexdigest()}"
    return as_version(version)
