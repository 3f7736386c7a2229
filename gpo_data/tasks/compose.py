"""Task `compose`: draw several things, with their numbers, colours and places, as the lines of GenEval's metadata say.

    {"tag": "position", "prompt": "a photo of a tie above a sink",
     "include": [{"class": "sink", "count": 1}, {"class": "tie", "count": 1, "position": ["above", 0]}],
     "exclude": [{"class": "tie", "count": 2}]}

`include` are clauses that all have to hold, `exclude` ones of which none may: so many of the class or more. `position`
names a relation to the things of an earlier clause, `color` one of COLORS. Both are stored as JSON text, and evaluator
`compose` says of each picture how many clauses hold: rewards `geneval` (all of them) and `clauses_held` (their share).

    signs    the prompts of task `count` in the tiny world, with their colour, and no other shapes
    scenes   a photo of two dogs and one kite               thousands

A sentence of the user's own says things and numbers (phrases.py): `three cats and two dogs` are two clauses, with their
counts excluded plus one.
The split hashes the clauses, not the wording, a synonym as its class, and of one clause what task `count` hashes.
"""

from __future__ import annotations

import json
import math
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from gpo_data.prompt import Prompt, prompt_id
from gpo_data.recipe import Task
from gpo_data.tasks import count, files, sources
from gpo_data.tasks.base import TaskKind
from gpo_data.tasks.classes import plural, unsynonymous
from gpo_data.tasks.listed import listed
from gpo_data.tasks.phrases import phrases
from gpo_data.tiny import words

COLUMNS: dict[str, pa.DataType] = {"include": pa.string(), "exclude": pa.string()}
Relation = Literal["left of", "right of", "above", "below"]
# What evaluator `compose` calls the colours it sees (its PALETTE).
COLORS = listed("red, orange, yellow, green, blue, purple, pink, brown, black, white, teal")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Clause:
    """So many things of a class, of a colour, in a relation to those of an earlier clause (its index)."""

    name: str = Field(alias="class", min_length=1)
    count: int = Field(ge=1, le=count.MOST)
    color: str | None = None
    position: tuple[Relation, int] | None = None


MOST_EACH = 3  # of the grammar `scenes`
CLAUSES = TypeAdapter(list[Clause])


def prompts(spec: Task, seed: int) -> list[Prompt]:
    """The recipe's prompts, distinct and in a fixed order. Raises UsageError."""
    if spec.prompts is not None:
        found = sources.own_prompts(spec, from_sentence, _from_row, content, ["include"], ["exclude"])
        return sources.take(found, spec)
    return sources.take(_signs(spec, seed) if spec.grammar == "signs" else _scenes(spec, seed), spec)


def clauses(text: object) -> list[Clause]:
    """Out of JSON. Raises ValueError."""
    try:
        found = CLAUSES.validate_json(str(text)) if text else []
    except ValidationError as error:
        one = error.errors()[0]
        where = ".".join(map(str, one["loc"])) or "the list"
        raise ValueError(f"{where}: {one['msg']}, found {one['input']!s:.100}") from None
    for index, clause in enumerate(found):
        if clause.position is not None and not 0 <= clause.position[1] < index:
            raise ValueError(f"{index}.position: expected the index of an earlier clause, found {clause.position[1]}")
    return found


def content(target: sources.Target) -> str:
    """What the split hashes."""
    if len(one := clauses(target["include"])) == 1 and one[0].position is None:
        asked: sources.Target = {"target_count": one[0].count, "target_class": one[0].name}
        if one[0].color is None or one[0].name in words.SHAPES:
            return count.key(asked | ({"color": one[0].color} if one[0].color else {}))
    include, exclude = (_content(str(target.get(name) or "[]")) for name in ("include", "exclude"))
    return f"{include} without {exclude}"


def _content(text: str) -> str:
    return json.dumps([one | {"class": unsynonymous(one["class"])} for one in json.loads(text)])


def classes_of(prompt: Prompt) -> set[str]:
    both = [*clauses(prompt.target["include"]), *clauses(prompt.target.get("exclude"))]
    return {clause.name for clause in both}


def from_sentence(sentence: str) -> sources.Target:
    """All that is counted, and no more of each. Raises ValueError."""
    found = phrases(sentence)
    counted = [phrase for phrase in found if phrase.numbered or phrase.known]
    if not counted:
        raise ValueError(f"no target: expected things, as in three cats and a dog, found {sentence!r}")
    numbers: dict[str, int] = {}
    for phrase in counted:
        number = numbers.get(phrase.name, 0) + count.in_range(phrase.count, "the number")
        numbers[phrase.name] = number
    return _target(
        [{"class": name, "count": n} for name, n in numbers.items()],
        [{"class": n, "count": numbers[n] + 1} for n in dict.fromkeys(one.name for one in counted if one.numbered)],
    )


def _from_row(row: dict[str, Any]) -> sources.Target:
    include = _listed(sources.column(row, "include", "task compose"), "include")
    if not include:
        raise ValueError("include is empty")
    exclude = _listed(row.get(files.column_of(row, "exclude") or "exclude"), "exclude")
    target = _target(include, exclude)
    for name in ("include", "exclude"):
        try:
            for index, clause in enumerate(clauses(target.get(name))):
                if clause.color is not None and clause.color not in COLORS:
                    raise ValueError(
                        f"{index}.color: expected one of {', '.join(COLORS)}, which evaluator compose tells apart, "
                        f"found {clause.color!r:.100}; take that clause or its colour out"
                    )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return target


def _listed(value: Any, name: str) -> list[Any]:
    """The clauses of a cell: a list, or one as JSON text; none where the cell is empty. Raises ValueError."""
    try:
        found = json.loads(value) if isinstance(value, str) and value.strip() else value
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: expected a list of clauses as JSON, found {value!r:.100} ({error})") from None
    if _missing(found) or found in ("", {}):
        return []
    if not isinstance(found, list):
        raise ValueError(
            f'{name}: expected a list of clauses, as in [{{"class": "dog", "count": 2}}], found {found!r:.100}'
        )
    return found


def _missing(value: Any) -> bool:
    """None, and what pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _target(include: list[Any], exclude: list[Any]) -> sources.Target:
    target: sources.Target = {"include": _json(include)}
    return target | ({"exclude": _json(exclude)} if exclude else {})


def _json(clauses: list[Any]) -> str:
    return json.dumps([_tidied(one) for one in clauses], default=str)  # Parquet has dates


def _tidied(clause: Any) -> Any:
    """Without what is missing, for Parquet and `datasets` give every clause every key; colours in lower case."""
    if not isinstance(clause, dict):
        return clause
    kept = {k: v for k, v in clause.items() if not _missing(v)}
    return kept | ({"color": kept["color"].strip().lower()} if isinstance(kept.get("color"), str) else {})


def _signs(spec: Task, seed: int) -> list[Prompt]:
    """The tiny world: the prompts of task `count`, with their colour, and no other shapes."""
    made = []
    for prompt in count.prompts(Task("count", num_prompts=None, split=spec.split), seed):
        number, name = int(prompt.target["target_count"]), str(prompt.target["target_class"])
        target = _target(
            [{"class": name, "count": number, "color": str(prompt.target["color"])}],
            [{"class": shape, "count": number + 1 if shape == name else 1} for shape in words.SHAPES],
        )
        made.append(Prompt(prompt_id(prompt.text), prompt.text, target))
    return made


def _scenes(spec: Task, seed: int) -> list[Prompt]:
    """`a photo of two dogs and one kite`: two classes of count.py, one to MOST_EACH of each, in a seeded order."""
    numbers, made = range(1, MOST_EACH + 1), list[Prompt]()
    for i, one in enumerate(count.CLASSES):
        for other in count.CLASSES[i + 1 :]:
            for a, b in ((a, b) for a in numbers for b in numbers):
                pair = ((one, a), (other, b))
                target = _target(
                    [{"class": name, "count": n} for name, n in pair],
                    [{"class": name, "count": n + 1} for name, n in pair],
                )
                if sources.on_side(content(target), spec):
                    text = f"a photo of {_several(a, one)} and {_several(b, other)}"
                    made.append(Prompt(prompt_id(text), text, target))
    return [made[i] for i in np.random.default_rng(seed).permutation(len(made))]


def _several(number: int, name: str) -> str:
    return f"{count.NUMBERS[number - 1]} {name if number == 1 else plural(name)}"


TASK = TaskKind(
    columns=COLUMNS,
    prompts=prompts,
    exact="geneval(clauses, clauses_right)",
    lenient="clauses_held(clauses, clauses_right) >= 0.5",
    level="json_array_length(include)",
    level_name="clauses",
    key=lambda prompt: content(prompt.target),
    measured=("clauses", "clauses_right"),
    describe=lambda row: (
        f"{row.get('clauses_right')} of {row.get('clauses')}: {row.get('clauses_wrong') or 'all hold'}"
    ),
    classes=classes_of,
)
