"""Every key of a recipe with its type, default and meaning, out of the dataclasses: docs/recipe.md, and help.

    python -m gpo_data.recipe.reference > docs/recipe.md

A test holds the committed page against this; after a change of a key or its docstring, run the line above.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
import sys
import textwrap
import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser

from gpo_data.recipe.checks import MOST_FLOAT, MOST_INT
from gpo_data.recipe.recipe import SECTIONS, Recipe

REQUIRED = ("evaluators", "reward")  # their empty defaults are refused
PLAIN: dict[Any, str] = {int: "integer", float: "number", str: "text", bool: "true or false", dict: "keys and values"}

INTRO = """# The recipe

<!-- Written by `python -m gpo_data.recipe.reference > docs/recipe.md`; change the docstrings in gpo_data/recipe/. -->

A recipe is one YAML file (YAML 1.2) and describes one experiment for every verb: drawing, measuring, training and
evaluating. [recipes/](../recipes) has examples, which go by their names in any folder: `gpo-data shards text-tiny`.
A small one:

```yaml
task: {kind: text, num_prompts: 64}
sampler: {num_inference_steps: 8, guidance_scale: 1.0, height: 64, width: 64, max_sequence_length: 1}
evaluators: [ocr]
ocr: {mode: recognition}
reward: text_edit(target, ocr_text)
```

Recipes are strict: a key that is not listed here, a key that is there twice or a value of another type is an error
that names the key; so is a whole number above a million (seeds aside) or another number above a billion. Every key
can be overridden on the command line, with a dot after a section: `--group_size 16 --sampler.guidance_scale 3`. In
Python the sections are the dataclasses `Recipe`, `Task`, `Sampler`, `Train`, `Online`, `Eval`, `Ocr`, `Yolo`, `Clip`,
`Ray`, `Vlm` and `Http` of `gpo_data.recipe`, with the same checks ([notebook.md](notebook.md)). Keys of version 0.1
that have other names now are in [CHANGELOG.md](../CHANGELOG.md).
"""


def page() -> str:
    """The whole of docs/recipe.md."""
    made = Recipe(evaluators=["ocr"], reward="1")
    by_kind: dict[type, list[str]] = {}
    for name, kind in SECTIONS.items():
        by_kind.setdefault(kind, []).append(name)
    headings = {name: ", ".join(names) for names in by_kind.values() for name in names}
    parts = [INTRO, _table("Top level", Recipe, {"": made}, headings)]
    for kind, names in by_kind.items():
        parts.append(_table(headings[names[0]], kind, {name: getattr(made, name) for name in names}, headings))
    return "\n".join(parts)


def for_terminal(sections: Sequence[str]) -> str:
    """The keys of these sections for a command's help; `` is the top level."""
    made, width = Recipe(evaluators=["ocr"], reward="1"), shutil.get_terminal_size().columns - 2
    lines = ["", "keys of the recipe, any of which can be overridden:"]
    for section in sections:
        kind, one = (SECTIONS[section], getattr(made, section)) if section else (Recipe, made)
        heading, rows = _rows(kind)
        lines += ["", textwrap.fill(f"{section}: {heading}", width)] if section else []
        for name, type_, meaning in rows:
            if not section and name in SECTIONS:
                continue
            needed = not section and name in REQUIRED
            default = "required" if needed else "default " + _default(name, {section: one}).strip("`")
            lines.append(f"  --{section}{'.' if section else ''}{name} ({type_.replace('`', '')}; {default})")
            lines.append(textwrap.fill(meaning, width, initial_indent=" " * 8, subsequent_indent=" " * 8))
    return "\n".join(lines) + "\n"


def _table(heading: str, kind: type, made: dict[str, Any], headings: dict[str, str]) -> str:
    """A section's heading, sentence and keys. `made`: by name, the section as it is when the recipe leaves it out."""
    said, rows = _rows(kind)
    lines = [f"## {heading}", "", said, "", "| key | type | default | meaning |", "|---|---|---|---|"]
    for name, type_, meaning in rows:
        if name in SECTIONS and kind is Recipe:
            type_, default = f"[section](#{anchor(headings[name])})", ""
        else:
            default = "required" if kind is Recipe and name in REQUIRED else _default(name, made)
        lines.append(f"| `{name}` | {_cell(type_)} | {default} | {_cell(meaning)} |")
    return "\n".join(lines) + "\n"


def _rows(kind: type) -> tuple[str, list[tuple[str, str, str]]]:
    """A section's sentence, and of each key name, type and meaning, out of the docstring."""
    doc = docstring_parser.parse(inspect.getdoc(kind) or "", docstring_parser.DocstringStyle.GOOGLE)
    meaning = {one.arg_name: _joined(one.description or "") for one in doc.params}
    hints = get_type_hints(kind, include_extras=True)
    rows = [
        (f.name, "" if f.name in SECTIONS and kind is Recipe else spell(hints[f.name]), meaning[f.name])
        for f in dataclasses.fields(kind)
    ]
    return _joined(f"{doc.short_description or ''} {doc.long_description or ''}"), rows


def spell(hint: Any) -> str:
    """A field's type in words: `integer, 1 or more`, `a` or `b`, `text or null`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{spell(arguments[0])}{_bounds(getattr(arguments[1], 'metadata', []))}"
    if origin is Literal:
        return _alternatives([f"`{value}`" for value in arguments])
    if origin in (Union, types.UnionType):
        kinds = ["null" if one is type(None) else spell(one) for one in arguments]
        return ("; or " if "," in kinds[0] else " or ").join(kinds)
    if origin is list:
        return f"list of {spell(arguments[0])}".replace("list of number", "list of numbers")
    return PLAIN[origin or hint]


def anchor(heading: str) -> str:
    """What GitHub makes of a heading for links."""
    return "".join(c for c in heading.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def _bounds(metadata: list[Any]) -> str:
    """`, 0 or more, less than 1` of annotated-types' bounds."""
    words = {"ge": "{} or more", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}
    found = {name: value for one in metadata for name in words if (value := getattr(one, name, None)) is not None}
    if found.get("lt") == 2**63:
        found["lt"] = "2^63"
    ours = (MOST_INT, MOST_FLOAT, -MOST_FLOAT)  # which the page says once
    return "".join(f", {words[name].format(value)}" for name, value in found.items() if value not in ours)


def _default(name: str, made: dict[str, Any]) -> str:
    """As YAML; where sections of one type differ, each value with the sections that have it."""
    by_value: dict[str, list[str]] = {}
    for section, one in made.items():
        by_value.setdefault(_yaml(getattr(one, name)), []).append(section)
    if len(by_value) == 1:
        return next(iter(by_value))
    return "; ".join(f"{value} ({', '.join(sections)})" for value, sections in by_value.items())


def _yaml(value: Any) -> str:
    if isinstance(value, str) and value:
        return f"`{value}`"
    return f"`{json.dumps(value).replace(chr(34), '') if isinstance(value, list) else json.dumps(value)}`"


def _alternatives(words: list[str]) -> str:
    """`a, b or c`"""
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _joined(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(page())
