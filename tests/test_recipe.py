"""Recipes are strict: every mistake is exit code 2 and one line that names the key and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpo_data import cli, recipe
from gpo_data.errors import UsageError

GOOD = "evaluators: [ocr]\nreward: text_exact(target, ocr_text)\n"


def load(tmp_path: Path, text: str, *overrides: str) -> recipe.Recipe:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return recipe.load(path, overrides)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD + "rewrd: x", "unknown key 'rewrd'; did you mean 'reward'"),
        (GOOD + "sampler: {guidence_scale: 2}", "unknown key 'sampler.guidence_scale'; did you mean 'guidance_scale'"),
        (GOOD + "group_size: many", "group_size"),
        (GOOD + "group_size: 1", "group_size: expected 2 or more"),
        (GOOD + "task: {num_prompts: 0}", "task.num_prompts: expected 1 or more"),
        (GOOD + "sampler: {dtype: int8}", "sampler.dtype"),
        (
            GOOD + "sampler: {text_encoder_8bit: true, text_encoders: cpu}",
            "sampler.text_encoders: expected device beside",
        ),
        (GOOD + "sampler: 3", "sampler: expected keys and values, found 3"),
        (GOOD + "name: A.b", "name: expected 1 to 100 letters"),
        ("reward: x", "evaluators: expected at least one"),
        ("evaluators: [nose]\nreward: x", "or module:function, found 'nose'"),
        ("evaluators: [ocr]", "reward: expected a SQL expression"),
        ("- 1", "expected keys and values, found list"),
        ("a: [", "not YAML"),
    ],
)
def test_mistakes_name_the_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_overrides_win(tmp_path: Path) -> None:
    made = load(tmp_path, GOOD + "seed: 3", "--sampler.guidance_scale", "2.5", "--seed", "4")
    assert (made.sampler.guidance_scale, made.seed, made.name) == (2.5, 4, "a")


def test_overrides_reach_into_what_a_section_holds(tmp_path: Path) -> None:
    inner = "train: {num_inner_epochs: 2, trainer: {max_steps: 9, enable_progress_bar: false}}"
    outer = ["--train.trainer.devices", "2", "--train.trainer.max_steps=5", "--train.timesteps_per_image", "1"]
    made = load(tmp_path, GOOD + inner, *outer)
    assert made.train.trainer == {"max_steps": 5, "enable_progress_bar": False, "devices": 2}
    assert (made.train.num_inner_epochs, made.train.timesteps_per_image) == (2, 1)
    with pytest.raises(UsageError, match=r"--train.trainer.devices: not YAML: '\['"):
        load(tmp_path, GOOD + inner, "--train.trainer.devices", "[")


def test_a_number_is_one_where_a_number_or_text_may_be(tmp_path: Path) -> None:
    for override in (["--eval.prompts", "2"], ["--eval.prompts=2"]):
        assert load(tmp_path, GOOD, *override).eval.prompts == 2
    for file in ("2.jsonl", "./2"):
        assert load(tmp_path, GOOD, "--eval.prompts", file).eval.prompts == file
    for number in ("0", "-1", "2.5", "10000000"):
        with pytest.raises(UsageError, match="eval.prompts: expected a number of 1 to 1000000, or a file, found"):
            load(tmp_path, GOOD, "--eval.prompts", number)
    assert load(tmp_path, GOOD, "--task.target_column", "2").task.target_column == "2"


def test_unknown_override_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"sampler\.gidance_scale.*did you mean 'sampler.guidance_scale'"):
        load(tmp_path, GOOD, "--sampler.gidance_scale", "2.5")


def test_yolo_takes_bare_weights(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD + "yolo: tiny").yolo.weights == "tiny"


def test_fingerprint_covers_pixels_only(tmp_path: Path) -> None:
    base = load(tmp_path, GOOD).fingerprint()
    assert base == load(tmp_path, GOOD, "--reward", "x", "--sampler.device", "cpu", "--lake", "y").fingerprint()
    for change in (["--seed", "1"], ["--sampler.guidance_scale", "9"], ["--group_size", "8"], ["--model", "other"]):
        assert base != load(tmp_path, GOOD, *change).fingerprint()


def test_every_shipped_recipe_is_valid() -> None:
    paths = sorted((Path(__file__).parents[1] / "recipes").glob("*-*.yaml"))
    assert len(paths) >= 4
    for path in paths:
        assert recipe.load(path).name == path.stem


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["shards", str(tmp_path / "none.yaml")]) == 2
    assert "no such file" in capsys.readouterr().err
    path = tmp_path / "b.yaml"
    path.write_text(GOOD + f"lake: {tmp_path}\ntask: {{prompts: {tmp_path}/none.txt}}")
    assert cli.main(["shards", str(path)]) == 2
    assert "none.txt" in capsys.readouterr().err
    assert cli.main(["verify", str(path)]) == 2
    assert "no dataset here" in capsys.readouterr().err


def test_recipe_keys_go_anywhere_on_the_command_line() -> None:
    arguments = ["r.yaml", "--lake", "x", "select 1", "--sampler.guidance_scale=2", "--format", "csv"]
    assert recipe.split_overrides(arguments) == (
        ["--lake", "x", "--sampler.guidance_scale=2"],
        ["r.yaml", "select 1", "--format", "csv"],
    )
    pull = ["r.yaml", "org/words", "--revision", "v1", "--lake", "x"]
    assert recipe.split_overrides(pull, own={"--revision"}) == (pull[4:], pull[:4])
