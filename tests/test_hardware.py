"""Precision and threads by what the hardware can do, on this machine and on one without bfloat16 instructions."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from gpo_data import cli, hardware, recipe
from gpo_data.errors import UsageError
from gpo_data.generation.generate import draw
from gpo_data.lake.manifest import drawn_in, settle
from gpo_data.models import load, resolve
from gpo_train import cli as train_cli
from gpo_train.fit import make_trainer
from gpo_train.launcher import devices_of
from gpo_train.run import Run
from gpo_train.run import settle as settle_run
from gpo_train.settings import train_settings

HIDDEN = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A processor that hides nothing from the libraries."""
    for name in (*HIDDEN, "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def hide(patch: pytest.MonkeyPatch) -> None:
    for name, value in HIDDEN.items():
        patch.setenv(name, value)


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="the processor's own word is in /proc/cpuinfo")
def test_auto_is_what_the_processor_multiplies(plain: pytest.MonkeyPatch) -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    there = any(flag in flags for flag in ("amx_bf16", "avx512_bf16", "bf16"))
    assert hardware.dtype_for("auto", "cpu") == ("bfloat16" if there else "float32")
    assert bool(hardware.bfloat16_units("cpu")) == there
    for name, value in HIDDEN.items():
        with pytest.MonkeyPatch.context() as one:
            one.setenv(name, value)
            assert hardware.dtype_for("auto", "cpu") == "float32"
            assert "no bfloat16" in hardware.describe("cpu", "float32")
    plain.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert hardware.dtype_for("auto", "cpu") == ("bfloat16" if there else "float32")
    assert hardware.dtype_for("float16", "cpu") == "float16"  # asked for is taken


def test_where_it_will_be_slow_it_is_said(plain: pytest.MonkeyPatch) -> None:
    hide(plain)
    assert hardware.warning_of("sampler.dtype", "float32", "cpu") is None
    plain.setattr(hardware, "SLOW", 0.0)  # however quick this processor is
    said = hardware.warning_of("train.precision", "bfloat16", "cpu")
    assert said is not None and said.startswith("warning: train.precision: bfloat16") and "times as long" in said


def test_a_dataset_keeps_the_precision_it_was_begun_in(
    recipe_file: Path, plain: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--sampler.dtype", "auto", "--task.num_prompts", "2"]
    made = recipe.load(recipe_file, small)
    hide(plain)
    folder = draw(made, Console(quiet=True))
    card = json.loads((folder / "dataset.json").read_text())
    assert card["fields"]["sampler.dtype"] == card["recipe"]["sampler"]["dtype"] == "float32"
    for name in HIDDEN:
        plain.delenv(name)
    assert drawn_in(made.lake, "small") == "float32" and settle(made).sampler.dtype == "float32"
    draw(made, Console(highlight=False))
    assert "nothing to draw" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"sampler.dtype: 'float32' there, 'bfloat16' in the recipe"):
        draw(recipe.load(recipe_file, [*small, "--sampler.dtype", "bfloat16"]), Console(quiet=True))
    # What trains on it draws in the same precision; its own arithmetic is by the hardware.
    here = hardware.dtype_for("auto", "cpu")
    begun = settle_run(made, Path("runs/none"), ["small"])
    assert (begun.sampler.dtype, begun.train.precision) == ("float32", here)
    assert settle_run(made, Path("runs/none"), []).sampler.dtype == here


def test_a_run_keeps_the_precision_it_was_begun_in(
    tmp_path: Path, recipe_file: Path, plain: pytest.MonkeyPatch
) -> None:
    made = recipe.load(recipe_file, ["--sampler.dtype", "auto", "--train.precision", "auto"])
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    begun = dataclasses.asdict(made) | {"sampler": {"dtype": "bfloat16"}, "train": {"precision": "bfloat16"}}
    facts = dict.fromkeys(("mode", "model_digest", "created", "state"), "")
    (run.folder / "run.json").write_text(json.dumps({"recipe": begun, **facts}))
    for environment in ({}, HIDDEN):
        with pytest.MonkeyPatch.context() as one:
            for name, value in environment.items():
                one.setenv(name, value)
            again = settle_run(made, run.folder, [])
            assert (again.sampler.dtype, again.train.precision) == ("bfloat16", "bfloat16")
    hide(plain)
    assert train_settings(made).precision == "float32"


def test_the_fingerprint_holds_a_precision(recipe_file: Path, plain: pytest.MonkeyPatch) -> None:
    auto = recipe.load(recipe_file, ["--sampler.dtype", "auto"])
    hide(plain)
    assert auto.fingerprint() == recipe.load(recipe_file, ["--sampler.dtype", "float32"]).fingerprint()
    assert str(load(resolve(auto.model), auto.sampler).denoiser.dtype) == "torch.float32"  # type: ignore[union-attr]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_run_trains_where_it_draws(recipe_file: Path, tmp_path: Path, plain: pytest.MonkeyPatch) -> None:
    """Lightning's own choice would be Apple's GPU, or the first card."""
    plain.setattr(torch.backends.mps, "is_available", lambda: True)
    made = recipe.load(recipe_file)
    run = Run(tmp_path)
    trainer = make_trainer(made, train_settings(made), run, [], Console(quiet=True))
    assert trainer.strategy.root_device.type == hardware.device_of(made.sampler.device) == "cpu"
    asked: dict[str, object] = {}
    plain.setattr("lightning.Trainer", lambda **options: asked.update(options) or trainer)
    plain.setattr(torch.cuda, "is_available", lambda: True)
    plain.setattr(torch.cuda, "device_count", lambda: 2)
    plain.setattr(torch.cuda, "current_device", lambda: 1)
    settings = train_settings(made)
    for setting, devices in (("cuda:1", [1]), ("auto", 1)):
        there = dataclasses.replace(made, sampler=dataclasses.replace(made.sampler, device=setting))
        make_trainer(there, settings, run, [], Console(quiet=True))
        assert (asked["accelerator"], asked["devices"]) == ("cuda", devices)
        assert hardware.torch_device(setting) == torch.device("cuda:1")


def test_threads_are_the_cores_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from gpo_data import hardware; "
    code += "print(hardware.threads(), hardware.take_threads(4), os.environ['OMP_NUM_THREADS'])"
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).split() == ["1", "1", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert hardware.threads() == hardware.threads(2) == 3  # the user's own word
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(hardware, "cores", lambda: 8)
    assert [hardware.threads(n) for n in (1, 2, 3, 16)] == [8, 4, 2, 1]
    assert [devices_of(t) for t in ({}, {"devices": 2}, {"devices": [0, 1, 2]})] == [1, 2, 3]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no mallopt")
def test_freed_memory_is_used_again_unless_the_user_says_what_becomes_of_it() -> None:
    code = """
import resource
from gpo_data import hardware
hardware.keep_freed_memory()
def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(16 << 20) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = new_pages()
print(first, max(new_pages() for _ in range(3)))"""
    plain = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES" and not k.startswith("MALLOC_")}
    for own, again in (({}, False), ({"MALLOC_ARENA_MAX": "8"}, True), ({"GLIBC_TUNABLES": ""}, True)):
        printed = subprocess.check_output([sys.executable, "-c", code], env=plain | own, text=True)
        first, later = map(int, printed.split())
        assert (later > first // 2) is again, own


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings libgomp on Linux")
def test_the_threads_of_a_command_wait_briefly_unless_the_user_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from gpo_data import cli; assert cli.main(['prompts', 'text-tiny']) == 0; import torch"
    of_openmp = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    plain = {k: v for k, v in os.environ.items() if k not in of_openmp} | {"OMP_DISPLAY_ENV": "verbose"}
    told = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True).stderr
    assert "GOMP_SPINCOUNT = '10000'" in told  # as libgomp read it
    for name, own in (("GOMP_SPINCOUNT", "500"), ("OMP_WAIT_POLICY", "ACTIVE")):
        with monkeypatch.context() as patch:
            for one in of_openmp:
                patch.delenv(one, raising=False)
            patch.setenv(name, own)
            hardware.wait_briefly()
            assert {k: os.environ[k] for k in of_openmp if k in os.environ} == {name: own}


def test_garbage_is_looked_for_rarely_until_there_is_a_model() -> None:
    before = gc.get_threshold()
    hardware.collect_rarely()
    assert gc.get_threshold()[0] == 10_000 > before[0]
    for _ in range(2):
        hardware.take_threads()
        assert gc.get_threshold() == before


def test_threads_are_as_before_after_a_library_took_others() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="it failed"), hardware.same_threads():
        torch.set_num_threads(before + 1)
        raise RuntimeError("it failed")
    assert torch.get_num_threads() == before


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize(
    ("verb", "key", "values"),
    [
        ("shards", "--sampler.device", ["mps", "cuda", "cuda:1", "cpu:1", "tpu"]),
        ("shards", "--sampler.dtype", ["int4"]),
        ("fit", "--train.precision", ["fp32"]),
    ],
)
def test_what_is_not_there_is_one_line(
    recipe_file: Path, capsys: pytest.CaptureFixture[str], verb: str, key: str, values: list[str]
) -> None:
    main = cli.main if verb == "shards" else train_cli.main
    for value in values:
        assert main([verb, str(recipe_file), key, value]) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and key.split(".")[1] in error and value in error
