"""What the trainings of the tiny world share: a resumable run on a budget of time.

A run's checkpoint is one file, written under a temporary name and renamed: weights,
optimizer, random generators, step, pictures seen and seconds trained. The learning rate is

    lr(s) = warm-up over 100 steps; constant; linear to 0 over the last `decay` share of seconds

A kill costs at most the three minutes since the last checkpoint.

A training in stages is one run a stage, `NAME-1`, `NAME-2`, ...: what is trained goes on from stage to stage, the
optimizer and its schedule begin again. A stage has a checkpoint only once the one before it is finished.

What always holds: what goes on was trained under the settings that the recipe says, its own and those of earlier
stages; only the minutes of what is being trained may change.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gpo_data import hardware
from gpo_data.errors import UsageError

SAVE_SECONDS = 180
STEP_SECONDS = 10  # a step counts as no more: what takes longer is compiling, a minute that a short stage would miss


def device() -> torch.device:
    """CUDA if there is any; the same code runs on both."""
    return torch.device(hardware.device_of("auto"))


def autocast() -> AbstractContextManager:
    """bfloat16 arithmetic over float32 master weights where the hardware has it.

    On two cores with AVX512-BF16 or AMX that was 159 against 115 pictures/s; with neither, 49 against 71.
    """
    gains = hardware.dtype_for("auto", device().type) == "bfloat16"
    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=gains)


def compiled(module: torch.nn.Module, folder: Path) -> Callable:
    """`torch.compile` of the module (a fifth faster on two cores), or the module where nothing compiles."""
    # A kill while it compiles can leave half a library in torch's cache, of which every later run would die: this
    # process gets a cache of its own, empty.
    cache = folder / "compiled"
    shutil.rmtree(cache, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache.resolve())
    try:
        if torch.compile(lambda x: x.sin() + 1)(torch.zeros(1, device=device())).item() == 1:
            return torch.compile(module, dynamic=False)
    except (RuntimeError, OSError):  # no C++ compiler, or no Triton
        pass
    return module


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in [-1, 1]; channels_last by construction."""
    return torch.from_numpy(pictures).to(device()).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(images: torch.Tensor) -> np.ndarray:
    """float [B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3]."""
    images = ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return images.permute(0, 2, 3, 1).cpu().numpy()


def picture_grid(images: torch.Tensor, path: Path, columns: int = 16) -> None:
    """Write [B, 3, H, W] in [-1, 1] as a PNG for people to look at, twice as large."""
    pictures = to_pictures(images.detach())
    rows = [
        np.concatenate(list(pictures[i : i + columns]), axis=1) for i in range(0, len(pictures) - columns + 1, columns)
    ]
    grid = Image.fromarray(np.concatenate(rows, axis=0))
    grid.resize((grid.width * 2, grid.height * 2), Image.Resampling.NEAREST).save(path)


def digest(module: torch.nn.Module) -> str:
    """16 hex digits over a module's weights: what was trained on its outputs goes on with no other's."""
    state = hashlib.blake2b(digest_size=8)
    for name, weight in module.state_dict().items():
        state.update(name.encode() + weight.float().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def checkpoint(folder: Path, name: str) -> Path:
    return folder / f"{name}.checkpoint.pt"


def expect_same(name: str, path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UsageError unless `path` was begun `then` under the settings of the recipe `now`, the minutes aside."""
    for key, value in now.items():
        if key != "minutes" and (found := then.get(key, f"an unknown {key}")) != value:
            raise UsageError(
                f"{name}: {key}: {path} was trained with {found}, the recipe says {value}; give another --out, or put "
                f"{key} back"
            )


def stages_left(folder: Path, name: str, settings: Any) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(`NAME-2`, its settings, all others that it depends on) and so on, from the last stage that has a checkpoint, or
    from the first.

    The caller's Run of the first one given loads that checkpoint, which holds all that earlier stages trained.

    Args:
        settings: a dataclass with `stages`.
    """
    stages, others = settings.stages, asdict(settings)
    del others["stages"]
    begun = max((i for i in range(1, len(stages) + 1) if checkpoint(folder, f"{name}-{i}").exists()), default=1)
    for number, stage in enumerate(stages, start=1):
        if number >= begun:
            print(f"{name}-{number}: stage {number} of {len(stages)}, {stage}", flush=True)
            yield f"{name}-{number}", stage, dict(others)
        others |= {f"stage {number}, {key}": value for key, value in asdict(stage).items()}


class Run:
    """Progress, schedule and checkpoint of one training, or of one of its stages.

    parts: named objects with state_dict/load_state_dict, saved and restored together.
    settings: a dataclass with `minutes` and `decay`; `name` names the checkpoint in `folder`. A checkpoint goes on
    only under the settings and `others` that it was begun with, the minutes aside; UsageError otherwise (expect_same).
    """

    def __init__(
        self, folder: Path, name: str, settings: Any, parts: dict, rng: np.random.Generator, **others: Any
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.name = checkpoint(folder, name), name
        self.budget, self.decay = settings.minutes * 60.0, settings.decay
        self.settings = asdict(settings) | others
        self.parts, self.rng = parts, rng
        self.step = self.pictures = 0
        self.seconds = 0.0
        if self.path.exists():
            self._load()
        self.base_lrs: dict[int, list[float]] = {}
        self.clock = self.last_print = self.last_save = time.monotonic()
        self.pictures_then, self.losses = self.pictures, []

    def done(self) -> bool:
        """True when the budget is spent; the checkpoint is then on disk."""
        if self.seconds < self.budget:
            return False
        self.save()
        return True

    def lr_factor(self) -> float:
        left = max(0.0, 1 - self.seconds / self.budget)
        return min(1.0, (self.step + 1) / 100, left / self.decay)

    def set_lr(self, *optimizers: torch.optim.Optimizer) -> None:
        """Set every group's lr to its base (`initial_lr`, kept in its state) times the factor."""
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
                group["lr"] = group["initial_lr"] * self.lr_factor()

    def step_done(self, loss: float, pictures: int) -> bool:
        """Count a step; True every SAVE_SECONDS, when a sample grid is due."""
        now = time.monotonic()
        self.seconds += min(now - self.clock, STEP_SECONDS)
        self.clock = now
        self.step, self.pictures = self.step + 1, self.pictures + pictures
        self.losses.append(loss)
        if now - self.last_print > 10:
            rate = (self.pictures - self.pictures_then) / (now - self.last_print)
            left = max(0.0, self.budget - self.seconds) / 60
            print(
                f"{self.name}: step {self.step}, {self.pictures} pictures, {rate:.0f}/s, "
                f"loss {np.mean(self.losses):.4f}, {left:.1f} min left",
                flush=True,
            )
            self.last_print, self.pictures_then, self.losses = now, self.pictures, []
        if now - self.last_save > SAVE_SECONDS:
            self.save()
            self.last_save = self.clock = time.monotonic()
            return True
        return False

    def save(self) -> None:
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state["_run"] = {
            "step": self.step,
            "pictures": self.pictures,
            "seconds": self.seconds,
            "settings": self.settings,
            "torch_rng": torch.get_rng_state(),
            "numpy_rng": self.rng.bit_generator.state,
        }
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)

    def _load(self) -> None:
        state = torch.load(self.path, map_location=device(), weights_only=True)
        run = state["_run"]
        expect_same(self.name, self.path, run.get("settings", {}), self.settings)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.step, self.pictures, self.seconds = run["step"], run["pictures"], run["seconds"]
        torch.set_rng_state(run["torch_rng"].cpu())
        self.rng.bit_generator.state = run["numpy_rng"]
        print(f"{self.name}: continues at step {self.step}", flush=True)
