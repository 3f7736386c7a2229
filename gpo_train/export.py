"""The trained weights as files that diffusers opens with no code of ours.

    LoRA    <folder>/pytorch_lora_weights.safetensors      pipe.load_lora_weights(folder)
    full    <folder>/<denoiser>/                           <DenoiserClass>.from_pretrained(folder, subfolder=...)

`export` makes of a full policy a whole diffusers folder for `DiffusionPipeline.from_pretrained`, with the base model's
other parts copied; of a LoRA the one file, or, merged into the base model's weights, such a folder too.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from peft.utils import get_peft_model_state_dict

from gpo_data import models
from gpo_data.lake.durable import whole_folder
from gpo_data.models.folder import variant_of
from gpo_data.out_folder import expect_empty, make_folder
from gpo_data.recipe import Sampler
from gpo_train.policy import Policy
from gpo_train.run import Run, RunManifest
from gpo_train.sharded import class_name, whole_state

WEIGHTS = models.WHOLE + "{suffix}.safetensors"  # large ones become several files


def save_policy(policy: Policy, folder: Path, write: bool = True) -> None:
    """Write the policy's weights in the precision that trains; the folder appears whole or not at all.

    What draws rounds them (models/rounding.py): in two bytes the steps of a small rate would be lost here.

    All ranks call it, because of sharded weights each has a part; the one with `write` writes.
    """
    state = whole_state(policy.denoiser)
    if not write:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    model: Any = policy.model
    with whole_folder(folder) as out:
        if policy.settings.tuning == "lora":
            layers = get_peft_model_state_dict(policy.denoiser, state)
            # Into the matrix: whoever reads the file takes alpha to be the rank.
            scale = (policy.settings.lora_alpha or policy.settings.lora_rank) / policy.settings.lora_rank
            layers = {name: v * scale if "lora_B" in name else v for name, v in layers.items()}
            save: Any = model.pipe.save_lora_weights
            save(out, **{f"{model.denoiser_name}_lora_layers": {k: v.detach().cpu() for k, v in layers.items()}})
        else:
            config = out / model.denoiser_name / "config.json"
            policy.denoiser.save_config(config.parent)
            named = json.loads(config.read_text()) | {"_class_name": class_name(policy.denoiser)}
            config.write_text(json.dumps(named, indent=2) + "\n")
            save_torch_state_dict(
                {name: v.detach().cpu() for name, v in state.items()},
                out / model.denoiser_name,
                filename_pattern=WEIGHTS,
            )


def export(run: Run, out: Path, merge: bool = False) -> Path:
    """The run's policy as a plain diffusers folder or LoRA file in `out`, whole or not at all; in a folder that is
    there already model_index.json comes last. Raises UsageError.

    Args:
        merge: a LoRA into the base model's weights, in float32, as full policies have them: a model to go on from.
    """
    manifest = run.manifest()
    run.expect_policy()
    out = out.resolve()
    expect_empty(out)
    there = out.exists()  # it may be a mount, or where somebody is: its own files come and go, and it stays
    make_folder(out)  # what cannot be made fails now
    if not there:
        out.rmdir()
    with whole_folder(out / "made" if there else out) as made:
        if models.lora_of(run.policy) and not merge:
            shutil.copytree(run.policy, made)
        else:
            _fill(made, run, manifest)
    if there:
        for path in sorted((out / "made").iterdir(), key=lambda path: path.name == "model_index.json"):
            path.rename(out / path.name)
        (out / "made").rmdir()
    return out


def _fill(out: Path, run: Run, manifest: RunManifest) -> None:
    base = models.resolve(manifest.recipe["model"], manifest.recipe["revision"])
    if models.lora_of(run.policy):
        model: Any = models.load(base, Sampler(dtype="float32", device="cpu"), for_training=True)
        denoiser = model.denoiser_name
        _save_merged(model, run.policy, out / denoiser, base / denoiser)
    else:
        denoiser = next(path.name for path in run.policy.iterdir() if path.is_dir())
        shutil.copytree(run.policy / denoiser, out / denoiser)
    wanted = {
        name
        for name, value in json.loads((base / "model_index.json").read_text()).items()
        if isinstance(value, list) and value[0] and name != denoiser
    }
    shutil.copy2(base / "model_index.json", out)
    variant = variant_of(base, denoiser)
    for name in sorted(wanted):
        if (base / name).is_dir():
            shutil.copytree(base / name, out / name)
            if variant:
                _under_plain_names(out / name, variant)


def _under_plain_names(part: Path, variant: str) -> None:
    """`model.fp16.safetensors` as `model.safetensors`, as the denoiser beside it is called; where there are both the
    plain one stays."""
    for file in sorted(part.glob(f"*.{variant}[.-]*")):
        plain = file.with_name(file.name.replace(f".{variant}", "", 1))
        if plain.exists():
            file.unlink()
            continue
        file.rename(plain)
        if plain.suffix == ".json":  # the index of several
            plain.write_text(plain.read_text().replace(f".{variant}", ""))


def _save_merged(model: Any, policy: Path, out: Path, base: Path) -> None:
    models.load_policy_weights(model, policy)
    model.pipe.fuse_lora(components=[model.denoiser_name])
    model.pipe.unload_lora_weights()
    out.mkdir(parents=True)
    shutil.copy2(base / "config.json", out)
    save_torch_state_dict(model.denoiser.state_dict(), out, filename_pattern=WEIGHTS)
