"""In and out: pairs that other trainers read, and pictures of anybody as groups of the lake."""

from __future__ import annotations

import csv
import io
import json
import sys
import tarfile
import types
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

from gpo_data import cli, models, recipe
from gpo_data.errors import UsageError
from gpo_data.exchange.imported import bring_in, fitted
from gpo_data.exchange.pairs import choose
from gpo_data.exchange.sources import pictures
from gpo_data.lake.manifest import read_manifest
from gpo_data.lake.shard import sidecars
from gpo_data.lake.sidecar import footer_of, read_rows
from gpo_data.recipe import Task
from gpo_data.sharing.card import card
from gpo_data.tiny.render import render_text
from gpo_train import cli as train
from gpo_train.run import Run

WORDS = ("KITE", "UP", "SKY")
QUIET = Console(quiet=True)


def sign(word: str, seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(render_text(word, color="red", seed=seed)).save(buffer, "PNG")
    return buffer.getvalue()


def caption(word: str) -> str:
    return f'a red sign that says "{word}"'


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for sidecar in sidecars(folder) for row in read_rows(sidecar)]


def test_pairs_are_best_and_worst_or_all_beyond_a_margin(here: Path) -> None:
    made = recipe.load(here)
    by_group: dict[str, dict[int, float]] = {}
    for row in rows_of(here.parent / "lake/dataset=small"):
        by_group.setdefault(row["group_key"], {})[row["member"]] = row["reward"]
    best = choose(made)
    assert {pair.key for pair in best} == {key for key, of in by_group.items() if max(of.values()) > min(of.values())}
    for pair in best:
        rewards = by_group[pair.key]
        assert pair.better.reward == max(rewards.values()) == rewards[pair.better.member]
        assert pair.worse.reward == min(rewards.values()) == rewards[pair.worse.member]
    margin = float(np.median([pair.better.reward - pair.worse.reward for pair in best]))
    wide = choose(made, margin)
    expected = sum(a - b >= margin for of in by_group.values() for a in of.values() for b in of.values())
    assert len(wide) == expected and all(pair.better.reward - pair.worse.reward >= margin for pair in wide)


def test_pick_a_pic_and_back_to_train_on(here: Path, capsys: Any) -> None:
    assert cli.main(["export-pairs", str(here), "--out", "pairs", "--format", "pickapic"]) == 0
    table = datasets.load_dataset("parquet", data_files="pairs/*.parquet", split="train", cache_dir="cache")
    stored = {(row["group_key"], row["member"]): row for row in rows_of(here.parent / "lake/dataset=small")}
    assert len(table) == len(choose(recipe.load(here))) and set(table["label_0"]) <= {0.0, 1.0}
    for row in table:
        assert row["label_0"] + row["label_1"] == 1 and (row["reward_0"] > row["reward_1"]) == (row["label_0"] == 1)
        for i in (0, 1):
            member = stored[row["group_key"], row[f"member_{i}"]]
            assert (member["prompt"], member["seed"], member["reward"]) == (
                row["caption"],
                row[f"seed_{i}"],
                row[f"reward_{i}"],
            )
            assert Image.open(io.BytesIO(row[f"jpg_{i}"])).size == (64, 64)
    assert cli.main(["export-pairs", str(here), "--out", "pairs"]) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err

    # The pairs of somebody, as data for DPO: groups of two whose labels are the reward.
    own = ["--name", "pairs", "--reward", "label", "--train.weighting", "all"]
    assert cli.main(["import", str(here), "pairs", *own]) == 0
    folder = here.parent / "lake/dataset=pairs"
    rows = rows_of(folder)
    assert len(rows) == 2 * len(table) and {row["reward"] for row in rows} == {0.0, 1.0}
    assert all(row["reward"] == row["label"] and row["ocr_text"] is not None for row in rows)
    assert all(row["imported_from"].startswith("pairs-00000.parquet:") for row in rows)
    for verb in ("verify", "audit", "show"):
        assert cli.main([verb, str(here), *own]) == 0
    assert cli.main(["verify", str(here), *own, "--redraw", "1"]) == 2
    assert "were imported, not drawn" in capsys.readouterr().err
    assert train.main(["fit", str(here), *own, "--train.noise", "own", "--run", "refused"]) == 2
    assert "were imported, not drawn from noise" in capsys.readouterr().err
    assert train.main(["fit", str(here), *own, "--train.epochs", "1"]) == 0
    assert Run(Path("runs/pairs-offline")).manifest().state == "finished"
    assert cli.main(["shards", str(here), *own]) == 2  # what was imported is not drawn over
    assert "its pictures were imported" in capsys.readouterr().err


def test_verl_omni_reads_latents_and_embeddings(here: Path, capsys: Any) -> None:
    assert cli.main(["export-pairs", str(here), "--out", "verl", "--format", "verl-omni", "--margin", "0.001"]) == 0
    rows = pq.read_table("verl/pairs-00000.parquet").to_pylist()
    pairs = choose(recipe.load(here), 0.001)
    assert len(rows) == len(pairs)
    for row, pair in zip(rows, pairs, strict=True):
        group = pair.record.group()

        def tensor(name: str, row: dict[str, Any] = row) -> torch.Tensor:
            return torch.load(io.BytesIO(row[name]), weights_only=True)

        assert torch.equal(tensor("img_win_latents"), group.latents[pair.better.member])
        assert torch.equal(tensor("img_lose_latents"), group.latents[pair.worse.member])
        assert torch.equal(tensor("prompt_embeds"), group.conditioning["prompt_embeds"])
        assert torch.equal(tensor("pooled_prompt_embeds"), group.conditioning["pooled_prompt_embeds"])
        assert tensor("prompt_embeds_mask").tolist() == [1] * len(group.conditioning["prompt_embeds"])
        assert len(row["img_win_latents"]) < 4 * group.latents[0].numel() + 4000  # its own, not the group's
        assert np.array_equal(np.asarray(Image.open(Path("verl") / row["img_win"])), group.images[pair.better.member])
        assert row["prompt"] == [{"role": "user", "content": pair.prompt}]
        assert (row["win_score"], row["extra_info"]["win_seed"]) == (pair.better.reward, pair.better.seed)


def test_paired_folders(here: Path) -> None:
    assert cli.main(["export-pairs", str(here), "--out", "folders", "--format", "simpletuner"]) == 0
    names = [sorted(path.name for path in Path("folders", side).iterdir()) for side in ("chosen", "rejected")]
    lines = [json.loads(line) for line in Path("folders/pairs.jsonl").read_text().splitlines()]
    assert names[0] == names[1] and len(names[0]) == 2 * len(lines)
    assert all(line["chosen"]["reward"] > line["rejected"]["reward"] for line in lines)
    assert Path("folders/chosen", f"{lines[0]['name']}.txt").read_text() == lines[0]["prompt"]
    chosen, rejected, _ = json.loads(Path("folders/multidatabackend.json").read_text())
    assert chosen["conditioning_data"] == rejected["id"] and Path(chosen["instance_data_dir"]).is_dir()


def test_what_cannot_be_exported_is_told(here: Path, capsys: Any) -> None:
    for arguments, words in (
        (["--margin", "50"], "no group has members whose rewards differ by 50"),
        (["--reward", "1.0"], "no group has two members of different reward"),
    ):
        assert cli.main(["export-pairs", str(here), "--out", "none", *arguments]) == 2
        assert words in capsys.readouterr().err and not Path("none").exists()
    with pytest.raises(SystemExit):
        cli.main(["export-pairs", str(here), "--out", "none", "--margin", "0"])
    assert "expected a number above 0" in capsys.readouterr().err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of KITE and two of UP with captions beside them, one of SKY in metadata.csv."""
    made = tmp_path / "mine"
    (made / "more").mkdir(parents=True)
    for i, word in enumerate(("KITE", "UP", "KITE", "KITE", "UP")):
        (made / f"{i}.png").write_bytes(sign(word, i))
        (made / f"{i}.txt").write_text(caption(word) + "\n")
    Image.fromarray(render_text("SKY", color="red", seed=9)).resize((120, 90)).save(made / "more/sky.jpg")
    with (made / "metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["file_name", "text"], ["more/sky.jpg", caption("SKY")]])
    return made


def test_a_folder_becomes_groups_that_everything_reads(recipe_file: Path, folder: Path, capsys: Any) -> None:
    command = ["import", str(recipe_file), str(folder), "--name", "mine", "--model", "tiny"]
    assert cli.main(command) == 0
    there = recipe_file.parent / "lake/dataset=mine"
    assert read_manifest(there).fields["imported"]
    rows = rows_of(there)
    sizes = {row["target"]: sum(one["target"] == row["target"] for one in rows) for row in rows}
    assert sizes == {"KITE": 3, "UP": 2, "SKY": 1}
    # Read like drawn ones: the OCR finds the words, since the pictures are what they were.
    assert all(row["ocr_text"] == row["target"] for row in rows if row["target"] != "SKY")
    assert {row["imported_from"] for row in rows} == {*(f"{i}.png" for i in range(5)), "more/sky.jpg"}
    assert [footer_of(path)["group_size"] for path in sidecars(there)] == ["1", "2", "3"]
    for verb in ("verify", "show"):
        assert cli.main([verb, str(recipe_file), "--name", "mine", "--model", "tiny"]) == 0
    said = card(there, read_manifest(there), "mit", "org/mine")
    assert "3 prompts, each with pictures that were imported" in said and "pictures are this model's" not in said
    again = [path.read_bytes() for path in sorted(there.glob("*.tar"))]
    capsys.readouterr()
    assert cli.main(command) == 0 and "nothing to import" in capsys.readouterr().out
    sidecars(there)[1].unlink()  # as a run that was killed before that commit
    assert cli.main(command) == 0
    assert [path.read_bytes() for path in sorted(there.glob("*.tar"))] == again
    (folder / "5.png").write_bytes(sign("UP", 5))
    (folder / "5.txt").write_text(caption("UP"))
    assert cli.main(command) == 2  # other pictures are another dataset
    assert "imported: " in capsys.readouterr().err


def test_what_metadata_says_besides_is_in_the_lake(recipe_file: Path, tmp_path: Path, capsys: Any) -> None:
    """And a table's numbers are numbers: a count is one."""
    made = tmp_path / "mine"
    made.mkdir()
    rows = [["file_name", "caption", "target", "class", "color", "author", "label", "title"]]
    for number, title in ((2, "a"), (3, "b"), (3, "c")):
        (made / f"{title}.png").write_bytes(sign("UP", number))
        rows.append([f"{title}.png", f"{number} red squares", number, "square", "red", "me", "good", title])
    with (made / "metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    options = ["--task.kind", "count", "--task.grammar", "signs", "--evaluators", "[color]", "--reward", "color_share"]
    command = [str(recipe_file), "--name", "mine", "--model", "tiny", *options]
    assert cli.main(["import", command[0], str(made), *command[1:]]) == 0
    there = recipe_file.parent / "lake/dataset=mine"
    columns = ("target_count", "author", "row_label", "label", "title")
    found = {tuple(one.get(name) for name in columns) for one in rows_of(there)}
    assert found == {(2, "me", "good", None, "a"), (3, "me", "good", None, None)}  # two titles of one prompt are none
    assert cli.main(["verify", *command]) == 0
    with (made / "metadata.csv").open() as stream:
        taken = stream.read().replace("author", "color_seen")
    (made / "metadata.csv").write_text(taken)
    capsys.readouterr()
    assert cli.main(["import", command[0], str(made), "--name", "none", *command[3:]]) == 2
    assert f"evaluators: color: the column 'color_seen' is one of {made} already" in capsys.readouterr().err


def test_an_evaluators_column_is_none_of_imported_members(recipe_file: Path, folder: Path, monkeypatch: Any) -> None:
    def judge(images: list[Any], targets: list[Any]) -> list[dict[str, float]]:
        return [{"label": 1.0} for _ in images]

    judge.columns = {"label": float}  # type: ignore[attr-defined]
    module = types.ModuleType("judge_of_labels")
    module.judge = judge  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "judge_of_labels", module)
    made = recipe.load(recipe_file, ["--name", "none", "--evaluators", "[ocr, 'judge_of_labels:judge']"], trust=True)
    with pytest.raises(UsageError, match="the column 'label' is one of .*/mine already"):
        bring_in(made, str(folder), QUIET)


def test_sft_on_imported_pictures(here: Path, folder: Path) -> None:
    own = ["--name", "mine", "--reward", "text_exact(target, ocr_text)"]
    assert cli.main(["import", str(here), str(folder), *own]) == 0
    options = ["--train.objective", "sft", "--train.epochs", "1", "--train.groups_per_step", "1"]
    assert train.main(["fit", str(here), *own, *options]) == 0


def test_sources_give_the_same_pictures(folder: Path, tmp_path: Path) -> None:
    task = Task("text")
    listed = [(one.caption, one.read()) for one in pictures(str(folder), task, QUIET)]
    with tarfile.open(tmp_path / "mine.tar", "w") as archive:
        for i, (text, data) in enumerate(listed):
            row = json.dumps({"prompt": text, "aesthetic": 5.5}).encode()
            parts = {"png" if i < 5 else "jpg": data} | ({"json": row} if i % 2 else {"txt": text.encode()})
            for kind, content in parts.items():
                entry = tarfile.TarInfo(f"{i:04d}.{kind}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    columns = {"caption": [text for text, _ in listed], "image": [{"bytes": data, "path": None} for _, data in listed]}
    pq.write_table(pa.table(columns), tmp_path / "mine.parquet", row_group_size=2)
    kinds = datasets.Features({"caption": datasets.Value("string"), "image": datasets.Image()})
    datasets.Dataset.from_dict(columns, features=kinds).save_to_disk(str(tmp_path / "saved"))
    for source in ("mine.tar", "mine.parquet", "saved"):
        found = pictures(str(tmp_path / source), task, QUIET)
        assert [(one.caption, one.read()) for one in found] == listed, source
    assert pictures(str(tmp_path / "mine.tar"), task, QUIET)[1].columns == {"aesthetic": 5.5}


def test_sources_that_are_none_are_told(folder: Path, tmp_path: Path, recipe_file: Path, capsys: Any) -> None:
    def refused(source: Path | str, *options: str) -> str:
        assert cli.main(["import", str(recipe_file), str(source), "--name", "none", *options]) == 2
        assert not (recipe_file.parent / "lake/dataset=none").exists()
        return capsys.readouterr().err

    assert "expected a folder of pictures" in refused(tmp_path / "nothing.tar")
    (tmp_path / "empty").mkdir()
    assert "no picture in it" in refused(tmp_path / "empty")
    (tmp_path / "cut.tar").write_bytes(b"x" * 700)
    assert "not a tar that can be read to its end" in refused(tmp_path / "cut.tar")
    pq.write_table(pa.table({"caption": ["a"], "picture": [b""]}), tmp_path / "odd.parquet")
    assert "expected a column with pictures" in refused(tmp_path / "odd.parquet")
    (folder / "7.png").write_bytes(sign("UP", 7))
    assert "1 pictures have no caption" in refused(folder)
    (folder / "7.txt").write_text("a sign without any words")
    told = refused(folder)
    assert "no target" in told and str(folder) in told and "task.kind: align takes any caption" in told
    (folder / "7.txt").write_text(caption("UP"))
    (folder / "7.png").write_bytes(b"GIF89a")
    assert cli.main(["import", str(recipe_file), str(folder), "--name", "broken"]) == 0
    assert "imported 7 pictures in 3 groups; 1 failed" in capsys.readouterr().out
    (lost,) = [row for row in rows_of(recipe_file.parent / "lake/dataset=broken") if row["status"] != "ok"]
    assert lost["imported_from"] == "7.png" and lost["status_reason"].startswith("import: 7.png: expected a picture")
    assert cli.main(["verify", str(recipe_file), "--name", "broken"]) == 0
    for path in folder.glob("*.png"):
        path.write_bytes(b"GIF89a")
    assert cli.main(["import", str(recipe_file), str(folder), "--name", "lost"]) == 1
    assert "6 of 7 pictures failed, more than max_failed (0.2)" in capsys.readouterr().err
    assert cli.main(["import", str(recipe_file), str(folder), "--name", "lost"]) == 1  # and not by then all is well
    said = capsys.readouterr()
    assert "nothing to import" in said.out and "6 of 7 pictures failed" in said.err


def test_pictures_are_cut_about_their_middle() -> None:
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = 255
    assert fitted(wide, 64, 64).shape == (64, 64, 3) and fitted(wide, 64, 64).mean() > 250
    same = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    assert fitted(same, 64, 64) is same


def test_the_embedded_autoencoder_gives_back_what_it_was_given() -> None:
    made = recipe.load("text-tiny", ["--sampler.device", "cpu", "--sampler.dtype", "float32"])
    model = models.load(models.resolve("tiny"), made.sampler)
    images = [render_text(word, color="red", seed=i) for i, word in enumerate(WORDS)]
    latents = model.encode_images(images)
    back = np.stack(model.decode(latents)).astype(float)
    assert latents.shape[0] == 3 and np.abs(back - np.stack(images)).mean() < 8  # of 255
