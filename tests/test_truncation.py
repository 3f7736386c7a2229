"""Prompts that a text encoder cuts: said once, and without their text."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest

from gpo_data import models
from gpo_data.models.truncation import SayOnce
from gpo_data.recipe import Sampler


def test_a_cut_prompt_is_said_once_and_not_written_out(random_sd3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(height=64, width=64, num_inference_steps=1, guidance_scale=1.0, dtype="float32", device="cpu")
    model = models.load(random_sd3, sampler)
    handler = logging.StreamHandler(heard := io.StringIO())
    handler.addFilter(SayOnce())
    monkeypatch.setattr(logging.getLogger("diffusers"), "handlers", [handler])
    for _ in range(2):  # two encoders each
        model.encode(["a sign that says HELLO " * 40])
    lines = heard.getvalue().splitlines()
    limit = model.pipe.tokenizer_max_length  # type: ignore[attr-defined]
    wanted = f"the rest of them is not drawn: CLIP can only handle sequences up to {limit} tokens"
    assert len(lines) == len(set(lines)) and any(line.endswith(wanted) for line in lines)
    assert "sign" not in heard.getvalue()
    other = logging.LogRecord("diffusers", logging.WARNING, "", 0, "something else", (), None)
    once = SayOnce()
    assert once.filter(other) and once.filter(other) and other.getMessage() == "something else"


def test_diffusers_own_handler_says_it_so() -> None:
    own = [one for one in logging.getLogger("diffusers").handlers if type(one) is logging.StreamHandler]
    assert own and all(any(isinstance(one, SayOnce) for one in handler.filters) for handler in own)
