"""What needs a hub where none answers: told at once, without the client's own minute of tries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

CALLS = {
    "model": "from gpo_data.models import resolve as f; f('nobody/nothing')",
    "clip": "from gpo_data.evaluators.clip_models import find_model as f; f('nobody/nothing', 'clip_score.model')",
    "prompts": "from gpo_data.fetch import load_dataset as f; f('nobody/nothing', split='train')",
}


def _python(code: str, home: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: the client reads its settings once. Nothing listens on port 9."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9"} | settings
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("call", CALLS)
def test_a_hub_that_does_not_answer_is_asked_once(call: str, tmp_path: Path) -> None:
    ended = _python(CALLS[call], tmp_path)
    assert ended.returncode == 1 and "ConnectError" in ended.stderr and "Retrying" not in ended.stderr


def test_what_is_in_the_clients_cache_needs_no_hub(tmp_path: Path) -> None:
    folder = tmp_path / "hub/models--some--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (folder / "snapshots" / ("0" * 40) / "model_index.json").write_text("{}")
    ended = _python("from gpo_data.models import resolve as f; print(f('some/model'))", tmp_path)
    assert ended.stdout.strip() == str(folder / "snapshots" / ("0" * 40))


def test_a_data_set_in_the_cache_is_opened_without_a_hub(tmp_path: Path) -> None:
    """As `datasets` keeps one that it has fetched; told to be offline, it does not try for half a minute first."""
    rows = datasets.Dataset.from_dict({"prompt": ["a dog"]})
    folder = tmp_path / "datasets/Some___pick_a_pic/default/0.0.0/abc"
    rows.save_to_disk(tmp_path / "rows")
    folder.mkdir(parents=True)
    next((tmp_path / "rows").glob("*.arrow")).rename(folder / "pick_a_pic-train.arrow")
    split = datasets.SplitInfo("train", num_examples=1, dataset_name="pick_a_pic")
    info = datasets.DatasetInfo(
        features=rows.features,
        config_name="default",
        dataset_name="pick_a_pic",
        splits=datasets.SplitDict({"train": split}),
        version="0.0.0",
    )
    info.write_to_directory(folder)
    code = "from gpo_data.fetch import load_dataset as f; print(f('Some/PickAPic', split='train')[0]['prompt'])"
    ended = _python(code, tmp_path, HF_HUB_OFFLINE="1")
    assert ended.stdout.strip() == "a dog", ended.stderr[-2000:]


def test_a_file_that_datasets_opens_is_opened(tmp_path: Path) -> None:
    """A folder has no hub to ask."""
    from gpo_data.fetch import load_dataset

    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/train.jsonl").write_text('{"prompt": "a dog"}\n')
    found = load_dataset(str(tmp_path / "rows"), split="train")
    assert isinstance(found, datasets.Dataset) and found["prompt"][:] == ["a dog"]
