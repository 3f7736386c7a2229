"""From a recipe's file and `--key value` overrides of any key in it to a Recipe.

Strict: an unknown key (with the nearest known one), a key that is there twice, a value of another type or out of range
is a `UsageError` that names file and key.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from ruamel.yaml.error import YAMLError

from gpo_data.errors import UsageError
from gpo_data.recipe.checks import adapters, expect_valid
from gpo_data.recipe.files import find, nearest, read, yaml_value
from gpo_data.recipe.recipe import SECTIONS, Recipe

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
OPEN = ("train.trainer.",)  # what is under it is passed on to somebody else, who knows its keys


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe, by its name or its file, apply the overrides, check it. Raises UsageError."""
    path = find(path)
    content = read(path)
    try:
        if isinstance(content.get("yolo"), str):
            content["yolo"] = {"weights": content["yolo"]}
        rest = _take_open(list(overrides), content)
        _check_keys(content, Recipe)
        _check_overrides(rest)
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(Recipe, as_group=False)
        try:
            base = parser.parse_object(content, defaults=True)
            return _build(parser.parse_args(rest, namespace=base) if rest else base, path)
        except ArgumentError as error:
            raise _explained(error, rest) from None
    except UsageError as error:
        raise UsageError(f"recipe {path}: {error}") from None


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(`--key value` and `--key=value` of recipe keys, everything else), each in order."""
    known, overrides, rest = set(key_names(Recipe)), [], []
    waiting = iter(arguments)
    for argument in waiting:
        key, equals, _ = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and (key in known or key.split(".")[0] in SECTIONS):
            overrides += [argument] if equals else [argument, *(value for value in [next(waiting, None)] if value)]
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


def _check_overrides(arguments: list[str]) -> None:
    known = key_names(Recipe)
    for argument in arguments:
        key = argument.removeprefix("--").partition("=")[0]
        if argument.startswith("--") and key not in known:
            raise _unknown(key, known)


def _unknown(key: str, known: list[str]) -> UsageError:
    if key in RENAMED:
        return UsageError(f"unknown key {key!r}: it is {RENAMED[key]!r} now")
    return UsageError(f"unknown key {key!r}{nearest(key, known)}")


def _take_open(arguments: list[str], content: dict[str, Any]) -> list[str]:
    """Put `--train.trainer.devices 2` into `content`; the other arguments.

    jsonargparse would replace the whole of `train.trainer` by its last key.
    """
    rest, waiting = [], iter(arguments)
    for argument in waiting:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not key.startswith(OPEN):
            rest.append(argument)
            continue
        inner = content
        *parts, last = key.split(".")
        for part in parts:
            if not isinstance(inner.get(part), dict):
                inner[part] = {}
            inner = inner[part]
        value = value if equals else next(waiting, "")
        try:
            inner[last] = yaml_value(value)
        except YAMLError as error:
            raise UsageError(f"--{key}: not YAML: {value!r}: {' '.join(str(error).split())}") from None
    return rest


def _build(namespace: Namespace, path: Path) -> Recipe:
    values = namespace.as_dict()
    sections = {key: kind(**values[key]) for key, kind in SECTIONS.items() if isinstance(values[key], dict)}
    return Recipe(**(values | {"name": values["name"] or path.stem} | sections))


def _explained(error: ArgumentError, arguments: list[str]) -> UsageError:
    """What is wrong with the overrides: by our own check of each, else in the parser's words."""
    pairs = [a for argument in arguments for a in argument.split("=", 1)]
    for key, value in itertools.pairwise(pairs):
        name = key.removeprefix("--")
        if not key.startswith("--") or name in SECTIONS:
            continue
        section, _, field = name.rpartition(".")
        try:
            expect_valid(adapters(SECTIONS.get(section, Recipe))[field], name, yaml_value(value))
        except (UsageError, YAMLError) as found:
            return UsageError(str(found))
    return UsageError(" ".join(str(error).split()))
