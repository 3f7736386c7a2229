"""Tags, cards, and a hub over HTTP: pushed, pulled, read in place; what was pushed opens with other readers too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gpo_data.errors import RunError, UsageError
from gpo_data.lake.manifest import read_manifest
from gpo_data.lake.record import PLACE
from gpo_data.models.licence import licence_in_words, licence_of
from gpo_data.sharing.card import card
from gpo_data.sharing.pictures import files_of, write_pictures
from gpo_data.sharing.tag import differences, make_tag, read_tag
from tests.parts.disk import needs_mount, small_disk
from tests.parts.hub import Hub, python


@pytest.fixture
def dataset(here: Path) -> Path:
    return here.parent / "lake" / "dataset=small"


def test_a_tag_is_of_what_is_there(dataset, here, capsys):
    from gpo_data.cli import main

    made = make_tag(dataset, "v1")
    assert len(made.files) == 3 and not differences(dataset, made) and make_tag(dataset, "v2").digest == made.digest
    with pytest.raises(UsageError, match="taken"):
        make_tag(dataset, "v1")
    with pytest.raises(UsageError, match="expected 1 to 100"):
        make_tag(dataset, "../v1")
    with pytest.raises(UsageError, match="there are: v1, v2"):
        read_tag(dataset, "v3")
    assert main(["verify", str(here), "--tag", "v1"]) == 0
    (dataset / "shard-000001.parquet").unlink()
    capsys.readouterr()
    assert main(["verify", str(here), "--tag", "v1"]) == 1
    assert "shard-000001.parquet is not there since tag v1" in " ".join(capsys.readouterr().out.split())
    path = dataset / "tags" / "v1.json"
    path.write_text(path.read_text().replace("shard-000000", "shard-000009"))
    with pytest.raises(UsageError, match="not those of its digest"):
        read_tag(dataset, "v1")


def test_the_licence_of_a_model_is_what_its_card_says(tmp_path):
    assert licence_of("tiny") == "apache-2.0" and licence_of(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: some-community\n---\n# A model\n")
    assert licence_in_words(str(tmp_path)) == ", `some-community`,"
    (tmp_path / "README.md").write_text("---\nlicense: openrail++\n---\n# A model\n")
    assert licence_of(str(tmp_path)) == "openrail++"
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert licence_of(str(tmp_path)) is None


def test_a_pushed_folder_opens_elsewhere(dataset, tmp_path):
    """The repository's folder with its card, as the hub's viewer, datasets and webdataset read it."""
    import datasets
    import webdataset as wds
    import yaml

    folder = tmp_path / "repository"
    shutil.copytree(dataset, folder / dataset.name, ignore=shutil.ignore_patterns(".*"))
    text = card(dataset, read_manifest(dataset), "apache-2.0", "org/words")
    (folder / "README.md").write_text(text)
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "apache-2.0" and "its licence holds for them too" in text
    assert [(c["config_name"], c.get("default", False)) for c in head["configs"]] == [
        ("pictures", True),
        ("members", False),
    ]
    assert "6 prompts, each drawn 4 times" in text and "| `reward` | double |" in text and "####" in text
    cache = str(tmp_path / "cache")
    write_pictures(folder / dataset.name, folder, largest=1)
    assert len(list(folder.glob(files_of("small")))) == 6
    shown = datasets.load_dataset(str(folder), split="train", cache_dir=cache)
    members = datasets.load_dataset(str(folder), "members", split="train", cache_dir=cache)
    assert shown.column_names == ["image", *(name for name in members.column_names if name not in PLACE)]
    assert shown["seed"] == members["seed"]
    assert members.num_rows == 24 and {"group_key", "reward", "ocr_text"} <= set(members.column_names)
    tars = str(folder / "dataset=*" / "shard-*.tar")
    groups = datasets.load_dataset("webdataset", data_files=tars, split="train", cache_dir=cache)
    assert groups.num_rows == 6 and {"00.png", "group.json", "latents.safetensors"} <= set(groups.column_names)
    tars = sorted(str(path) for path in folder.glob("dataset=*/*.tar"))
    samples = list(wds.WebDataset(tars, shardshuffle=False))
    stored = [one[f"{member:02d}.png"] for one in samples for member in range(4)]
    assert [one["bytes"] for one in shown.cast_column("image", datasets.Image(decode=False))["image"]] == stored
    assert shown[0]["image"].size == (64, 64)
    assert [one["__key__"] for one in samples] == sorted(set(members["group_key"]))


@needs_mount
def test_a_full_disk_for_the_pictures_is_one_line(dataset, tmp_path):
    full = pytest.raises(RunError, match="No space left.*--no-pictures leaves it out")
    with small_disk(disk := tmp_path / "disk", "20k"), full:
        write_pictures(dataset, disk)


STEPS = """
import json, sys
from gpo_data.cli import main as data
from gpo_train.cli import main as train
steps = json.load(sys.stdin)
print(json.dumps([train(step[1:]) if step[0] == "train" else data(step) for step in steps]))
"""


def run(hub: Hub, folder: Path, *steps: list[str], **more: str) -> tuple[list[int], str]:
    """Verbs in a process of their own: (exit codes, output)."""
    told = python(hub, folder, STEPS, json.dumps(steps), **more)
    return json.loads(told.splitlines()[-1]), told


@pytest.mark.slow
def test_push_pull_and_read_in_place(dataset, here, tmp_path):
    make_tag(dataset, "v1")
    recipe, other = str(here), str(tmp_path / "other")
    with Hub() as hub:
        hub.fail = lambda method, path: method == "PUT" and hub.puts == 2  # the upload breaks in the middle
        codes, told = run(hub, tmp_path, ["push", recipe, "org/words"])
        assert codes == [1] and "the same command goes on from there" in told and "Traceback" not in told
        assert hub.commits["datasets/org/words"] == [{}]
        hub.fail = lambda method, path: False
        codes, told = run(
            hub,
            tmp_path,
            ["push", recipe, "org/words", "--license", "mit", "--tag", "v1"],
            ["pull", recipe, "org/words", "--lake", other, "--revision", "v1"],
            ["verify", recipe, "--lake", other, "--tag", "v1"],
            [
                "sql",
                recipe,
                "select count(*) as n from members",
                "--lake",
                "hf://datasets/org/words",
                "--format",
                "csv",
            ],
            ["verify", recipe, "--lake", "hf://datasets/org/words"],
            ["pull", recipe, "org/words", "--lake", other, "--name", "nosuch"],
            ["pull", recipe, "org/nowhere", "--lake", other],
            ["pull", recipe, "org/words", "--lake", other, "--revision", "nosuch"],
        )
        assert codes == [0, 0, 0, 0, 0, 2, 2, 2], told
        assert "n\n24\n" in told and "there are: small" in told and "no such repository" in told
        assert hub.puts == 8  # three tars, three sidecars, the picture of the card, the table; nothing twice
        files = hub.commits["datasets/org/words"][-1]
        assert {"README.md", "groups.png", "dataset=small/dataset.json", "dataset=small/tags/v1.json"} <= files.keys()
        assert "pictures/small-00000.parquet" in files
        assert not [name for name in files if ".stage" in name]
    for path in dataset.glob("shard-*"):
        assert (Path(other) / dataset.name / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_a_policy_is_trained_on_a_hub_as_on_a_disk(dataset, here, tmp_path):
    recipe, lake = str(here), "hf://datasets/org/words"
    with Hub() as hub:
        codes, told = run(hub, tmp_path, ["push", recipe, "org/words"])
        assert codes == [0], told
        hub.asked.clear()
        codes, told = run(hub, tmp_path, ["train", "fit", recipe, "--run", "there", "--lake", lake])
        assert codes == [0], told
        tars = [(path, asked) for path, asked in hub.asked if "resolve" in path and path.endswith(".tar")]
    assert tars and all(asked for _, asked in tars)  # a group in a request, and no tar whole
    codes, told = run(hub, tmp_path, ["train", "fit", recipe, "--run", "here"])
    assert codes == [0], told
    of_hub, of_disk = (weights_of(tmp_path / "runs", name) for name in ("there", "here"))
    assert of_hub == of_disk and of_hub


def weights_of(runs: Path, name: str) -> dict[str, bytes]:
    """Of a run's policy."""
    return {path.name: path.read_bytes() for path in runs.rglob(f"{name}/policy/**/*.safetensors")}


OPENED = """
import json, os
import datasets
import webdataset as wds
shown = datasets.load_dataset("org/words", split="train").cast_column("image", datasets.Image(decode=False))
members = datasets.load_dataset("org/words", "members", split="train")
tars = "hf://datasets/org/words/dataset=*/shard-*.tar"
groups = datasets.load_dataset("webdataset", data_files=tars, split="train")
live = datasets.load_dataset("webdataset", data_files=tars, split="train", streaming=True)
at = os.environ["HF_ENDPOINT"] + "/datasets/org/words/resolve/main/dataset%3Dsmall/shard-00000{0..2}.tar"
samples = list(wds.WebDataset(at, shardshuffle=False))
print(json.dumps({
    "shown": list(shown["seed"]), "members": list(members["seed"]), "keys": sorted(set(members["group_key"])),
    "pictures": [one["bytes"].hex() for one in shown["image"]],
    "stored": [one[f"{member:02d}.png"].hex() for one in samples for member in range(4)],
    "groups": list(groups["__key__"]),
    "live": [one["__key__"] for one in live],
    "samples": [one["__key__"] for one in samples],
}))
"""


@pytest.mark.slow
def test_a_pushed_dataset_opens_over_http(dataset, here, tmp_path):
    """As its card says, with `datasets` and `webdataset`, from a hub."""
    assert shutil.which("curl"), "webdataset reads http:// through it"
    with Hub() as hub:
        codes, told = run(hub, tmp_path, ["push", str(here), "org/words"])
        assert codes == [0], told
        found = json.loads(python(hub, tmp_path, OPENED).splitlines()[-1])
    assert found["shown"] == found["members"] and len(found["members"]) == 24
    assert found["pictures"] == found["stored"]
    assert found["groups"] == found["live"] == found["samples"] == found["keys"] and len(found["keys"]) == 6


@pytest.mark.slow
def test_a_lake_in_a_bucket_is_pulled_into_and_pushed_from(dataset, here, tmp_path):
    from tests.parts.s3 import environment, make_bucket, server

    recipe, bucket, other = str(here), "s3://words/lake", str(tmp_path / "other")
    with server() as s3, Hub() as hub:
        make_bucket(s3.url, "words")
        reached = environment(s3.url, tmp_path / "scratch")
        codes, told = run(
            hub,
            tmp_path,
            ["push", recipe, "org/words"],
            ["pull", recipe, "org/words", "--lake", bucket],
            ["pull", recipe, "org/words", "--lake", bucket],  # what is there stays
            ["verify", recipe, "--lake", bucket],
            **reached,
        )
        assert codes == [0, 0, 0, 0], told
        assert "3 shards, 6 groups, 24 members" in told
        hub.fail = lambda method, path: "/commit/" in path
        codes, told = run(hub, tmp_path, ["push", recipe, "org/again", "--lake", bucket], **reached)
        assert codes == [1] and "the same command goes on from there" in told
        assert len(list((tmp_path / "scratch").rglob("shard-*.tar"))) == 3  # what was fetched is not fetched again
        hub.fail = lambda method, path: False
        codes, told = run(
            hub,
            tmp_path,
            ["push", recipe, "org/again", "--lake", bucket],
            ["pull", recipe, "org/again", "--lake", other],
            **reached,
        )
        assert codes == [0, 0], told
    assert not list((tmp_path / "scratch").rglob("shard-*"))
    for path in dataset.glob("shard-*"):
        assert (Path(other) / dataset.name / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_a_policy_is_pushed_with_its_card(dataset, here, tmp_path):
    from rich.console import Console

    from gpo_data import recipe
    from gpo_train.fit import fit
    from gpo_train.share import card

    trained = fit(recipe.load(here), "there", Console(quiet=True))
    assert "Not evaluated" in card(trained, "mit")
    with Hub() as hub:
        codes, told = run(
            hub,
            tmp_path,
            ["train", "eval", str(here), "--run", "there"],
            ["train", "push", str(here), "org/policy", "--run", "there", "--license", "mit"],
        )
        assert codes == [0, 0], told
        files = hub.commits["models/org/policy"][-1]
        hub.commits["models/org/policy"].append(files | {"pytorch_lora_weights.safetensors": b"", "mine.txt": b""})
        (trained.folder / "eval.json").unlink()
        codes, told = run(
            hub, tmp_path, ["train", "push", str(here), "org/policy", "--run", "there", "--license", "mit"]
        )
        assert codes == [0], told
        again = hub.commits["models/org/policy"][-1]
        assert {*again} == {*files, "mine.txt"} - {"eval.json", "eval.png"}, "what an earlier push left is gone"
    text = files["README.md"].decode()
    found = json.loads(files["eval.json"])
    assert f"| {100 * found['base']['exact']:.1f}% |" in text and "license: mit" in text
    weights = {path.name: path.read_bytes() for path in trained.policy.rglob("*.safetensors")}
    assert {Path(name).name: content for name, content in files.items() if name.endswith(".safetensors")} == weights
