"""The tables of how good a tiny world is, of folders with and without a detector."""

from pathlib import Path

import pytest

from gpo_data.tiny import PIPELINE_DIR, accuracy

SMALL = ["--steps", "1", "--rendered", "12", "--prompts", "12"]


def test_a_folder_without_a_detector_is_counted_by_the_packages(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "sd3").symlink_to(PIPELINE_DIR)
    assert accuracy.main(["--weights", str(tmp_path), *SMALL]) == 0
    said = capsys.readouterr().out
    assert f"no {tmp_path / 'yolo.pt'}: the package's detector counts" in said
    assert "rendered        count  100.0% of 12" in said


def test_a_folder_without_a_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert accuracy.main(["--weights", str(tmp_path), *SMALL]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(tmp_path / "sd3") in error and error.count("\n") == 1
