"""A recipe: one YAML file that describes an experiment and is used by every verb.

Recipe files are strict: an unknown key, a wrong type or an impossible value is a `UsageError` that names the
key. Every key can be overridden on the command line (`--sampler.guidance_scale 3`). `fingerprint()` covers
what changes pixels; evaluators, rewards and paths may change without drawing again.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from gpo_data import hardware
from gpo_data.errors import UsageError
from gpo_data.recipe.sections import Clip, Ocr, Sampler, Task, Yolo


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Args:
        name: of the dataset; null takes the recipe file's name.
        model: `tiny` (the embedded model), a local diffusers folder, or a hub id.
        revision: of a hub model.
        policy: folder with trained weights that go over the model's own: LoRA safetensors, or a denoiser's sub-folder,
            as `gpo-train fit` writes them to `runs/<run>/policy`.
        lake: folder (reading: also an fsspec URL) that holds the datasets.
        seed: every random choice comes from it.
        group_size: members a group, G.
        groups_per_shard: groups in one tar.
        task: what to draw.
        sampler: how to draw.
        evaluators: what measures the pictures: `ocr`, `yolo`, `color` (of the tiny world's things),
            `boxes` (colour and class of what `yolo` finds), `clip_score`, `pickscore`, `hpsv2`, `aesthetic`, or a
            function of your own, `module:function`.
        ocr: settings of `ocr`.
        yolo: settings of `yolo` and of `boxes`, or just its weights.
        clip_score: settings of `clip_score`, the fit of picture and prompt.
        pickscore: settings of `pickscore`, what people would pick.
        hpsv2: settings of `hpsv2`, the human preference score.
        aesthetic: settings of `aesthetic`, LAION's predictor; its `weights` have to be given.
        reward: SQL expression over targets and measurements.
        where: SQL condition on groups and members for audit and training.
        borrow: SQL condition on `borrower` and `lender`: members drawn for the lender's prompt join the borrower's
            group in training and are judged against its target; see catalog.lend.
        train: settings of `gpo-train fit`; not read here.
        online: settings of `gpo-train fit --mode online`; not read here.
        eval: settings of `gpo-train eval`; not read here.
    """

    name: str | None = None
    model: str = "tiny"
    revision: str | None = None
    policy: str | None = None
    lake: str = "lake"
    seed: int = 0
    group_size: int = 32
    groups_per_shard: int = 8
    task: Task = field(default_factory=Task)
    sampler: Sampler = field(default_factory=Sampler)
    evaluators: list[str] = field(default_factory=list)
    ocr: Ocr = field(default_factory=Ocr)
    yolo: Yolo = field(default_factory=Yolo)
    clip_score: Clip = field(default_factory=Clip)
    pickscore: Clip = field(default_factory=lambda: Clip("yuvalkirstain/PickScore_v1"))
    hpsv2: Clip = field(default_factory=lambda: Clip("adams-story/HPSv2-hf"))
    aesthetic: Clip = field(default_factory=Clip)
    reward: str = ""
    where: str | None = None
    borrow: str | None = None
    train: dict[str, Any] = field(default_factory=dict)
    online: dict[str, Any] = field(default_factory=dict)
    eval: dict[str, Any] = field(default_factory=dict)

    def fingerprint_fields(self) -> dict[str, Any]:
        """All that changes pixels, flat; two datasets with equal fields hold the same pictures."""
        plain, sampler = dataclasses.asdict(Sampler()), dataclasses.asdict(self.sampler)
        if self.sampler.dtype == "auto":  # as this machine draws; a dataset that exists has its own: dataset.settle
            sampler["dtype"] = hardware.dtype_for("auto", hardware.device_of(self.sampler.device))
        fields: dict[str, Any] = {
            f"sampler.{k}": v for k, v in sampler.items()
            if k not in PLACES and not (k in SINCE and v == plain[k])
        }  # fmt: skip
        fields |= {f"task.{k}": v for k, v in dataclasses.asdict(self.task).items()}
        fields |= {k: getattr(self, k) for k in ("model", "revision", "seed", "group_size", "groups_per_shard")}
        return dict(sorted(fields.items()))

    def fingerprint(self) -> str:
        """blake2b of `fingerprint_fields()`, 16 hex digits."""
        return fingerprint_of(self.fingerprint_fields())


PLACES = ("device", "text_encoders")  # where it is computed, not what
# Younger than the first datasets, whose fingerprints are without them: they count where they are set.
SINCE = ("text_encoder_8bit", "vae_slicing", "vae_tiling", "attention_backend")


def fingerprint_of(fields: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=8).hexdigest()


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe file, apply `--key value` overrides, check it. Raises UsageError."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe, as_group=False)
    return from_namespace(parse(parser, path, list(overrides)), path)


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(`--key value` and `--key=value` of recipe keys, everything else), each in order."""
    known, overrides, rest = set(key_names(Recipe)), [], []
    waiting = iter(arguments)
    for argument in waiting:
        key, equals, _ = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and (key in known or key.split(".")[0] in (*SECTIONS, *OPEN_SECTIONS)):
            overrides += [argument] if equals else [argument, *(value for value in [next(waiting, None)] if value)]
        else:
            rest.append(argument)
    return overrides, rest


def parse(parser: ArgumentParser, path: str | Path, args: list[str]) -> Namespace:
    """Parse the YAML at `path` under the options `args`, in one strict pass."""
    path = Path(path)
    if not path.is_file():
        known = ", ".join(sorted(str(p) for p in Path("recipes").glob("*-*.yaml"))) or "none here"
        raise UsageError(f"recipe {path}: no such file; the recipes in recipes/ are: {known}")
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"recipe {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"recipe {path}: expected keys and values, found {type(content).__name__}")
    if isinstance(content.get("yolo"), str):
        content["yolo"] = {"weights": content["yolo"]}
    _check_keys(content, Recipe, path)
    args = _take_deep(args, content)
    try:
        base = parser.parse_object(content, defaults=True)
        return parser.parse_args(args, namespace=base) if args else base
    except ArgumentError as error:
        raise UsageError(f"recipe {path}: {explain(str(error))}") from None


def _take_deep(args: list[str], content: dict[str, Any]) -> list[str]:
    """Put `--train.trainer.devices 2` into `content`; the other arguments.

    jsonargparse would replace the whole of `train.trainer` by its last key.
    """
    rest, waiting = [], iter(args)
    for argument in waiting:
        key, equals, value = argument.removeprefix("--").partition("=")
        parts = key.split(".")
        if not argument.startswith("--") or len(parts) < 3 or parts[0] not in OPEN_SECTIONS:
            rest.append(argument)
            continue
        inner = content
        for part in parts[:-1]:
            if not isinstance(inner.get(part), dict):
                inner[part] = {}
            inner = inner[part]
        value = value if equals else next(waiting, "")
        try:
            inner[parts[-1]] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--{key}: not YAML: {value!r}: {' '.join(str(error).split())}") from None
    return rest


def explain(message: str) -> str:
    """One line out of a parser's message, with the nearest known key for an unknown one."""
    line = " ".join(message.split())
    if unknown := re.search(r"[Uu]nrecognized arguments?: --([\w.]+)", line):
        line = f"unknown key {unknown[1]!r}{nearest(unknown[1], key_names(Recipe))}"
    return line


def nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def key_names(kind: type, prefix: str = "") -> list[str]:
    """Every dotted key of a (nested) dataclass."""
    names = []
    for f in dataclasses.fields(kind):
        names.append(prefix + f.name)
        if nested := SECTIONS.get(f.name if kind is Recipe else ""):
            names += key_names(nested, f"{prefix}{f.name}.")
    return names


CLIP_SCORERS = ("clip_score", "pickscore", "hpsv2", "aesthetic")
EVALUATORS = ("ocr", "yolo", "color", "boxes", *CLIP_SCORERS)  # built by evaluators/__init__.py
OWN_EVALUATOR = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)  # module:function; evaluators/function.py
OPEN_SECTIONS = ("train", "online", "eval")  # checked by gpo-train, which knows their keys
SECTIONS: dict[str, type] = {"task": Task, "sampler": Sampler, "ocr": Ocr, "yolo": Yolo}
SECTIONS |= dict.fromkeys(CLIP_SCORERS, Clip)


def _check_keys(content: dict[str, Any], kind: type, path: Path, prefix: str = "") -> None:
    # jsonargparse's own message for an unknown key in a file names neither the file nor a near key.
    known = [f.name for f in dataclasses.fields(kind)]
    for key, value in content.items():
        if key not in known:
            raise UsageError(f"recipe {path}: unknown key '{prefix}{key}'{nearest(str(key), known)}")
        if not prefix and key in SECTIONS:
            if not isinstance(value, dict):
                raise UsageError(f"recipe {path}: {key}: expected keys and values, found {value!r}")
            _check_keys(value, SECTIONS[key], path, f"{key}.")


def from_namespace(namespace: Namespace, path: str | Path) -> Recipe:
    """Build and check the Recipe. Raises UsageError that names the key and the fix."""
    values = namespace.as_dict()
    sections = {key: kind(**values[key]) for key, kind in SECTIONS.items()}
    recipe = Recipe(**{f.name: values[f.name] for f in dataclasses.fields(Recipe)} | sections)
    recipe = dataclasses.replace(recipe, name=recipe.name or Path(path).stem)

    def need(ok: bool, key: str, expected: str, found: object) -> None:
        if not ok:
            raise UsageError(f"recipe {path}: {key}: expected {expected}, found {found!r}")

    need(bool(re.fullmatch(r"[a-z0-9_-]+", recipe.name or "")), "name", "letters a-z, digits, '-' and '_'", recipe.name)
    need(recipe.group_size >= 2, "group_size", "2 or more (a group of one has no better half)", recipe.group_size)
    need(recipe.groups_per_shard >= 1, "groups_per_shard", "1 or more", recipe.groups_per_shard)
    need(recipe.task.num_prompts is None or recipe.task.num_prompts >= 1, "task.num_prompts", "1 or more, or null",
         recipe.task.num_prompts)  # fmt: skip
    for key in ("num_inference_steps", "batch_size", "height", "width"):
        need(getattr(recipe.sampler, key) >= 1, f"sampler.{key}", "1 or more", getattr(recipe.sampler, key))
    need(not recipe.sampler.text_encoder_8bit or recipe.sampler.text_encoders == "device", "sampler.text_encoders",
         "device beside text_encoder_8bit (what is in 8 bits does not move)", recipe.sampler.text_encoders)  # fmt: skip
    need(bool(recipe.evaluators), "evaluators", f"at least one of {', '.join(EVALUATORS)}, as in [ocr]",
         recipe.evaluators)  # fmt: skip
    for name in recipe.evaluators:
        need(name in EVALUATORS or bool(OWN_EVALUATOR.fullmatch(name)), "evaluators",
             f"{', '.join(EVALUATORS)} or module:function", name)  # fmt: skip
    need(len(set(recipe.evaluators)) == len(recipe.evaluators), "evaluators", "each name once", recipe.evaluators)
    need(bool(recipe.reward.strip()), "reward", "a SQL expression such as text_exact(target, ocr_text)", recipe.reward)
    return recipe
