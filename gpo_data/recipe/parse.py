"""From a recipe's file and `--key value` overrides of any key in it to a Recipe.

Strict: an unknown key (with the nearest known one), a key that is there twice, a value of another type or out of range
is a `UsageError` that names file and key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpo_data.errors import UsageError
from gpo_data.recipe.checks import adapters, expect_valid, holds
from gpo_data.recipe.files import find, nearest, read, yaml_value
from gpo_data.recipe.recipe import SECTIONS, Recipe
from gpo_data.recipe.trust import expect_no_code

# Keys of version 0.1 -> what they are now.
RENAMED = {
    "borrow": "relabel",
    "train.link": "train.loss",
    "train.hold": "train.mean_shift_penalty",
    "train.draws": "train.timesteps_per_image",
    "train.shared_draws": "train.shared_noise",
    "train.passes": "train.num_inner_epochs",
    "train.clip": "train.max_grad_norm",
    "train.ema": "train.ema_decay",
    "train.micro_batch": "train.micro_batch_size",
    "train.batch_groups": "train.groups_per_step",
    "train.in_turn": "train.sequential",
    "online.interval": "online.epochs_per_iteration",
    "online.choose": "online.prompt_selection",
    "online.writer": "online.rollout_policy",
    "online.keep": "online.keep_last",
}
SHORT = {"workers": "ray.workers", "ray": "ray.address"}  # on the command line
# What is under it is passed on to somebody else, who knows its keys.
OPEN = ("train.trainer.", "train.cache.", "http.urls.")


def load(path: str | Path, overrides: Sequence[str] = (), trust: bool = False) -> Recipe:
    """Read a recipe, by its name or its file, apply the overrides, check it. Raises UsageError.

    Args:
        trust: it may name code that is run, see trust.py.
    """
    path = find(path)
    content = read(path)
    try:
        _override(content, overrides)
        if isinstance(content.get("yolo"), str):
            content["yolo"] = {"weights": content["yolo"]}
        _check_keys(content, Recipe)
        recipe = _build(content, path)
        if not trust:
            expect_no_code(recipe)
        return recipe
    except UsageError as error:
        raise UsageError(f"recipe {path}: {error}") from None


def split_overrides(arguments: list[str], own: Container[str] = ()) -> tuple[list[str], list[str]]:
    """(`--key value` and `--key=value` of recipe keys, everything else), each in order.

    Args:
        own: options of the verb, such as the `--revision` of `pull`, which are not a recipe's keys there.
    """
    known, overrides, rest = {key for key in (*key_names(Recipe), *SHORT) if f"--{key}" not in own}, [], []
    waiting = iter(arguments)
    for argument in waiting:
        key, equals, _ = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and (key in known or key.split(".")[0] in SECTIONS):
            overrides += (
                [argument] if equals else [argument, *(value for value in [next(waiting, None)] if value is not None)]
            )
        else:
            rest.append(argument)
    return overrides, rest


def key_names(kind: type, prefix: str = "") -> list[str]:
    """Every dotted key of a (nested) dataclass."""
    names = []
    for f in dataclasses.fields(kind):
        names.append(prefix + f.name)
        if nested := SECTIONS.get(f.name if kind is Recipe else ""):
            names += key_names(nested, f"{prefix}{f.name}.")
    return names


def _check_keys(content: dict[str, Any], kind: type, prefix: str = "") -> None:
    """Every key is known and its value is of its type, as the file has it."""
    known = [f.name for f in dataclasses.fields(kind)]
    for key, value in content.items():
        if key not in known:
            raise _unknown(f"{prefix}{key}", known)
        if not prefix and key in SECTIONS:
            if not isinstance(value, dict):
                raise UsageError(f"{key}: expected keys and values, found {value!r}")
            _check_keys(value, SECTIONS[key], f"{key}.")
        else:
            expect_valid(adapters(kind)[key], f"{prefix}{key}", value)


def _unknown(key: str, known: list[str]) -> UsageError:
    if key in RENAMED:
        return UsageError(f"unknown key {key!r}: it is {RENAMED[key]!r} now")
    return UsageError(f"unknown key {key!r}{nearest(key, known)}")


def values_of(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(key, value) of `--sampler.height 64`, `--seed=1` and `--train.trainer.devices 2`. Raises UsageError."""
    known, waiting = key_names(Recipe), iter(arguments)
    for argument in waiting:
        key, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--"):
            raise UsageError(f"expected --key value, found {argument!r}")
        key = SHORT.get(key, key)
        if key not in known and not key.startswith(OPEN):
            raise _unknown(key, known)
        if not equals and (text := next(waiting, "--")) == "--":
            raise UsageError(f"--{key}: expected a value after it, found nothing")
        yield key, _value(key, text)


def _override(content: dict[str, Any], arguments: Sequence[str]) -> None:
    for key, value in values_of(arguments):
        inner, (*sections, last) = content, key.split(".")
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise UsageError(f"{section}: expected keys and values, found {inner!r}")
        old = inner.get(last)
        inner[last] = old | value if key in SECTIONS and isinstance(old, dict) and isinstance(value, dict) else value


def _value(key: str, text: str) -> Any:
    """What the command line says: text where the key takes text, else YAML; a number where it takes either."""
    section, _, name = key.rpartition(".")
    adapter = None if key in SECTIONS or key.startswith(OPEN) else adapters(SECTIONS.get(section, Recipe))[name]
    if adapter and text != "null" and holds(adapter, text):
        return int(text) if text.isdecimal() and holds(adapter, int(text[:20])) else text
    try:
        return yaml_value(text)
    except ValueError as error:
        raise UsageError(f"--{key}: not YAML: {text!r}: {error}") from None


def _build(content: dict[str, Any], path: Path) -> Recipe:
    plain = Recipe(evaluators=["ocr"], reward="1")  # whose sections have the defaults
    sections = {key: dataclasses.replace(getattr(plain, key), **content[key]) for key in SECTIONS if key in content}
    name = content.get("name")
    return Recipe(**(content | sections | {"name": path.stem if name is None else name}))
