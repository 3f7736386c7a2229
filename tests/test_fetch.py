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


def _python(code: str, home: Path, endpoint: str = "http://127.0.0.1:9") -> subprocess.CompletedProcess[str]:
    """A process of its own: the client reads its settings once. Nothing listens on port 9."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint}
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


def test_a_file_that_datasets_opens_is_opened(tmp_path: Path) -> None:
    """A folder has no hub to ask."""
    from gpo_data.fetch import load_dataset

    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/train.jsonl").write_text('{"prompt": "a dog"}\n')
    found = load_dataset(str(tmp_path / "rows"), split="train")
    assert isinstance(found, datasets.Dataset) and found["prompt"][:] == ["a dog"]
