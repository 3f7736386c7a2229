"""The sections of a recipe about measuring: one an evaluator, or of those of a kind.

Their docstrings are what `gpo-data VERB --help` prints.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from gpo_data.recipe.checks import (
    Count,
    NotNegative,
    PathText,
    Pixels,
    Positive,
    Share,
    Workers,
    check,
    expect,
)


@dataclass(frozen=True)
class Ocr:
    """Text reading by PaddleOCR.

    Args:
        mode: `scene` finds text lines, then reads them; `recognition` reads the whole picture as one line.
        recognition_model: folder with `inference.yml` and `inference.onnx`, or a PaddleOCR model name;
            `rapidocr` takes the PP-OCRv6 small files that the rapidocr wheel carries.
        detection_model: likewise, for `scene`.
        device: `cpu`, `gpu` or `gpu:0`.
        batch_size: pictures read at once.
        workers: processes that read; 0 reads in the drawing process, beside the drawing.
        actors: with `ray`: actors of their own that read, for all that draw; 0 reads where it is drawn.
        num_gpus: with `ray`: GPUs of such an actor; a share such as 0.25 lets four use one.
        upscale: enlarge pictures by this factor before reading.
    """

    mode: Literal["scene", "recognition"] = "scene"
    recognition_model: PathText = "rapidocr"
    detection_model: PathText = "rapidocr"
    device: PathText = "cpu"
    batch_size: Count = 32
    workers: Workers = 0
    actors: Workers = 0
    num_gpus: NotNegative = 0.0
    upscale: Annotated[float, Field(gt=0, le=16, allow_inf_nan=False)] = 1.0

    def __post_init__(self) -> None:
        check(self, "ocr.")


@dataclass(frozen=True)
class Yolo:
    """Object detection by ultralytics.

    Args:
        weights: a weights file or an ultralytics model name; `tiny` is the embedded detector.
        confidence: detections below it are not kept.
        iou: boxes that overlap more than this are one.
        image_size: pictures are resized to it, pixels.
        device: `cpu` or a CUDA index.
        batch_size: pictures at once.
        workers: processes; 0 detects in the drawing process, beside the drawing.
        actors: with `ray`: actors of their own that detect, for all that draw; 0 detects where it is drawn.
        num_gpus: with `ray`: GPUs of such an actor; a share such as 0.25 lets four use one.
    """

    weights: PathText = "yolo11x.pt"
    confidence: Share = 0.25
    iou: Share = 0.7
    image_size: Pixels = 640
    device: PathText = "cpu"
    batch_size: Count = 32
    workers: Workers = 0
    actors: Workers = 0
    num_gpus: NotNegative = 0.0

    def __post_init__(self) -> None:
        check(self, "yolo.")


@dataclass(frozen=True)
class Clip:
    """A scorer on CLIP embeddings.

    Args:
        model: a transformers CLIPModel with its processor, hub id or folder.
        weights: file that goes with it: the MLP of `aesthetic`; elsewhere an open_clip checkpoint over the model's own.
        device: `cpu`, `cuda` or `cuda:0`.
        batch_size: pictures at once.
        actors: with `ray`: actors of their own that score, for all that draw; 0 scores where it is drawn.
        num_gpus: with `ray`: GPUs of such an actor; a share such as 0.25 lets four use one.
    """

    model: PathText = "openai/clip-vit-large-patch14"
    weights: PathText | None = None
    device: PathText = "cpu"
    batch_size: Count = 32
    actors: Workers = 0
    num_gpus: NotNegative = 0.0

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Http:
    """Scorers behind `POST /score`, anywhere: judges.md has the protocol.

    Args:
        urls: {name: address}; each name is an evaluator, as `urls: {imagereward: "http://127.0.0.1:8190"}`.
        encoding: of the pictures that are sent: `json` (base64) or `multipart` (files).
        batch_size: pictures a request.
        workers: requests at once.
        timeout: seconds that a request may take.
        retries: tries after the first, with back-off; then the run ends, and goes on with the same command.
        token_variable: of the environment, whose value is sent as a bearer token where it is set.
    """

    urls: dict[str, str] = field(default_factory=dict)
    encoding: Literal["json", "multipart"] = "json"
    batch_size: Count = 16
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    timeout: Positive = 120.0
    retries: Annotated[int, Field(ge=0, le=20)] = 5
    token_variable: PathText = "GPO_JUDGE_TOKEN"

    def __post_init__(self) -> None:
        check(self, "http.")
        for name in self.urls:
            fits = re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name) is not None
            expect(fits, "http.urls", "names of letters a-z, digits and _", name)


@dataclass(frozen=True)
class Vlm:
    """A vision-language model behind an OpenAI-compatible server, asked about every picture.

    Args:
        url: of the server, up to and with `/v1`.
        model: as the server calls it; null takes the one that it has.
        questions: asked of each picture; `{prompt}` and target columns are put in.
        questions_column: of the prompt's row, with its own list of questions, in the place of `questions`: texts,
            GenEval 2's [question, answer], or objects with `question`, and if need be `id`, `answer` and `depends`.
        answer: `yes` (the probability of yes, or of a question's own `answer`) or `grade` (1 to `grades`).
        grades: the best grade; 1 is the worst.
        mean: of a picture's questions: `arithmetic`, or `geometric` (as GenEval 2 has it).
        api: `chat` (/chat/completions with log-probabilities: vLLM, SGLang, llama.cpp, OpenAI) or `systemone`
            (/systemone of `transformers serve`, which gives none in chat).
        system: an instruction before every question; "" is none.
        batch_size: requests at once.
        timeout: seconds that a request may take.
        retries: tries after the first, with back-off; then the run ends, and goes on with the same command.
        token_variable: of the environment, whose value is sent as a bearer token where it is set.
    """

    url: PathText = "http://127.0.0.1:8000/v1"
    model: PathText | None = None
    questions: list[str] = field(default_factory=lambda: ["Does this picture show {prompt}?"])
    questions_column: PathText | None = None
    answer: Literal["yes", "grade"] = "yes"
    grades: Annotated[int, Field(ge=2, le=10)] = 5
    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    api: Literal["chat", "systemone"] = "chat"
    system: str = ""
    batch_size: Annotated[int, Field(ge=1, le=256)] = 8
    timeout: Positive = 120.0
    retries: Annotated[int, Field(ge=0, le=20)] = 5
    token_variable: PathText = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        check(self, "vlm.")
        expect(bool(self.questions) or self.questions_column is not None, "vlm.questions", "at least one", [])
