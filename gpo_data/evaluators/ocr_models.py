"""Folders of OCR models that PaddleOCR opens with engine="onnxruntime": `inference.onnx` and `inference.yml`.

The setting is one of
    rapidocr     the PP-OCRv6 small files that the `rapidocr` wheel carries, laid out as such a folder in
                 $XDG_CACHE_HOME/gpo/rapidocr-<version>/ (once, and atomically); needs no download
    a folder     the user's own
    a name       of a PaddleOCR model, such as PP-OCRv6_medium_rec: from PaddleX's cache, else downloaded

The wheel's recognition file has its characters in the ONNX metadata, one a line; PaddleX wants them in the yml.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpo_data.errors import UsageError
from gpo_data.fetch import announce
from gpo_data.home import user_cache

FILES = ("inference.yml", "inference.onnx")
# The folder's name says how wide a line is padded to, at a height of 48 pixels. Recognition of small pictures is
# many times faster, and no worse, padded to 96 than to PaddleOCR's own 320.
WIDTHS = {"recognition": 96, "scene": 320}


def resolve(setting: str, key: str, kind: str, mode: str) -> Path:
    """The model folder of a setting.

    Args:
        setting: the value in the recipe.
        key: its key, for error messages.
        kind: `rec` or `det`.
        mode: `recognition` or `scene`.
    """
    if setting == "rapidocr":
        return _from_wheel(kind, mode)
    folder = Path(setting)
    if folder.is_dir():
        return _complete(folder, key)
    if folder.exists() or "/" in setting or not re.fullmatch(r"\w[\w.-]*", setting):
        raise UsageError(
            f"{key}: no folder {setting}; expected rapidocr, a folder with {' and '.join(FILES)}, or the name of a "
            f"PaddleOCR model"
        )
    return _official(setting, key)


def _complete(folder: Path, key: str) -> Path:
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"{key}: {folder} has no {' and no '.join(missing)}; expected {' and '.join(FILES)}")
    return folder


def model_name(folder: Path) -> str:
    """`Global.model_name` of the folder's inference.yml, as PaddleX wants it beside the folder."""
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # 18 000 characters: seconds without the C loader
    content = yaml.load((folder / "inference.yml").read_text(encoding="utf-8"), Loader=loader)
    try:
        return str(content["Global"]["model_name"])
    except (KeyError, TypeError):
        raise UsageError(f"{folder / 'inference.yml'}: no Global.model_name in it") from None


def _official(name: str, key: str) -> Path:
    # PaddleX keeps the ONNX package of a model beside the others, under this name.
    cache = Path(os.environ.get("PADDLE_PDX_CACHE_HOME", Path.home() / ".paddlex")) / "official_models"
    folder = cache / f"{name}_onnx"
    if all((folder / file).is_file() for file in FILES):
        return folder
    try:
        from paddlex.inference.utils.official_models import official_models

        with suppress(Exception):  # the models have other hosters than this hub
            announce(key, f"PaddlePaddle/{name}_onnx", ["*.onnx"])
        logging.getLogger("paddlex").setLevel(logging.CRITICAL)  # its errors are in the message below
        found = Path(official_models.get_model_path(name, model_formats=["onnx"]))
    except Exception as error:  # every hoster fails in its own way, and the user needs the same thing
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{key}: the model {name} is not on this machine and could not be fetched ({reason}). Get "
            f"{' and '.join(FILES)} from huggingface.co/PaddlePaddle/{name}_onnx and put them in {folder}, or set "
            f"{key} to a folder that has them, or to rapidocr, which is installed"
        ) from None
    return _complete(found, key)


def _from_wheel(kind: str, mode: str) -> Path:
    spec: Any = importlib.util.find_spec("rapidocr")  # not imported: that would load its whole engine
    source = Path(spec.submodule_search_locations[0]) / "models" / f"PP-OCRv6_{kind}_small.onnx"
    version = importlib.metadata.version("rapidocr")
    if not source.is_file():
        raise UsageError(
            f"ocr: rapidocr {version} has no {source.name}: expected {source}; pip install 'rapidocr>=3.9'"
        )
    home = user_cache() / f"rapidocr-{version}"
    width = f"-{WIDTHS[mode]}" if kind == "rec" else ""
    folder = home / f"PP-OCRv6_small_{kind}{width}"
    if all((folder / name).is_file() for name in FILES):
        return folder
    import yaml

    config = _recognition_config(source, WIDTHS[mode]) if kind == "rec" else _detection_config()
    try:
        home.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=home, prefix=f".{folder.name}-"))
        shutil.copyfile(source, temporary / "inference.onnx")
        (temporary / "inference.yml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
        try:
            temporary.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(temporary)
            if not folder.is_dir():
                raise
    except OSError as error:
        raise UsageError(f"ocr: cannot write {folder}: {error}; set XDG_CACHE_HOME to a folder that can be") from None
    return folder


def _recognition_config(source: Path, width: int) -> dict[str, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    characters = session.get_modelmeta().custom_metadata_map["character"].removesuffix("\n").split("\n")
    return {
        "Global": {"model_name": "PP-OCRv6_small_rec"},
        "PreProcess": {
            "transform_ops": [
                {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}},
                {"RecResizeImg": {"image_shape": [3, 48, width]}},
            ]
        },
        "PostProcess": {"name": "CTCLabelDecode", "character_dict": characters},
    }


def _detection_config() -> dict[str, Any]:
    return {
        "Global": {"model_name": "PP-OCRv6_small_det"},
        "PreProcess": {
            "transform_ops": [
                {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}},
                {"DetResizeForTest": {"resize_long": 960}},
                {
                    "NormalizeImage": {
                        "mean": [0.485, 0.456, 0.406],
                        "std": [0.229, 0.224, 0.225],
                        "scale": 1 / 255,
                        "order": "hwc",
                    }
                },
                {"ToCHWImage": None},
            ]
        },
        "PostProcess": {"name": "DBPostProcess", "thresh": 0.3, "box_thresh": 0.6, "unclip_ratio": 1.5},
    }
