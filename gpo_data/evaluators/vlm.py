"""Evaluator `vlm`: a vision-language model behind an OpenAI-compatible server looks at every picture.

    vlm_score     0 to 1: the mean over the questions (questions.py); NULL where the prompt has none
    vlm_answers   question, answer, p (of that answer, or the grade as 0 to 1), counted

With `answer: yes` and P the probabilities of the first token of the reply, over its likeliest ones,

    p = P(yes) / (P(yes) + P(no));     of another answer a question may have, such as `two`: p = P(two)

and with `answer: grade`, of 1 to G, p = (E[grade] - 1) / (G - 1), the expectation over the digits' probabilities where
the server tells them, else the grade that it wrote. A probability tells members of a group apart where a word does not.

    api: chat        POST /chat/completions with logprobs: vLLM, SGLang, llama.cpp, OpenAI
    api: systemone   POST /systemone of `transformers serve`, whose chat gives no log-probabilities: all questions of a
                     picture at once, answered from the logits of Yes and No, or of the levels

What always holds: the model is asked with temperature 0, one picture a request; a reply that is no answer costs its
picture, and its words are the reason; no picture is asked about twice (remembered.py).
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from typing import Any

import numpy as np
import pyarrow as pa

from gpo_data.errors import UsageError
from gpo_data.evaluators.protocol import png
from gpo_data.evaluators.questions import Question, questions_of, together
from gpo_data.evaluators.remembered import Remembered, key_of
from gpo_data.evaluators.service import Service
from gpo_data.evaluators.version import as_version
from gpo_data.hardware import pool
from gpo_data.recipe import Recipe, Vlm

COLUMNS: dict[str, pa.DataType] = {
    "vlm_score": pa.float64(),
    "vlm_answers": pa.list_(
        pa.struct({"question": pa.string(), "answer": pa.string(), "p": pa.float64(), "counted": pa.float64()}.items())
    ),
}
LIKELIEST = 20  # first tokens whose probabilities are asked for; the most that servers give
PLACE = "[picture]"  # of the picture in a systemone request
Tokens = list[tuple[str, float]]  # the likeliest first tokens of a reply and their probabilities


class VlmEvaluator:
    name = "vlm"
    columns = COLUMNS

    @classmethod
    def of(cls, name: str, recipe: Recipe, threads: int | None) -> VlmEvaluator:
        return cls(recipe.vlm, recipe.lake)

    def __init__(self, vlm: Vlm, lake: str | None = None) -> None:
        """Asks the server which model it has. Raises UsageError, RunError.

        Args:
            lake: where answers are kept; None: in this process.
        """
        self._vlm = vlm
        self._service = Service(vlm.url, "vlm.url", vlm.timeout, vlm.retries, vlm.token_variable)
        self.model = vlm.model or self._only_model()
        asked = f"{vlm.questions} {vlm.questions_column} {vlm.answer} {vlm.grades} {vlm.mean} {vlm.api} {vlm.system}"
        digest = hashlib.blake2b(f"{self.model} {asked}".encode(), digest_size=4).hexdigest()
        self.version = f"{as_version(self.model.rstrip('/').split('/')[-1])[:60]}-{digest}"
        self._remembered = Remembered(lake, self.name, self.version)

    def measure(self, images: list[np.ndarray], targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """images: uint8 [H, W, 3] RGB; targets: the target columns and `prompt`, each."""
        asked = [questions_of(self._vlm, target) for target in targets]
        keys = [
            key_of(image, {"questions": [vars(one) for one in questions]})
            for image, questions in zip(images, asked, strict=True)
        ]
        known = self._remembered.get(keys)
        todo = {key: i for i, key in enumerate(keys) if key not in known and asked[i]}
        with pool(min(self._vlm.batch_size, len(todo))) as threads:
            rows = threads.map(lambda i: self._picture(images[i], asked[i]), todo.values())
            for key, row in zip(todo, rows, strict=True):
                self._remembered.put({key: row})
                known[key] = row
        nothing = dict.fromkeys(COLUMNS)
        return [known.get(key, nothing) for key in keys]

    def _picture(self, image: np.ndarray, questions: list[Question]) -> dict[str, Any]:
        data = base64.b64encode(png(image)).decode()
        if self._vlm.api == "systemone":
            found = self._systemone(data, questions)
        else:
            found = [self._chat(data, question) for question in questions]
        score, counted = together(questions, found, self._vlm.mean)
        answers = [
            {"question": one.text, "answer": one.answer, "p": round(p, 6), "counted": round(c, 6)}
            for one, p, c in zip(questions, found, counted, strict=True)
        ]
        return {"vlm_score": round(score, 6), "vlm_answers": answers}

    def _chat(self, data: str, question: Question) -> float:
        grades = self._vlm.grades
        how = {"yes": "Answer yes or no." if question.answer.lower() in ("yes", "no") else "Answer in one word."}
        how["grade"] = f"Answer with one number from 1 (worst) to {grades} (best)."
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        text = {"type": "text", "text": f"{question.text} {how[self._vlm.answer]}"}
        messages: list[dict[str, Any]] = [{"role": "user", "content": [picture, text]}]
        if self._vlm.system:
            messages.insert(0, {"role": "system", "content": self._vlm.system})
        answer = self._service.post(
            "/chat/completions",
            {
                "model": self.model,
                "messages": messages,
                "temperature": 0,
                "max_tokens": 8 if self._vlm.answer == "grade" else 1,
                "logprobs": True,
                "top_logprobs": LIKELIEST,
            },
        )
        reply, tokens = reply_of(answer, self._service.url)
        if self._vlm.answer == "grade":
            return grade_of(reply, tokens, grades)
        if tokens is None:
            raise UsageError(
                f"vlm.url: {self._service.url} gives no log-probabilities in chat, which vlm.answer: yes is read from; "
                f"`transformers serve` has them with vlm.api: systemone, or set vlm.answer: grade"
            )
        return probability_of(question.answer, tokens)

    def _systemone(self, data: str, questions: list[Question]) -> list[float]:
        asked: dict[str, dict[str, Any]] = {}
        for i, one in enumerate(questions):
            if self._vlm.answer == "grade":
                levels = [str(grade) for grade in range(1, self._vlm.grades + 1)]
                levels[0], levels[-1] = f"{levels[0]}, worst", f"{levels[-1]}, best"
                asked[str(i)] = {"type": "score", "instructions": one.text, "criteria": levels}
            else:
                plain = one.answer.lower() in ("yes", "no")
                asked[str(i)] = {
                    "type": "noul",
                    "instructions": one.text if plain else f"{one.text} Is the answer: {one.answer}?",
                }
        state = f"{self._vlm.system}\n{PLACE}" if self._vlm.system else PLACE
        assets = {PLACE: {"type": "image", "format": "png", "data_base64": data}}
        found = self._service.post(
            "/systemone", {"model": self.model, "state": state, "assets": assets, "questions": asked}
        )
        try:
            answers = [found["answers"][str(i)] for i in range(len(questions))]
            if self._vlm.answer == "grade":
                return [float(one["score"]) / (self._vlm.grades - 1) for one in answers]
            yes = [float(one["noul"]) for one in answers]
        except (KeyError, TypeError, ValueError):
            where = f"{self._service.url}/systemone"
            raise UsageError(f"vlm.url: {where}: expected answers, found {found!r:.200}") from None
        return [1 - p if one.answer.lower() == "no" else p for p, one in zip(yes, questions, strict=True)]

    def _only_model(self) -> str:
        found = self._service.get("/models")
        data = found.get("data") if isinstance(found, dict) else None
        names = [str(one["id"]) for one in data or [] if isinstance(one, dict) and "id" in one]
        if len(names) != 1:
            raise UsageError(f"vlm.model: {self._service.url} has {', '.join(names) or 'none'}; set it to one")
        return names[0]


def reply_of(answer: Any, url: str) -> tuple[str, Tokens | None]:
    """(text, the likeliest first tokens with their probabilities, None where the server does not tell)."""
    try:
        choice = answer["choices"][0]
        reply = str(choice["message"].get("content") or "")
        content = (choice.get("logprobs") or {}).get("content")
        if not content:
            return reply, None
        first = content[0]
        tokens = {one["token"]: float(one["logprob"]) for one in [first, *(first.get("top_logprobs") or [])]}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise UsageError(f"vlm.url: {url}/chat/completions: expected a reply, found {answer!r:.200}") from None
    return reply, [(token, math.exp(min(0.0, logprob))) for token, logprob in tokens.items()]


def probability_of(answer: str, tokens: Tokens) -> float:
    """Of an answer being what the reply begins with. Raises RuntimeError where neither yes nor no is."""
    wanted = _plain(answer)
    if wanted not in ("yes", "no"):
        begins = [(plain, p) for token, p in tokens if (plain := _plain(token))]
        return min(1.0, sum(p for plain, p in begins if plain == wanted or (plain[1:] and wanted.startswith(plain))))
    yes, no = (sum(p for token, p in tokens if _plain(token) == word) for word in ("yes", "no"))
    if yes + no <= 0:
        said = ", ".join(repr(token) for token, _ in tokens[:5])
        raise RuntimeError(f"the model says neither yes nor no, but {said}")
    return (yes if wanted == "yes" else no) / (yes + no)


def grade_of(reply: str, tokens: Tokens | None, grades: int) -> float:
    """A grade of 1 to `grades` as 0 to 1. Raises RuntimeError where there is none."""
    weights = {
        int(plain): p for token, p in tokens or [] if (plain := _plain(token)).isdecimal() and 1 <= int(plain) <= grades
    }
    if weights and grades < 10:  # the first token of 10 is 1
        return sum((grade - 1) * p for grade, p in weights.items()) / sum(weights.values()) / (grades - 1)
    found = re.search(r"\d+", reply)
    if found is None or not 1 <= int(found[0]) <= grades:
        raise RuntimeError(f"the model gives no grade of 1 to {grades}, but {reply[:60]!r}")
    return (int(found[0]) - 1) / (grades - 1)


def _plain(token: str) -> str:
    """` Yes.` -> `yes`"""
    return re.sub(r"^[\s▁Ġ\"'*]+|[\s.,!:;\"'*]+$", "", token).lower()
