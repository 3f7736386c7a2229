"""Evaluators behind `POST /score`: a scorer in another environment, on another machine, or of another language.

    evaluators: [ocr, imagereward]
    http: {urls: {imagereward: "http://127.0.0.1:8190"}}

Each name of `http.urls` is an evaluator; its columns and version are what the scorer says (protocol.py,
docs/judges.md). `gpo-data serve RECIPE` offers any evaluator of ours in this way (serve.py).

What always holds: nothing is drawn before the scorer has said what it measures; a picture that was scored is not
asked about again (remembered.py; of a scorer that tells no version, in this process alone); a scorer that is gone ends
the run (service.py) rather than failing members one by one.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa

from gpo_data.errors import UsageError
from gpo_data.evaluators import protocol
from gpo_data.evaluators.protocol import Described, Malformed, Score
from gpo_data.evaluators.remembered import Remembered, key_of
from gpo_data.evaluators.service import Service
from gpo_data.evaluators.version import as_version
from gpo_data.hardware import pool
from gpo_data.recipe import Http, Recipe


class HttpEvaluator:
    @classmethod
    def of(cls, name: str, recipe: Recipe, threads: int | None) -> HttpEvaluator:
        return cls(name, recipe.http, recipe.lake)

    def __init__(self, name: str, http: Http, lake: str | None = None) -> None:
        """Asks the scorer what it measures. Raises UsageError, RunError.

        Args:
            lake: where answers are kept; None: in this process.
        """
        self.name, self._http = name, http
        self._service = Service(http.urls[name], f"http.urls.{name}", http.timeout, http.retries, http.token_variable)
        said = self._described()
        self.columns: dict[str, pa.DataType] = said.columns
        self.version = as_version(f"http-{said.version}")[:100]
        self._remembered = Remembered(None if said.bare else lake, name, self.version)

    def measure(self, images: list[np.ndarray], targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """images: uint8 [H, W, 3] RGB; targets: the target columns and `prompt`, each.

        Raises RuntimeError with the scorer's words for a picture that it cannot score.
        """
        keys = [key_of(image, target) for image, target in zip(images, targets, strict=True)]
        known = self._remembered.get(keys)
        todo = {key: i for i, key in enumerate(keys) if key not in known}
        places = list(todo.items())
        size = self._http.batch_size
        batches = [places[i : i + size] for i in range(0, len(places), size)]
        errors: list[str] = []
        with pool(min(self._http.workers, len(batches))) as threads:
            answers = threads.map(
                lambda batch: self._ask([images[i] for _, i in batch], [targets[i] for _, i in batch]), batches
            )
            for batch, scores in zip(batches, answers, strict=True):
                found = {key: score for (key, _), score in zip(batch, scores, strict=True)}
                rows = {key: score.row for key, score in found.items() if score.row is not None}
                self._remembered.put(rows)
                known |= rows
                errors += [score.error for score in found.values() if score.error is not None]
        if errors:
            raise RuntimeError(errors[0])
        return [{name: known[key][name] for name in self.columns} for key in keys]

    def _ask(self, images: list[np.ndarray], targets: list[dict[str, Any]]) -> list[Score]:
        pictures = [protocol.png(image) for image in images]
        if self._http.encoding == "multipart":
            answer = self._service.post(protocol.SCORE, fields=protocol.multipart_fields(pictures, targets))
        else:
            answer = self._service.post(protocol.SCORE, protocol.json_body(pictures, targets))
        try:
            return protocol.scores_of(answer, len(images), self.name, self.columns)
        except Malformed as error:
            raise UsageError(f"{self._service.key}: {self._service.url}{protocol.SCORE}: {error}") from None

    def _described(self) -> Described:
        answer = self._service.get_if_there("/")
        if answer is None:
            return Described(_digest(self._service.url), {self.name: pa.float64()}, bare=True)
        try:
            return protocol.described(answer)
        except Malformed as error:
            raise UsageError(f"{self._service.key}: {self._service.url}/: {error}") from None


def _digest(url: str) -> str:
    """Of a scorer that tells no version: its address."""
    return hashlib.blake2b(url.encode(), digest_size=4).hexdigest()
