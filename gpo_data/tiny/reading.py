"""Reading and counting as accuracy.py needs them: pictures in, words and numbers out.

OCR is PP-OCRv6 small recognition (the ONNX file of the `rapidocr` wheel) run by onnxruntime
on rows 8 to 56, where the sign is: height 48, (x / 255 - 0.5) / 0.5, BGR; greedy CTC decoding,
blank = 0, over the capitals only. Both choices matter: on the whole picture and over all
characters the recogniser read 48% of two-letter words (0 for O, a Han character for EP).
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from gpo_data.evaluators.yolo import detect
from gpo_data.tiny.words import LETTERS


@lru_cache(maxsize=1)
def _recogniser():
    import onnxruntime
    import rapidocr

    path = Path(rapidocr.__file__).parent / "models" / "PP-OCRv6_rec_small.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    characters = session.get_modelmeta().custom_metadata_map["character"].splitlines()
    return session, ["", *characters, " "]


def read_words(pictures: np.ndarray, batch: int = 32) -> list[str]:
    """uint8 [N, 64, 64, 3] -> N strings, without spaces."""
    session, characters = _recogniser()
    only_capitals = np.full(len(characters), -np.inf, np.float32)
    only_capitals[[0] + [i for i, c in enumerate(characters) if c and c in LETTERS]] = 0
    name = session.get_inputs()[0].name
    found = []
    for start in range(0, len(pictures), batch):
        part = [
            np.asarray(Image.fromarray(p[8:56]))  # 48 rows: no resizing needed
            for p in pictures[start : start + batch]
        ]
        x = (np.stack(part)[..., ::-1].astype(np.float32) / 255 - 0.5) / 0.5
        x = np.pad(x.transpose(0, 3, 1, 2), ((0, 0), (0, 0), (0, 0), (0, 160 - 64)))
        best = (session.run(None, {name: x})[0] + only_capitals).argmax(-1)
        for row in best:
            kept = [c for i, c in enumerate(row) if c and (i == 0 or c != row[i - 1])]
            found.append("".join(characters[c] for c in kept).replace(" ", ""))
    return found


def count_shapes(pictures: np.ndarray, yolo, shapes: list[str], confidence: float = 0.4) -> list[int]:
    """uint8 [N, 64, 64, 3] -> how many of the asked shape the detector sees in each."""
    numbers = []
    for start in range(0, len(pictures), 64):
        results = detect(yolo, list(pictures[start : start + 64]), imgsz=128, conf=confidence, iou=0.5)
        for result, shape in zip(results, shapes[start : start + 64], strict=True):
            numbers.append(sum(result.names[int(c)] == shape for c in result.boxes.cls))
    return numbers
