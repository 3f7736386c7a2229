"""What a vision-language model is asked about a picture, and what the answers are worth together.

A question of a recipe is a text, in which `{prompt}` and target columns are put in. A row's own questions are a list,
or its JSON, of

    "Is there a red cube?"                                            text
    ["How many dogs are there?", "two"]                               GenEval 2's vqa_list: [question, answer]
    {"question", "id", "answer", "depends": [ids]}                    objects; DPG-Bench's and DSG's own names too:
    {"question_natural_language", "proposition_id", "dependency"}     dependency "0" or "" is none, "1,2" is two

With p_i the probability of question i's answer, a question counts 0 where one that it depends on is below 1/2 (DSG,
arXiv 2310.18235; DPG-Bench), else p_i:

    arithmetic   (1/n) sum_i c_i
    geometric    (prod_i c_i)^(1/n)          GenEval 2's Soft-TIFA GM
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from gpo_data.errors import UsageError
from gpo_data.recipe import Vlm

HOLDS = 0.5  # a question whose answer is less likely does not hold, and what depends on it counts 0
TEXT = ("question", "question_natural_language", "text")
ID = ("id", "proposition_id")
DEPENDS = ("depends", "dependency")


@dataclass(frozen=True)
class Question:
    """`answer`: what is right, `yes` mostly. `depends`: ids of others."""

    id: str
    text: str
    answer: str = "yes"
    depends: tuple[str, ...] = ()


def expect_questions(vlm: Vlm, columns: Collection[str]) -> None:
    """Raise UsageError where the dataset has no column of questions; `columns`: that travel with its prompts."""
    asked = vlm.questions_column
    if asked is not None and asked not in {"prompt", *columns}:
        raise UsageError(
            f"vlm.questions_column: no column {asked!r} travels with the prompts; they have: {', '.join(columns)}"
        )


def questions_of(vlm: Vlm, target: dict[str, Any]) -> list[Question]:
    """The questions about a picture of this prompt; none where its row has none. Raises UsageError."""
    if vlm.questions_column is None:
        return [Question(str(i), filled(text, target)) for i, text in enumerate(vlm.questions, start=1)]
    found = target.get(vlm.questions_column)
    if isinstance(found, str) and found.lstrip().startswith("["):
        try:
            found = json.loads(found)
        except ValueError as error:
            raise _error(vlm, target, f"not JSON: {error}") from None
    if found is None:
        return []
    if isinstance(found, str):
        found = [found]
    if not isinstance(found, list | tuple):
        raise _error(vlm, target, f"expected a list of questions, found {found!r:.200}")
    try:
        questions = [_question(one, i) for i, one in enumerate(found, start=1)]
    except ValueError as error:
        raise _error(vlm, target, str(error)) from None
    ids = [question.id for question in questions]
    for question in questions:
        if unknown := [one for one in question.depends if one not in ids or one == question.id]:
            raise _error(vlm, target, f"question {question.id} depends on {', '.join(unknown)}, which is not there")
    if len(set(ids)) < len(ids):
        raise _error(vlm, target, f"two questions of one id: {', '.join(ids)}")
    return questions


def filled(text: str, target: dict[str, Any]) -> str:
    """`{prompt}` and `{column}` replaced. Raises UsageError."""

    def value(name: re.Match[str]) -> str:
        if target.get(name[1]) is None:
            raise UsageError(f"vlm.questions: {text!r}: no {name[1]!r}; there are: {', '.join(target)}")
        return str(target[name[1]])

    return re.sub(r"\{(\w+)\}", value, text)


def together(questions: Sequence[Question], probabilities: Sequence[float], mean: str) -> tuple[float, list[float]]:
    """(score of the picture, what each question counts)."""
    held = {question.id: p >= HOLDS for question, p in zip(questions, probabilities, strict=True)}
    counted = [
        p if all(held[one] for one in question.depends) else 0.0
        for question, p in zip(questions, probabilities, strict=True)
    ]
    if mean == "arithmetic":
        return sum(counted) / len(counted), counted
    if min(counted) <= 0:
        return 0.0, counted
    return math.exp(sum(map(math.log, counted)) / len(counted)), counted


def _question(one: Any, number: int) -> Question:
    if isinstance(one, str):
        return Question(str(number), _text(one))
    if isinstance(one, list | tuple) and len(one) == 2:
        return Question(str(number), _text(one[0]), _text(one[1]))
    if not isinstance(one, dict):
        raise ValueError(f"expected a text, [question, answer] or an object, found {one!r:.200}")
    text = next((one[name] for name in TEXT if name in one), None)
    id = next((one[name] for name in ID if one.get(name) is not None), number)
    depends: Any = next((one[name] for name in DEPENDS if one.get(name) is not None), [])
    parts = depends if isinstance(depends, list | tuple) else str(depends).split(",")
    ids = tuple(part for part in (str(part).strip() for part in parts) if part not in ("", "0"))
    return Question(str(id), _text(text), _text(one.get("answer") or "yes"), ids)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected a question, found {value!r:.200}")
    return value.strip()


def _error(vlm: Vlm, target: dict[str, Any], what: str) -> UsageError:
    return UsageError(f"vlm.questions_column: {vlm.questions_column}: of {str(target.get('prompt'))[:80]!r}: {what}")
