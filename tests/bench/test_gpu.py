"""The GPU benchmark runs, with a few narrow layers, on any machine; where it cannot, it says so in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel

from tests.bench import gpu
from tests.parts import sd35m


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "no CUDA device" in said.err and "--tiny" in said.err and not said.out


@pytest.mark.slow
def test_every_figure_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--tiny", "--rounds", "1", "--json", str(tmp_path / "new" / "it.json")]) == 0
    found = json.loads((tmp_path / "new" / "it.json").read_text())
    assert found["card"]["torch"] == torch.__version__ and found["card"]["matmul_tflops"] > 0
    part = found["sizes"]["64"]
    assert part["drawing"]["ratio"] > 0 and part["drawing"]["share_of_matmul"] > 0
    for tuning, own in (("lora", "adapters"), ("full", "frozen")):
        wanted = ["plain loop, second copy", f"ours, reference: {own}", "ours, reference: stored"]
        assert list(part["step"][tuning]) == wanted
        assert all(variant["samples_per_s"] > 0 for variant in part["step"][tuning].values())
    assert {"encode", "denoise", "decode", "measure", "write", "train"} <= part["iteration"]["seconds"].keys()
    out = capsys.readouterr().out
    assert torch.__version__ in out and "waiting" in out


def test_flops_are_those_of_the_layers() -> None:
    """Counted against multiplied out: every linear layer and both matrix products of every attention."""
    size, tokens, text = sd35m.TINY, 64, 20
    model = sd35m.new_transformer(size)
    width = size.heads * size.head_dim
    inputs = {
        "hidden_states": torch.randn(1, 16, 16, 16, dtype=torch.bfloat16),
        "encoder_hidden_states": torch.randn(1, text, size.joint, dtype=torch.bfloat16),
        "pooled_projections": torch.randn(1, size.pooled, dtype=torch.bfloat16),
        "timestep": torch.ones(1),
    }
    seen = []
    for part in model.modules():
        if isinstance(part, torch.nn.Linear | torch.nn.Conv2d):
            part.register_forward_hook(
                lambda module, args, output: seen.append(
                    2 * math.prod(module.weight.shape) * output.numel() // module.weight.shape[0]
                )
            )
    with torch.inference_mode():
        counted = gpu.flops(lambda: model(**inputs))
    attention = size.layers * 4 * (tokens + text) ** 2 * width + len(size.dual) * 4 * tokens**2 * width
    assert counted == sum(seen) + attention


def test_the_full_size_is_sd35_medium() -> None:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in sd35m.new_transformer(sd35m.FULL).parameters())
    assert round(parameters / 1e9, 2) == 2.24  # and 0.23 B of positions: the 2.47 B of its file
    assert SD3Transformer2DModel is type(sd35m.new_transformer(sd35m.TINY))
