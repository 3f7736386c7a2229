"""Evaluators on real parts: PaddleOCR reads rendered signs, YOLO counts rendered shapes."""

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw, ImageFont

from gpo_data import cli
from gpo_data.errors import UsageError
from gpo_data.evaluators import build, columns_of, ocr_models
from gpo_data.evaluators.ocr import OcrEvaluator, content_box
from gpo_data.evaluators.pool import Pool
from gpo_data.evaluators.yolo import YoloEvaluator
from gpo_data.recipe import Ocr, Recipe, Task, Yolo
from gpo_data.tasks import TASKS
from gpo_data.tiny.__main__ import main as tiny_main
from gpo_data.tiny.render import render_count, render_text

ROOT = Path(__file__).parents[1]

WORDS = ("KITE", "UP", "ROBOT", "SKY", "HOTEL", "EXIT")
SIGNS = [render_text(word, color=color, seed=i) for i, (word, color) in enumerate(zip(WORDS, ("red", "blue") * 3))]  # noqa: B905


@pytest.fixture(scope="module")
def recognition():
    return OcrEvaluator(Ocr(mode="recognition"))


def checked(evaluator, images, targets):
    """measure(), with what holds for every evaluator."""
    rows = evaluator.measure(images, targets)
    assert [list(row) for row in rows] == [list(evaluator.columns)] * len(images)
    pa.Table.from_pylist(rows, schema=pa.schema(list(evaluator.columns.items())))
    assert re.fullmatch(r"[A-Za-z0-9._-]+", evaluator.version)
    return rows


def alike(found, expected):
    """Equal but for the last digits of numbers: in a batch of another size the same sum may round another way."""
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(alike(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(alike, found, expected))
    return found == (pytest.approx(expected, rel=1e-3, abs=2e-5) if isinstance(expected, float) else expected)


def test_recognition_reads_signs(recognition):
    rows = checked(recognition, SIGNS, [{}] * len(SIGNS))
    assert [row["ocr_text"] for row in rows] == list(WORDS)
    assert all(row["ocr_confidence"] > 0.8 and len(row["ocr_lines"]) == 1 for row in rows)


def test_a_picture_is_read_the_same_alone_and_in_company(recognition):
    alone = [recognition.measure([sign], [{}])[0] for sign in SIGNS]
    assert alike(alone, recognition.measure(SIGNS, [{}] * len(SIGNS)))
    assert recognition.measure([], []) == []


def test_nothing_to_read_is_the_empty_string(recognition):
    (row,) = checked(recognition, [np.full((64, 64, 3), 200, np.uint8)], [{}])
    assert row == {"ocr_text": "", "ocr_confidence": 0.0, "ocr_lines": []}


def test_content_box():
    image = np.full((20, 30, 3), 240, np.uint8)
    assert content_box(image) == (0, 0, 30, 20)
    image[5:15, 10:22] = 30
    assert content_box(image) == (10, 5, 22, 15)


def test_scene_reads_lines_in_order():
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 40)
    picture = Image.new("RGB", (320, 256), (200, 220, 210))
    draw = ImageDraw.Draw(picture)
    draw.text((30, 30), "Open Late", font=font, fill="black")
    draw.text((90, 170), "COFFEE", font=font, fill="black")
    blank = np.full((128, 128, 3), 90, np.uint8)
    found, nothing = checked(OcrEvaluator(Ocr(mode="scene")), [np.asarray(picture), blank], [{}, {}])
    assert found["ocr_text"] == "Open Late COFFEE"
    first, second = (line["box"] for line in found["ocr_lines"])
    assert first[3] < second[1] and 20 < first[0] < 45
    assert nothing["ocr_lines"] == []


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_workers_change_nothing(recognition, workers):
    several = OcrEvaluator(Ocr(mode="recognition", workers=workers))
    assert several.version == recognition.version
    assert alike(several.measure(SIGNS, [{}] * len(SIGNS)), recognition.measure(SIGNS, [{}] * len(SIGNS)))
    several.close()


def test_ocr_model_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "official_models" / "my_rec_onnx"
    source = ocr_models.resolve("rapidocr", "ocr.recognition_model", "rec", "recognition")
    shutil.copytree(source, folder)
    assert ocr_models.resolve("my_rec", "ocr.recognition_model", "rec", "scene") == folder
    assert ocr_models.resolve(str(folder), "ocr.recognition_model", "rec", "scene") == folder
    assert ocr_models.model_name(folder) == "PP-OCRv6_small_rec"
    (folder / "inference.onnx").unlink()
    with pytest.raises(UsageError, match=r"ocr\.recognition_model: .* has no inference\.onnx"):
        OcrEvaluator(Ocr(mode="recognition", recognition_model=str(folder)))
    with pytest.raises(UsageError, match=r"ocr\.detection_model: no folder no/such"):
        OcrEvaluator(Ocr(mode="scene", detection_model="no/such"))


def test_the_wheels_models_are_laid_out_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = ocr_models.resolve("rapidocr", "ocr.detection_model", "det", "scene")
    before = (first / "inference.onnx").stat().st_mtime_ns
    assert ocr_models.resolve("rapidocr", "ocr.detection_model", "det", "scene") == first
    assert (first / "inference.onnx").stat().st_mtime_ns == before
    assert [p.name for p in first.parent.iterdir()] == [first.name]


def test_an_ocr_model_that_cannot_be_fetched_says_what_to_put_where(monkeypatch):
    from paddlex.inference.utils.official_models import official_models

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(official_models, "get_model_path", offline)
    message = (
        r"ocr\.recognition_model: .*no route.*inference\.onnx from huggingface\.co/.* put them in .*official_models"
    )
    with pytest.raises(UsageError, match=message):
        OcrEvaluator(Ocr(mode="recognition", recognition_model="PP-OCRv9_rec"))


@pytest.fixture(scope="module")
def shapes():
    rng = np.random.default_rng(0)
    numbers = [1, 3, 5, 2, 4, 6]
    images = [render_count(shape, n, "red", rng)[0] for n, shape in zip(numbers, ("circle", "square") * 3)]  # noqa: B905
    return images, [{"target_class": s, "target_count": n} for s, n in zip(("circle", "square") * 3, numbers)]  # noqa: B905


YOLO = Yolo(weights="tiny", image_size=128)


def test_yolo_counts_shapes(shapes):
    images, targets = shapes
    evaluator = YoloEvaluator(YOLO)
    rows = checked(evaluator, images, targets)
    assert [row["n_detected"] for row in rows] == [target["target_count"] for target in targets]
    assert rows[0]["detections"][0]["class"] == "circle"
    assert evaluator.measure(images[:1], [{"target_class": "triangle"}])[0]["n_detected"] == 0
    with pytest.raises(UsageError, match=r"does not detect 'dog'; its classes: circle, square, triangle"):
        evaluator.measure(images[:1], [{"target_class": "dog"}])


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_workers_count_the_same(shapes, workers):
    several = YoloEvaluator(replace(YOLO, workers=workers))
    assert alike(several.measure(*shapes), YoloEvaluator(YOLO).measure(*shapes))
    several.close()


def test_yolo_opens_any_weights_file(shapes, tmp_path):
    from ultralytics import YOLO as Detector

    path = tmp_path / "own.pt"
    Detector("yolo11n.yaml", verbose=False).save(path)
    rows = checked(YoloEvaluator(replace(YOLO, weights=str(path))), shapes[0][:2], [{"target_class": "7"}] * 2)
    assert all(row["n_detected"] >= 0 for row in rows)
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not weights")
    evaluator = YoloEvaluator(replace(YOLO, weights=str(broken)))
    with pytest.raises(UsageError, match=r"broken\.pt is not a detector"):
        evaluator.measure(shapes[0][:1], [{"target_class": "dog"}])


def test_missing_yolo_weights_say_where_to_get_them(monkeypatch):
    with pytest.raises(UsageError, match=r"yolo\.weights: no file nope\.pt; get nope\.pt .*put it in"):
        YoloEvaluator(replace(YOLO, weights="nope.pt"))


def test_image_stats_of_known_pictures():
    flat = np.full((8, 8, 3), 10, np.uint8)
    halves = flat.copy()
    halves[:, 4:] = 250
    stats = build(Recipe(evaluators=["color"], reward="1"))[0]
    first, second = checked(stats, [flat, halves], [{}, {}])
    assert first == {"entropy": 0.0, "edge_density": 0.0, "dark_fraction": 1.0}
    assert second == {"entropy": 1.0, "edge_density": 1 / 8, "dark_fraction": 0.5}


def test_evaluators_that_see_the_same_stay_open():
    made = Recipe(evaluators=["ocr", "color"], reward="1", name="a")
    opened = build(made)
    again = build(replace(made, name="b", seed=5), opened=opened)
    assert all(one is other for one, other in zip(again, opened, strict=True))
    larger = build(replace(made, ocr=replace(made.ocr, upscale=2.0)), opened=opened)
    assert [one is other for one, other in zip(larger, opened, strict=True)] == [True, False, True]


def test_build_puts_image_stats_first():
    evaluators = build(Recipe(evaluators=["ocr", "yolo"], reward="1", task=Task(kind="count"), yolo=YOLO))
    assert [e.name for e in evaluators] == ["image_stats", "ocr", "yolo"]
    assert len(columns_of(evaluators)) == 8
    with pytest.raises(UsageError, match=r"evaluators: yolo counts .*task\.kind"):
        build(Recipe(evaluators=["yolo"], reward="1", yolo=YOLO))


class Hidden:
    """An import hook: these packages are not installed."""

    def __init__(self, *names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    ("evaluator", "package", "extra"),
    [
        ("ocr", "paddleocr", "ocr"),
        ("ocr", "onnxruntime", "ocr"),
        ("yolo", "ultralytics", "yolo"),
        ("boxes", "ultralytics", "yolo"),
    ],
)
def test_a_missing_package_is_said_before_anything_is_drawn(evaluator, package, extra, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(package), *sys.meta_path])
    monkeypatch.chdir(tmp_path)
    overrides = ["--evaluators", f"[{evaluator}]", "--reward", "1"]
    assert cli.main(["shards", "count-tiny", *overrides]) == 2
    wanted = f"error: evaluators: {evaluator} needs {package}, not installed here: pip install 'gpo[{extra}]'\n"
    assert capsys.readouterr().err == wanted
    assert list(tmp_path.iterdir()) == []


def test_the_tiny_worlds_training_says_what_it_lacks_before_it_begins(tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "ultralytics"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden("ultralytics"), *sys.meta_path])
    assert tiny_main([str(ROOT / "recipes/tiny.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert "needs ultralytics, not installed here: pip install 'gpo[yolo]'\n" in capsys.readouterr().err


def test_no_two_columns_of_a_row_have_one_name(monkeypatch):
    for kind in TASKS:  # nor has a task one that is taken
        build(Recipe(evaluators=["color"], reward="1", task=Task(kind=kind)))
    taken = {"Seed": "every dataset", "std": "every dataset", "entropy": "image_stats"}
    for name, owner in taken.items():
        monkeypatch.setitem(TASKS, "sums", replace(TASKS["text"], columns={name: pa.string()}))
        said = f"^task.kind: sums: the column '{name}' is one of {owner} already"
        with pytest.raises(UsageError, match=said):
            build(Recipe(evaluators=["color"], reward="1", task=Task(kind="sums")))
    monkeypatch.setitem(TASKS, "sums", replace(TASKS["text"], columns={"color_seen": pa.string()}))
    with pytest.raises(UsageError, match="^evaluators: color: the column 'color_seen' is one of sums already"):
        build(Recipe(evaluators=["color"], reward="1", task=Task(kind="sums")))


def _fragile(settings, threads):
    def measure(batch):
        if any(image == settings for image, _ in batch):
            raise ValueError(f"cannot measure {settings}")
        return [{"value": image} for image, _ in batch]

    return measure


def test_an_error_reaches_the_caller_as_it_was():
    for workers in (0, 2):
        pool = Pool(_fragile, 3, workers, batch_size=2)
        with pytest.raises(ValueError, match="cannot measure 3"):
            pool([(i, {}) for i in range(5)])
        assert pool([(i, {}) for i in (7, 8, 9)]) == [{"value": i} for i in (7, 8, 9)]
        pool.close()
