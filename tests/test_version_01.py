"""What version 0.1 wrote: its lakes are read as they are, its runs have to be begun again.

tests/parts/lake-0.1 was drawn, and measured again with `color`, by that version out of RECIPE; run-0.1.json is of a
run that it trained on it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import gpo_data.cli
import gpo_train.cli
from gpo_data import Lake
from gpo_data.lake.verify import verify

PARTS = Path(__file__).parent / "parts"
RECIPE = """
model: tiny
lake: lake-0.1
seed: 1
group_size: 2
groups_per_shard: 1
task: {kind: text, num_prompts: 2}
sampler:
  {num_inference_steps: 4, guidance_scale: 1.0, height: 64, width: 64, max_sequence_length: 1, batch_size: 2,
   dtype: float32, device: cpu}
evaluators: [ocr]
ocr: {mode: recognition}
reward: text_edit(target, ocr_text) - dark_fraction
"""


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe's file, with a copy of the lake and of the run beside it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(PARTS / "lake-0.1", "lake-0.1")
    Path("runs/old-offline").mkdir(parents=True)
    shutil.copy2(PARTS / "run-0.1.json", "runs/old-offline/run.json")
    path = tmp_path / "old.yaml"
    path.write_text(RECIPE)
    return path


def test_sql_sees_members_groups_shards_and_datasets(there: Path) -> None:
    lake = Lake("lake-0.1")
    members = lake.sql("SELECT target, ocr_text, color_seen, exact, level FROM members ORDER BY group_key, member")
    assert [tuple(row.values()) for row in members.to_pylist()] == [
        ("IHV", "IHV", "blue", True, 3),
        ("IHV", "IHV", "blue", True, 3),
        ("DLZ", "DLZ", "green", True, 3),
        ("DLZ", "O1Z", "green", False, 3),
    ]
    groups = lake.sql("SELECT n, std, dead FROM groups ORDER BY group_key").to_pylist()
    assert [(one["n"], one["dead"]) for one in groups] == [(2, True), (2, False)]
    assert groups[1]["std"] == pytest.approx(1 / 3)
    assert lake.sql("SELECT shard, members, failed FROM shards ORDER BY shard").to_pylist() == [
        {"shard": f"shard-00000{i}", "members": 2, "failed": 0} for i in range(2)
    ]
    assert lake.sql("SELECT fingerprint FROM datasets").to_pylist() == [{"fingerprint": "7f45cb9abc7d5df9"}]


def test_groups_are_read_and_verified(there: Path) -> None:
    (group,) = Lake("lake-0.1")["old"].groups()
    assert group.latents.shape == (2, 16, 8, 8) and group.latents.isfinite().all() and group.latents.std() > 0.1
    torch.testing.assert_close(group.advantages, torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert group.conditioning.keys() == {"prompt_embeds", "pooled_prompt_embeds"}
    (other,) = Lake("lake-0.1")["old"].groups(reward="color_share", where="group_key = 'text-00000000'")
    assert other.key == "old/text-00000000" and other.rewards[0] != other.rewards[1]
    report = verify(Path("lake-0.1/dataset=old"))
    assert (report.shards, report.groups, report.members, report.problems) == (2, 2, 4, [])


def test_verbs_read_it_and_none_draws_on(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpo_data.cli.main(["verify", str(there)]) == 0
    assert gpo_data.cli.main(["audit", str(there)]) == 0
    capsys.readouterr()
    assert gpo_data.cli.main(["shards", str(there), "--task.num_prompts", "3"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "arithmetic" in error


def test_a_run_has_to_be_begun_again(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpo_train.cli.main(["fit", str(there)]) == 2
    error = capsys.readouterr().err
    assert "run runs/old-offline was begun by gpo 0.1, whose recipes had other keys (" in error
    assert "train.draws, " in error and "(--run NAME)" in error and error.count("\n") == 1
