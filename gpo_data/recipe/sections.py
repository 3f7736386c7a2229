"""The sections of a recipe about drawing: `task:`, `sampler:` and `ray:`.

Their docstrings are what `gpo-data VERB --help` prints.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from gpo_data.recipe.checks import (
    Count,
    NotNegative,
    PathText,
    Pixels,
    Workers,
    check,
    expect,
)


@dataclass(frozen=True)
class Task:
    """What to draw. Without `prompts` the task's own grammar writes them.

    Args:
        kind: `text` (a word to draw), `count` (so many things of a class), `compose` (several of
            them, GenEval's lines) or `align` (what the prompt says).
        prompts: own prompts: a .txt, .csv, .tsv, .json, .jsonl, .ndjson or .parquet file, a folder of .txt files, or a
            `datasets` id or folder. Every column travels into the dataset. `gpo-data prompts RECIPE` shows what was
            understood.
        duplicates: a prompt that occurs twice in `prompts`: an `error`, `drop` all but the first, or `merge` the rows
            into one, whose columns are lists where they differ.
        num_prompts: how many groups; null takes every prompt of the file.
        split: `train`, `validation` (to choose settings with), `heldout` (to report) or `all`; a hash of the target
            decides.
        grammar: `signs` (the tiny world's pictures) or `scenes` (for models that draw photographs).
        prompt_column: column of `prompts` that holds the prompt.
        target_column: column with the word (text; a list of them, too) or the number (count); where there is none, the
            sentence says it.
        class_column: column with the class to count (count only).
        dataset_split: split of a `datasets` source to read.
    """

    kind: str = "text"
    prompts: PathText | None = None
    duplicates: Literal["error", "drop", "merge"] = "error"
    num_prompts: Count | None = 64
    split: Literal["train", "validation", "heldout", "all"] = "train"
    grammar: Literal["signs", "scenes"] = "signs"
    prompt_column: PathText = "prompt"
    target_column: PathText = "target"
    class_column: PathText = "class"
    dataset_split: PathText = "train"

    def __post_init__(self) -> None:
        check(self, "task.")
        from gpo_data.tasks import TASKS  # tasks are written in terms of this section

        expect(self.kind in TASKS, "task.kind", " or ".join(TASKS), self.kind)


@dataclass(frozen=True)
class Sampler:
    """How the model draws.

    Args:
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance; 1 is off.
        height: of the picture, pixels.
        width: of the picture, pixels.
        negative_prompt: what guidance steers away from.
        max_sequence_length: tokens of a T5 encoder; null is the pipeline's default.
        batch_size: pictures drawn at once; part of the fingerprint, because arithmetic depends on the batch.
        dtype: of the model while it draws. `auto` takes bfloat16 where the device multiplies it in hardware, else
            float32; of a dataset that exists, what it was drawn in.
        device: `auto` takes a CUDA GPU if there is one; `cpu`, `cuda`, `cuda:1` or `mps`.
        compile: `torch.compile` the denoiser.
        text_encoders: `device` keeps them beside the denoiser, `offload` has them there only while prompts are embedded
            (once a shard), `cpu` embeds on the CPU.
        text_encoder_8bit: the large text encoder (T5, Gemma) in 8 bits; needs bitsandbytes.
        vae_slicing: decode one picture at a time.
        vae_tiling: decode large pictures in overlapping tiles; seams are blended.
        store_unconditional: keep the embedding of `negative_prompt` in the first group of each shard, for
            `train.caption_dropout` and `train.guidance_scale`; not with FLUX, which has none.
        attention_backend: of diffusers (`_native_flash`, `_native_cudnn`, `flash`, ...), in drawing and in training;
            null leaves the choice to torch. `sage` draws and cannot train: it has no backward pass.
    """

    num_inference_steps: Count = 28
    guidance_scale: NotNegative = 4.5
    height: Pixels = 512
    width: Pixels = 512
    negative_prompt: str = ""
    max_sequence_length: Annotated[int, Field(ge=1, le=4096)] | None = None
    batch_size: Count = 16
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: PathText = "auto"
    compile: bool = False
    text_encoders: Literal["device", "offload", "cpu"] = "device"
    text_encoder_8bit: bool = False
    vae_slicing: bool = False
    vae_tiling: bool = False
    store_unconditional: bool = False
    attention_backend: PathText | None = None

    def __post_init__(self) -> None:
        check(self, "sampler.")
        expect(
            not self.text_encoder_8bit or self.text_encoders == "device",
            "sampler.text_encoders",
            "device beside text_encoder_8bit (what is in 8 bits does not move)",
            self.text_encoders,
        )

    @property
    def unconditional(self) -> list[str]:
        """The keys that ask for an unconditional embedding, as `Train.unconditional`."""
        return ["sampler.store_unconditional"] if self.store_unconditional else []


@dataclass(frozen=True)
class Ray:
    """Drawing and measuring by many processes, or the rows of a sweep, here or on a cluster: docs/scaling.md.

    Args:
        workers: processes that draw or measure, of which each holds the model; `--workers N` on the command line. null:
            this process alone, or with an `address` one for each GPU of the cluster, of each node where it has none. Of
            a sweep rows at once; null: as many as the cluster has room for.
        address: of a cluster; `--ray ADDRESS` on the command line. `auto` is the one that this machine belongs to,
            `ray://HOST:10001` one elsewhere; null starts a Ray of this command's own, which ends with it.
        num_gpus: of a worker; null is 1 where there are GPUs and `sampler.device` may take them; of a sweep's row as
            many as `train.trainer.devices` says.
        num_cpus: cores, and threads, of a worker; null shares out this machine's, and is 1 on a cluster.
        function_actors: actors of their own for each evaluator that is a function (`module:function`), such as a judge.
        function_num_gpus: GPUs of such an actor.
    """

    workers: Workers | None = None
    address: PathText | None = None
    num_gpus: NotNegative | None = None
    num_cpus: Count | None = None
    function_actors: Workers = 0
    function_num_gpus: NotNegative = 0.0

    def __post_init__(self) -> None:
        check(self, "ray.")
        forms = "auto, HOST:PORT or ray://HOST:PORT"
        known = self.address is None or re.fullmatch(r"auto|(ray://)?[^\s/:]+:\d{1,5}", self.address) is not None
        expect(known, "ray.address", forms, self.address)

    @property
    def wanted(self) -> bool:
        """Whether anything is done by other processes."""
        return bool(self.workers) or (self.workers is None and self.address is not None)

    @property
    def elsewhere(self) -> bool:
        """Whether that is done by a cluster, whose devices need not be this machine's."""
        return self.wanted and self.address is not None
