"""The audit: known numbers, a page that stands alone, and errors that say what to do.

The datasets are real: the tiny world's renderer, groups, tars and sidecars as `gpo_data.shard` writes them. Only the
luck is ours: each member draws its word (or its number) or another one, and the reading is what was drawn.
"""

import dataclasses
import json
import math
import re
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from gpo_data import audit, recipe
from gpo_data.audit import galleries, members, page, statistics, wording
from gpo_data.audit.show import grid as show_grid
from gpo_data.audit.show import judged, load_groups
from gpo_data.errors import RunError, UsageError
from gpo_data.group import Group, group_key, member_seed
from gpo_data.lake import shard
from gpo_data.lake.stage import stage
from gpo_data.prompt import Prompt, prompt_id
from gpo_data.tiny import render, words
from gpo_train.evaluation import evaluate
from gpo_train.evaluation import report as eval_report

G = 8
STATISTICS = {"entropy": pa.float64(), "edge_density": pa.float64(), "dark_fraction": pa.float64()}
LINE = pa.list_(pa.struct([("text", pa.string()), ("confidence", pa.float64()), ("box", pa.list_(pa.float64()))]))
BOX = pa.list_(pa.struct([("class", pa.string()), ("confidence", pa.float64()), ("box", pa.list_(pa.float64()))]))
COLUMNS = {
    "text": {"target": pa.string(), "color": pa.string()}
    | STATISTICS
    | {"ocr_text": pa.string(), "ocr_confidence": pa.float64(), "ocr_lines": LINE},
    "count": {"target_class": pa.string(), "target_count": pa.int32(), "color": pa.string()}
    | STATISTICS
    | {"n_detected": pa.int32(), "detections": BOX},
}
RECIPES = {
    "text": "text_exact(target, ocr_text)",
    "count": "case when n_detected = target_count then 1.0 else 0.0 end",
}


def picture_statistics(image):
    grey = image.mean(axis=2)
    share = np.bincount(grey.astype(int).ravel(), minlength=256) / grey.size
    edges = np.abs(np.diff(grey, axis=1)) > 32
    return {
        "entropy": float(-(share[share > 0] * np.log2(share[share > 0])).sum()),
        "edge_density": float(edges.mean()),
        "dark_fraction": float((grey < 64).mean()),
    }


def text_member(rng, word, color, luck):
    drawn = word if rng.random() < luck else words.sample_word(rng, len(word))
    image = render.render_text(drawn, color=color, rng=rng)
    return image, {"ocr_text": drawn, "ocr_confidence": 0.9, "ocr_lines": []}, float(drawn == word)


def count_member(rng, shape, n, color, luck):
    drawn = n if rng.random() < luck else 1 + n % 6
    image, _ = render.render_count(shape, drawn, color, rng)
    return image, {"n_detected": drawn, "detections": []}, float(drawn == n)


def write_group(rng, task, index, size):
    """Luck falls with the difficulty; group 0 is always right and group 1 never."""
    if task == "text":
        word, color = words.sample_word(rng, 2 + index % 4), list(words.COLORS)[index % len(words.COLORS)]
        text, target = words.text_caption(color, word), {"target": word, "color": color}
    else:
        n, color, shape = words.sample_count(rng, 1 + index % 6)
        text, target = words.count_caption(n, color, shape), {"target_class": shape, "target_count": n, "color": color}
    luck = {0: 1.0, 1: 0.0}.get(index, 0.8 - 0.15 * (index % 4))
    images, measurements, rewards = [], [], []
    for _ in range(size):
        made = text_member(rng, word, color, luck) if task == "text" else count_member(rng, shape, n, color, luck)
        images.append(made[0])
        measurements.append(made[1] | picture_statistics(made[0]))
        rewards.append(made[2])
    pid = prompt_id(f"{index}{text}")
    return Group(
        key=group_key(task, index),
        prompt=Prompt(pid, text, target),
        seeds=[member_seed(0, task, pid, m) for m in range(size)],
        latents=torch.zeros(size, 2, 2, 2),
        conditioning={"prompt_embeds": torch.zeros(1, 2)},
        images=images,
        statuses=["ok"] * size,
        measurements=measurements,
        rewards=rewards,
    )


def write_dataset(lake, task, groups=12, size=G, per_shard=6, fail=False, paid=1.0):
    name = f"{task}-tiny"
    folder = shard.dataset_folder(lake, name)
    (folder / ".stage").mkdir(parents=True)
    rng, keys = np.random.default_rng(7), []
    for index in range(groups):
        group = write_group(rng, task, index, size)
        group.rewards = [paid * reward for reward in group.rewards]
        if fail and index == 2:
            group.statuses[3], group.rewards[3], group.images[3] = "failed_latents", None, None
            group.reasons = [None, None, None, "NaN from the model", *[None] * (size - 4)]
            group.measurements[3] = {}
        stage(folder, group, "f" * 16)
        keys.append(group.key)
    for i in range(0, groups, per_shard):
        shard.commit(folder, i // per_shard, keys[i : i + per_shard], COLUMNS[task], "f" * 16)
    recipe = {"model": "tiny", "reward": RECIPES[task], "task": {"kind": task}}
    head = {
        "name": name,
        "fingerprint": "f" * 16,
        "fields": {},
        "measured": {},
        "recipe": recipe,
        "versions": {},
        "created": "",
    }
    (folder / "dataset.json").write_text(json.dumps(head))
    return str(lake), name


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("lake"), "text", fail=True)


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("lake"), "count")


def test_pass_at_k_is_the_share_of_subsets_with_a_right_member():
    rng = np.random.default_rng(0)
    exact = (rng.random((5, 6)) < 0.4).astype(float)
    for k in range(1, 7):
        by_hand = np.mean([np.mean([row[list(s)].max() for s in combinations(range(6), k)]) for row in exact])
        assert statistics.pass_at(exact)[k - 1] == pytest.approx(by_hand)


def test_best_of_k_is_the_mean_best_of_all_subsets():
    rewards = np.random.default_rng(1).random((4, 6))
    for k in range(1, 7):
        by_hand = np.mean([np.mean([row[list(s)].max() for s in combinations(range(6), k)]) for row in rewards])
        assert statistics.best_of(rewards)[k - 1] == pytest.approx(by_hand)


def test_a_failed_member_is_not_a_wrong_one():
    exact = np.array([[1.0, np.nan, 0.0]])
    assert statistics.pass_at(exact).tolist() == pytest.approx([0.5, 1.0, math.nan], nan_ok=True)
    assert statistics.best_of(exact).tolist() == pytest.approx([0.5, 1.0, math.nan], nan_ok=True)


def test_groups_of_any_size_count_for_the_tries_that_they_have():
    rng = np.random.default_rng(2)
    rewards = np.where(rng.random((300, 7)) < 0.7, np.round(rng.random((300, 7)) * 4) / 4, np.nan)
    rewards[:, 0] = 0.5
    exact = np.where(np.isnan(rewards), np.nan, rewards >= 0.75)
    for of, found in ((exact, statistics.pass_at(exact)), (rewards, statistics.best_of(rewards))):
        for k in range(1, 8):
            rows = [row[np.isfinite(row)] for row in of]
            subsets = [list(combinations(row, k)) for row in rows if len(row) >= k]
            by_hand = np.mean([np.mean([max(tried) for tried in of_group]) for of_group in subsets])
            assert found[k - 1] == pytest.approx(by_hand)


def test_a_mean_in_a_quantile_bin_is_that_of_its_members():
    rng = np.random.default_rng(3)
    x, y = np.round(rng.normal(size=900), 1), rng.random(900)
    edges = np.unique(np.quantile(x, np.linspace(0, 1, 9)))
    bins = [(x >= low) & ((x < high) | (high == edges[-1])) for low, high in pairwise(edges)]
    by_hand = [(x[b].mean(), y[b].mean(), y[b].std() / np.sqrt(b.sum())) for b in bins]
    assert statistics.quantile_means(x, y) == pytest.approx(np.array(by_hand).T)
    assert statistics.quantile_means(np.ones(4), np.arange(4.0))[:2].tolist() == [[1.0], [1.5]]


def test_drift_sees_inside_groups_what_pooling_hides():
    # In every group the better member is darker; dark groups are hard, so pooled it looks the other way round.
    dark = np.array([[0.1, 0.2], [0.5, 0.6], [0.8, 0.9]])
    reward = np.array([[0.8, 0.9], [0.4, 0.5], [0.0, 0.1]])
    found = statistics.drift("dark_fraction", dark, reward)
    assert found.within == pytest.approx(1)
    assert found.pooled < 0
    assert "A strong pull: better members of a group are darker" in wording.drift(found)


def test_levels_of_a_long_tail_are_grouped_and_lose_no_group():
    levels = np.concatenate([np.full(30, 1), np.arange(2, 40)])
    parts = statistics.split_levels(levels)
    assert len(parts) <= statistics.MAX_LEVELS
    assert (sum(mask.astype(int) for _, mask in parts) == 1).all()
    assert [label for label, _ in statistics.split_levels(np.array([4, 2, 4]))] == ["2", "4"]


def test_numbers_of_a_known_dataset(text):
    data = members.read(*text, None, None)
    figures = statistics.summarise(data)
    assert data.shape == (12, G)
    assert data.failed == [("NaN from the model", 1)]
    assert np.isnan(data.rewards).sum() == 1 and np.isnan(data.rewards[2, 3])
    assert np.array_equal(data.rewards, data.exact, equal_nan=True)
    assert figures.dead_high[0] and figures.dead_low[1]
    assert figures.pass_at[0] == pytest.approx(np.nanmean(np.nanmean(data.exact, axis=1)))
    assert [level.label for level in figures.levels] == ["2", "3", "4", "5"]
    assert sum(level.members for level in figures.levels) == 12 * G - 1
    assert [d.name for d in figures.drifts] == list(members.IMAGE_STATISTICS)


def test_another_reward_and_condition(text):
    data = members.read(*text, "0.5 * text_exact(target, ocr_text) + 0.25", "length(target) >= 4")
    assert set(np.unique(data.rewards[np.isfinite(data.rewards)])) == {0.25, 0.75}
    assert data.shape[0] == 6 and data.levels.min() == 4


@pytest.mark.parametrize("kind", ["text", "counts"])
def test_page_stands_alone(kind, request, capsys):
    lake, name = request.getfixturevalue(kind)
    path = audit.run(lake, name)
    assert path == shard.dataset_folder(lake, name) / "audit.html"
    html = path.read_text()
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert "<script" not in html and "http://" not in re.sub(r"data:[^\"]+", "", html)
    assert html.count("data:image/svg+xml") == 6 + 2 * 3
    assert html.count("data:image/png") >= 4 * G
    for heading in ("Rewards", "Best of n", "Dead groups", "Margins", "Difficulty", "Largest spread", "Dead, low"):
        assert heading in html
    said = capsys.readouterr().out
    assert name in said and "by difficulty" in said
    audit.run(lake, name)
    assert path.read_text() == html


def test_a_picture_is_shown_with_its_own_reading(text):
    data = members.read(*text, None, None)
    shown = galleries.choose(data, statistics.summarise(data))
    assert [g.title for g in shown] == ["Largest spread", "Dead, low", "Dead, high", "Random"]
    keys = [group.key for gallery in shown for group in gallery.groups]
    assert len(keys) == len(set(keys))
    group = shown[0].groups[0]
    g = int(group.key.split("-")[1])
    for picture in group.best + group.worst:
        row = data.rows(g)[picture.member]
        assert picture.read == f"“{row['ocr_text']}”" and picture.reward == data.rewards[g, picture.member]
    assert min(p.reward for p in group.best) >= max(p.reward for p in group.worst)


def test_what_was_read_is_escaped(text):
    data = members.read(*text, None, None)
    figures = statistics.summarise(data)
    picture = galleries.Picture(0, None, "“<script>”", 0.0, False, 0)
    shown = galleries.Shown("text-0", '<b>"', 0, 1, 0.0, [picture], [])
    html = page.render(data, figures, [galleries.Gallery("x", "y", [shown])])
    assert "<script>" not in html and "<b>&#34;" not in html and "&lt;script&gt;" in html


def test_large_pictures_are_made_smaller():
    from gpo_data.group import encode_image

    extension, coded = encode_image(np.zeros((600, 400, 3), np.uint8))
    uri, width = galleries.data_uri(coded, "00.webp")
    assert extension == "webp" and uri.startswith("data:image/webp") and width < galleries.SHOWN


def test_errors_say_what_to_do(text, tmp_path):
    lake, name = text
    with pytest.raises(UsageError, match=r"count-tiny: no such dataset .*there: text-tiny.*`make shards TASK=count`"):
        audit.run(lake, "count-tiny")
    with pytest.raises(UsageError, match=r"make shards TASK=text MODEL=sd35m"):
        audit.run(str(tmp_path), "text-sd35m")
    with pytest.raises(UsageError, match=r"reward:.*nonsense"):
        audit.run(lake, name, reward="nonsense(target)")
    with pytest.raises(UsageError, match=r"where 'length\(target\) > 99'.*loosen"):
        audit.run(lake, name, where="length(target) > 99")


def test_a_dataset_without_shards_names_the_command(tmp_path):
    lake, name = write_dataset(tmp_path, "text", groups=0)
    with pytest.raises(RunError, match=r"found none; run `make shards TASK=text`"):
        audit.run(lake, name)


def test_a_damaged_shard_stops_the_audit(tmp_path):
    lake, name = write_dataset(tmp_path, "text", groups=4, per_shard=4)
    tar = shard.tar_path(shard.dataset_folder(lake, name), 0)
    data = bytearray(tar.read_bytes())
    for place in range(0, len(data), 3000):
        data[place] ^= 1
    tar.write_bytes(data)
    with pytest.raises(RunError, match=r"shard-000000.tar: damaged"):
        audit.run(lake, name)
    assert not (shard.dataset_folder(lake, name) / "audit.html").exists()


def test_a_member_that_is_there_twice_stops_the_audit(tmp_path):
    lake, name = write_dataset(tmp_path, "text", groups=4, per_shard=2)
    first, second = (shard.sidecar_path(shard.dataset_folder(lake, name), i) for i in range(2))
    second.write_bytes(first.read_bytes())
    with pytest.raises(UsageError, match=r"dataset text-tiny: text-00000000 member 0 is there twice; .*verify"):
        audit.run(lake, name)


def test_a_dataset_where_every_group_is_dead(tmp_path):
    lake, name = write_dataset(tmp_path, "count", groups=2, size=2, per_shard=2)
    html = audit.run(lake, name, reward="1.0").read_text()
    assert "nothing to learn from" in html and "Dead, high" in html and "Largest spread" not in html


def test_the_last_pass_at_k_is_one_that_was_measured(text):
    data = members.read(*text, None, "member < 5 or group_key > 'text-00000005'")
    figures = statistics.summarise(data)
    assert figures.last_k == G  # groups 6 to 11 are whole
    data = members.read(*text, None, "member <> 0")
    figures = statistics.summarise(data)
    assert figures.last_k == G - 1 and math.isnan(figures.pass_at[-1])
    assert page.tiles(data, figures)[2][0].endswith(f"(pass@{G - 1})")


def test_the_grid_of_eval_frames_what_is_exact_and_not_what_is_paid(tmp_path):
    lake, name = write_dataset(tmp_path / "lake", "count", paid=0.5)
    made = recipe.load(Path(__file__).parents[1] / "recipes/count-tiny.yaml", ["--lake", lake])
    side = dataclasses.replace(made, name=name)
    right = [{key for key, one in found.items() if one["exact"]} for found in evaluate.members(made, side, side)]
    sheet = np.asarray(Image.open(eval_report.grid(made, name, name, right, tmp_path / "eval.png")))
    groups = load_groups(shard.dataset_folder(lake, name), limit=eval_report.PROMPTS)
    edge, gap, label = 2 * groups[0].images[0].shape[0], eval_report.GAP, eval_report.LABEL
    for row, group in enumerate(groups):
        for member in range(eval_report.MEMBERS):
            corner = sheet[2 * label + row * (edge + label + gap), gap + member * (edge + gap)]
            exact = group.measurements[member]["n_detected"] == group.prompt.target["target_count"]
            assert (corner.tolist() == [0, 170, 60]) == exact
    for reward in (None, "0.0"):  # so does that of show
        shown, framed = judged(groups, lake, name, reward)
        assert framed == {one for one in right[0] if one[0] in {group.key for group in groups}} != set()
        assert all(group.rewards[0] == 0.0 for group in shown) == (reward is not None)
        green = (np.asarray(show_grid(shown, framed)) == [0, 170, 60]).all(-1).sum()
        assert green == len(framed) * (edge * edge - (edge - 4) ** 2)
