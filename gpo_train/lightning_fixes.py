"""What Lightning does otherwise than this toolkit needs: every workaround of it, each with its upstream issue.

begin_at     A checkpoint of `on_train_batch_end` counts its batch as not done, and what a run resumed at an epoch's end
             trains next depends on how long that epoch was (#18060, #19815, both open). So a checkpoint never holds
             a place inside Lightning's epoch: it says that so many epochs are done, and the data module, which knows
             the place, gives what is left of the next one (data.py).
             Nor does Lightning look whether an epoch is left before it asks for its loader (fit_loop.run).
WholeFiles   A checkpoint is staged in the temporary folder and moved from there, in pieces where that is another file
             system (#20270, #21253): a kill or a full disk leaves half of one.
Average      The average of the weights takes the policy's place in `on_train_end`, which is not called where a run is
             resumed after its last step; and it averages buffers, which checkpoints leave out (#20545 has the design).
quiet        Advice against what is done here on purpose.

Checked with lightning 2.6; pyproject.toml has the upper bound.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import warnings
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import EMAWeightAveraging

from gpo_data.errors import RunError
from gpo_data.lake.durable import write_stream

DIGEST = 8  # bytes of blake2b in a checkpoint's name


def begin_at(checkpoint: dict[str, Any], epoch: int) -> None:
    """Make a checkpoint say that `epoch` epochs are done and the next one has not begun."""
    loops = checkpoint["loops"]["fit_loop"]
    stages = ("ready", "started", "processed", "completed")
    batches = loops["epoch_loop.batch_progress"]["total"]["processed"]
    loops["epoch_progress"] = {"total": dict.fromkeys(stages, epoch), "current": dict.fromkeys(stages, epoch)}
    loops["epoch_loop.batch_progress"] = {
        "total": dict.fromkeys(stages, batches),
        "current": dict.fromkeys(stages, 0),
        "is_last_batch": False,
    }
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"]  # the loggers' step
    checkpoint["epoch"] = epoch


class WholeFiles(TorchCheckpointIO):
    """Writes `<path>.<digest>.ckpt`, whole or not at all, beside its place; `digest` is of its bytes."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)

        def fill(stream: BinaryIO) -> Path:
            hashed = _Hashed(stream)
            try:
                torch.save(checkpoint, cast(Any, hashed))
            except RuntimeError as error:  # of torch's writer, where a write fails
                raise OSError(errno.EIO, str(error)) from error
            return target.with_name(f"{target.name}.{hashed.digest.hexdigest()}.ckpt")

        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{target.parent}: cannot make the folder: {error.strerror}") from error
        write_stream(target, fill)


class _Hashed:
    """A stream of bytes that are hashed on their way to a file."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.digest = stream, hashlib.blake2b(digest_size=DIGEST)

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.stream.write(data)

    def flush(self) -> None:
        self.stream.flush()


class Average(EMAWeightAveraging):
    """`policy` is the average; the module keeps what it trains."""

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay, use_buffers=False)

    @property
    def policy(self) -> Any:
        model: Any = self._average_model
        return model.module.policy

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        pass


def quiet() -> None:
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*in eval mode at the start of training.*",
        ".*exists and is not empty.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*is smaller than the logging interval.*",
        ".*overridden `transfer_batch_to_device`.*",
        ".*across ranks is zero.*",  # an epoch that a rule stopped before its first step
        ".*FSDP2-wrapped module .* returned a view tensor.*",  # what the denoiser gives is never changed in place
    ):
        warnings.filterwarnings("ignore", text)
