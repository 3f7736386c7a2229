"""The verb `push`: a run's policy to a hub, with a model card that holds its eval.json.

    <repo>/README.md                              the card
    <repo>/pytorch_lora_weights.safetensors, or <denoiser>/...      as policy/ has them
    <repo>/eval.json, eval.png                    where `gpo-train eval` has written them

What always holds: a card's numbers are those of eval.json, with what they are of; without one it says so. Weights and
evaluation that an earlier push left are gone.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, ModelCardData

from gpo_data import models
from gpo_data.lake.document import read_document
from gpo_data.models.licence import licence_in_words
from gpo_data.sharing.hub import explained
from gpo_train.evaluation.report import headline, markdown_row, rows_of
from gpo_train.evaluation.result import Evaluation
from gpo_train.run import Run, RunManifest

EVALUATED = ("eval.json", "eval.png")
WEIGHTS = (models.LORA_FILE, "transformer/*", "unet/*")


def push(run: Run, repo: str, license: str, private: bool = False, tag: str | None = None) -> str:
    """Its URL. Raises UsageError, RunError."""
    run.expect_policy()
    hub = HfApi()
    with explained(repo), tempfile.TemporaryDirectory() as temporary:
        made = hub.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        out = Path(temporary)
        (out / "README.md").write_text(card(run, license), encoding="utf-8")
        for name in EVALUATED if isinstance(_evaluation(run), Evaluation) else ():
            if (run.folder / name).is_file():
                shutil.copy2(run.folder / name, out)
        for folder, earlier in ((run.policy, WEIGHTS), (out, EVALUATED)):
            hub.upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                delete_patterns=[*earlier],  # of another policy, pushed before
                commit_message=f"run {run.name}",
            )
        if tag is not None:
            hub.create_tag(made.repo_id, tag=tag)
    return str(made)


def card(run: Run, license: str) -> str:
    """Markdown."""
    manifest = run.manifest()
    recipe = manifest.recipe
    lora = models.lora_of(run.policy) is not None
    base = str(recipe.get("model"))
    head = ModelCardData(
        license=license,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=base if "/" in base and not Path(base).exists() else None,
        tags=["group-preference-optimization", *(["lora"] if lora else [])],
    )
    load = (
        'pipe.load_lora_weights("THIS REPOSITORY")' if lora else "the denoiser's from_pretrained, subfolder= its folder"
    )
    train = recipe.get("train", {})
    shown = ("objective", "loss", "tuning", "learning_rate", "epochs", "groups_per_step", "beta")
    settings = ", ".join(f"{key} {train[key]}" for key in shown if key in train)
    return f"""---
{head.to_yaml()}
---

# {run.name}

`{base}`, {_made(manifest)} by group preferences ([GPO](https://arxiv.org/abs/2505.11070)) on the reward
`{recipe.get("reward")}`: {"LoRA weights" if lora else "a whole denoiser"}. Open it with {load}.
It is made of the base model: its licence{licence_in_words(base)} holds for it too.

- weights digest of the base `{manifest.weights_digest}`
- {settings}
- {manifest.steps or "?"} steps; snapshot `{(manifest.snapshot or {}).get("digest", "drawn online")}`

## Evaluation

{_in_words(run)}
"""


def _made(manifest: RunManifest) -> str:
    """How, in words."""
    if manifest.averaged is None:
        return f"trained {manifest.mode}"
    of = manifest.averaged
    mean = f"the mean of {', '.join(of.runs)}" + (f" in their last {of.last} iterations" if of.last else "")
    return f"{mean}{f', {of.scale:g} times as far from it' if of.scale != 1 else ''}, trained"


def _evaluation(run: Run) -> Evaluation | str:
    """What `eval` found of the policy as it is, or why there is nothing."""
    try:
        found = read_document(Evaluation, run.folder / "eval.json", "`gpo-train eval` makes it again")
    except FileNotFoundError:
        return "Not evaluated: `gpo-train eval` compares it with its base."
    if run.evaluated_before(found.train_seconds):
        return "Not evaluated since it was trained further: `gpo-train eval` compares it with its base."
    return found


def _in_words(run: Run) -> str:
    found = _evaluation(run)
    if isinstance(found, str):
        return found
    rows = "".join(map(markdown_row, rows_of(found)))
    picture = "\n![base and policy from the same noise](eval.png)\n" if (run.folder / "eval.png").is_file() else ""
    return f"{headline(found)}\n\n| | base | policy | difference |\n|---|---|---|---|\n{rows}{picture}"
