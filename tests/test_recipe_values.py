"""No value of any key of a recipe is a traceback: what cannot be is exit code 2 and one line that names the key.

The wrong values come from the dataclasses: for each field what its type does not hold, and what every type of its kind
refuses (numbers: NaN, infinite, huge; whole numbers: fractions and truth values; text that is a path: empty, 300
letters, a NUL). A field that is added is tested with the others.
"""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

import gpo_data.cli
import gpo_train.cli
from gpo_data import recipe
from gpo_data.errors import UsageError
from gpo_data.recipe import SECTIONS, Recipe

GOOD: dict[str, Any] = {"evaluators": ["ocr"], "reward": "1"}
ANY_TEXT = {"negative_prompt", "reward", "where", "diversity_bonus", "kl_judges", "relabel", "system"}
SIGNED = {"sft_reward", "logit_mean"}
LONG = "x" * 300
# As YAML writes them, and what is no value of a kind.
OTHERS: dict[Any, list[str]] = {
    int: [
        "1.5",
        "true",
        "'1'",
        "[1]",
        "{a: 1}",
        ".nan",
        ".inf",
        "-1",
        str(2**80),
        str(-(2**80)),
        "1e400",
        "2020-01-01",
    ],
    float: ["true", "'1'", "[1.0]", "{a: 1}", ".nan", ".inf", "-.inf", "1e300", str(10**400), "2020-01-01"],
    bool: ["1", "0", "'true'", "1.0", "[true]", "nope", "{}"],
    str: ["1", "1.5", "true", "[a]", "{a: b}", "2020-01-01"],
    list: ["1", "text", "{a: b}", "[1]", "[null]", "[[a]]", "true"],
    dict: ["1", "text", "[a]", "true", "{a: 2020-01-01}", "{1: a}"],
}
BOMB = b"a0: &a0 [1], " + b", ".join(
    b"a%d: &a%d [%s]" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 12)
)
PATHS = ["''", LONG, f"a/{LONG}/b", '"a\\0b"']


def parts(hint: Any) -> list[Any]:
    """The alternatives of a type."""
    if get_origin(hint) is Annotated:
        return parts(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [one for argument in get_args(hint) for one in parts(argument)]
    return [hint]


def wrong(name: str, hint: Any) -> list[str]:
    """Values that the field has to refuse, as YAML."""
    kinds = parts(hint)
    plain = {get_origin(kind) or kind for kind in kinds}
    found = [] if type(None) in plain else ["null"]
    if Literal in plain:
        found += ["nope", "''", LONG, "1", "true", "{}"]
    elif {int, str} <= plain:  # a number, or a file
        return found + [value for value in OTHERS[str] if value in OTHERS[int]] + ["-1", "''"]
    elif str in plain:
        found += OTHERS[str] + ([] if name in ANY_TEXT else PATHS)
    for kind in (int, float, bool, list, dict):
        if kind in plain and Literal not in plain:
            found += OTHERS[kind] + (["-1"] if kind is float and name not in SIGNED else [])
    return found


def cases() -> list[tuple[str, str]]:
    found = [(section, value) for section in SECTIONS for value in ("null", "3", "[1]", "true", "2020-01-01")]
    found += [(section, "text") for section in SECTIONS if section != "yolo"]  # which takes bare weights
    for section, kind in {"": Recipe, **SECTIONS}.items():
        for name, hint in get_type_hints(kind, include_extras=True).items():
            if section or name not in SECTIONS:
                key = f"{section}.{name}" if section else name
                found += [(key, value) for value in wrong(name, hint)]
    return found


def refused(path: Path, key: str, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(UsageError) as caught:
        recipe.load(path, overrides)
    said = str(caught.value)
    assert said.startswith(f"recipe {path}: ") and "\n" not in said and len(said) < 800, said
    assert key in said and "expected" in said, said
    return said


def write(path: Path, key: str, value: str) -> None:
    section, _, name = key.rpartition(".")
    lines = [f"{k}: {json.dumps(v)}" for k, v in GOOD.items() if k != key]
    path.write_text("\n".join([*lines, f"{section}: {{{name}: {value}}}" if section else f"{name}: {value}"]))


def test_no_wrong_value_of_any_key_passes(tmp_path: Path) -> None:
    found, path = cases(), tmp_path / "a.yaml"
    assert len(found) > 900 and len({key for key, _ in found}) == len(recipe.key_names(Recipe))
    for key, value in found:
        write(path, key, value)
        refused(path, key)


def test_nor_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(json.dumps(GOOD))
    for key, value in cases():
        if value[0] in "'\"" or (key, value) == ("ray", "null"):
            continue  # quotes are text there; --ray is short for --ray.address, which may be null
        kinds = parts(get_type_hints(SECTIONS.get(key.rpartition(".")[0], Recipe))[key.rpartition(".")[2]])
        if str not in kinds or value == "null" or value.strip("ab/") == LONG:  # to text all of YAML is text
            refused(path, key, (f"--{key}", value))


def test_every_number_has_an_upper_bound(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for section, kind in {"": Recipe, **SECTIONS}.items():
        for name, hint in get_type_hints(kind, include_extras=True).items():
            key = f"{section}.{name}" if section else name
            if {int, float} & set(parts(hint)) and name != "seed":
                write(path, key, str(10**9 + 1))
                said = refused(path, key)
                assert "or less" in said or "less than 1," in said


@pytest.mark.parametrize("key", ["seed", "train.seed", "eval.seed"])
def test_seeds(tmp_path: Path, key: str) -> None:
    path = tmp_path / "a.yaml"
    for value in (-1, 2**63, 2**80):
        write(path, key, str(value))
        refused(path, key)
    write(path, key, str(2**63 - 1))
    made = recipe.load(path)
    assert 2**63 - 1 in (made.seed, made.train.seed, made.eval.seed)


@pytest.mark.parametrize("name", ["", " ", LONG, "x" * 101, "A", "a/b", "..", "a.b", "ä", "a b", "a\nb"])
def test_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(json.dumps(GOOD | {"name": name}))
    refused(path, "name: expected 1 to 100 letters")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("\ufeffevaluators: [ocr]\nreward: '1'".encode("utf-16"), "expected UTF-8, found byte 0xff"),
        ("evaluators: [ocr]\nreward: \"'ä'\"".encode("latin-1"), "expected UTF-8, found byte 0xe4"),
        (b"evaluators: [ocr]\nreward: a\0b", "not YAML"),
        (b"train: {trainer: &a {b: *a}}", "not YAML: more than 100000 values, or an alias that holds itself"),
        (b"evaluators: &a [*a]", "not YAML: more than 100000 values, or an alias that holds itself"),
        (b"train: {trainer: {" + BOMB + b"}}", "not YAML: more than 100000 values"),
        (b"reward: " + b"[" * 1000 + b"]" * 1000, "not YAML: maximum recursion depth"),
        (b"seed: 1\nseed: 2", "not YAML: while constructing a mapping"),
        (b"task: {kind: text}\ntask: {kind: count}", "not YAML: while constructing a mapping"),
        (b"task: {kind: text, kind: count}", "not YAML: while constructing a mapping"),
        (b"name: 2020-13-45", "not YAML: month must be in 1..12"),
        (b"seed: " + b"9" * 5000, "not YAML: Exceeds the limit"),
        (b"? [a]\n: b", "unknown key"),
        (b"1: b", "unknown key '1'"),
        (b"null: b", "unknown key 'None'"),
        (b"a: *b", "not YAML"),
        (b"!!python/object:os.system {}", "not YAML"),
        (b"--- {}\n--- {}", "not YAML"),
        (b"text", "expected keys and values, found str"),
        (b"", "evaluators: expected at least one"),
    ],
)
def test_files(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        recipe.load(path)
    assert f"recipe {path}: {says}" in str(caught.value) and "\n" not in str(caught.value)


def test_a_byte_order_mark_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert recipe.load(path).reward == "1"


@pytest.mark.parametrize("kind", [*SECTIONS.values(), Recipe])
def test_sections_made_in_python_are_checked_too(kind: Any) -> None:
    for f in dataclasses.fields(kind):
        if f.name not in SECTIONS:
            with pytest.raises(UsageError, match=f"{f.name}: expected"):
                kind(**{f.name: object()})


SIZES = ["--task.num_prompts", "1", "--group_size", "2"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["shards", "text-tiny", "--sampler.height", "7"], "sampler.height: expected 8 or more, found 7"),
        (["shards", "text-tiny", "--sampler.height", "63"], "sampler.height: expected a multiple of 8, at most 64 "),
        (["shards", "text-tiny", "--sampler.width", "72"], "sampler.width: expected a multiple of 8, at most 64 "),
        (["shards", "text-tiny", "--sampler.height", "1000000"], "sampler.height: expected 8192 or less"),
        (["shards", "text-tiny", "--sampler.batch_size", "1000000000"], "sampler.batch_size: expected 1000000 or less"),
        (["shards", "text-tiny", "--sampler.device", "cuda:99"], "sampler.device: cuda:99: not on this machine"),
        (["shards", "text-tiny", "--ocr.device", "tpu"], "ocr.device: expected cpu"),
        (["shards", "count-tiny", "--yolo.device", "99"], "yolo.device: cuda:99: not on this machine"),
        (
            ["shards", "text-tiny", "--evaluators", "[clip_score]", "--clip_score.device", "x"],
            "clip_score.device: x: not",
        ),
        (["sql", "text-tiny", "select 1", "--seed", str(2**80)], "seed: expected less than"),
        (["verify", "text-tiny", "--eval.seed", "-1"], "eval.seed: expected 0 or more, found -1"),
        (["show", "text-tiny", "--name", LONG], "name: expected 1 to 100 letters"),
        (["audit", "text-tiny", "--train.trainer", "7"], "train.trainer: expected a valid dictionary, found 7"),
        (["measure", LONG], "no such file"),
    ],
)
def test_the_command_says_it_in_one_line(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = SIZES if arguments[0] == "shards" else []
    assert gpo_data.cli.main([*arguments, *sizes]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_options_of_the_trainer_are_known_ones(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpo_train.cli.main(["fit", str(here), "--train.trainer.max_step", "5"]) == 2
    error = capsys.readouterr().err
    assert "train.trainer: unknown option 'max_step'; did you mean 'max_steps'?" in error and error.count("\n") == 1
    assert not Path("runs").exists()


def test_a_seed_of_63_bits_trains(here: Path) -> None:
    assert gpo_train.cli.main(["fit", str(here), "--train.epochs", "1", "--train.seed", str(2**63 - 1)]) == 0
