"""A dataset's card: README.md at the root of a hub repository, which its viewer and `datasets` read as well.

The head names two tables, a row a member: the first, which is shown and loaded where none is named, has the pictures,
the second is the sidecars. The tars, a row a group, are opened by their names.
"""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData

from gpo_data.lake import catalog
from gpo_data.lake.manifest import Manifest
from gpo_data.lake.remote import AnyPath, files_in
from gpo_data.lake.shard import sidecars
from gpo_data.lake.sidecar import parquet_of
from gpo_data.models.licence import licence_in_words
from gpo_data.sharing.pictures import FOLDER

PICTURE = "groups.png"
MEANING = {
    "group_key": "the group, a sample's key in the tar",
    "prompt_id": "hash of the prompt",
    "prompt": "the text",
    "member": "0 to G - 1",
    "seed": "of the picture's noise",
    "reward": "as drawn; null where the member failed",
    "status": "`ok`, or why there is nothing to learn from it",
    "status_reason": "in words",
    "tar": "the file that holds the group",
    "offset": "where the group begins in it",
    "size": "bytes of the group",
    "crc32": "of these bytes",
    "imported_from": "the picture's file or row, as it was imported",
    "label": "of an imported picture, as its source has it",
}
BARS = 10


def card(folder: AnyPath, manifest: Manifest, license: str, repo: str, pictures: bool = True) -> str:
    """Markdown. Raises UsageError where the sidecars cannot be read."""
    name = str(manifest.name)
    tags = ["group-preference-optimization", "webdataset", str(manifest.fields.get("task.kind", ""))]
    tables = {"pictures": f"{FOLDER}/*.parquet"} if pictures else {}
    tables["members"] = "dataset=*/shard-*.parquet"
    head = DatasetCardData(
        license=license,
        task_categories=["text-to-image"],
        tags=[tag for tag in tags if tag],
        pretty_name=name,
        configs=[
            {"config_name": table, "data_files": files} | ({} if i else {"default": True})
            for i, (table, files) in enumerate(tables.items())
        ],
    )
    return f"---\n{head.to_yaml()}\n---\n\n{_body(folder, name, manifest, repo, pictures)}"


def _body(folder: AnyPath, name: str, manifest: Manifest, repo: str, pictures: bool) -> str:
    facts, bars = _facts(str(folder.parent), name)
    came, origin = (_imported if "imported" in manifest.fields else _drawn)(manifest)
    columns = pq.read_schema(parquet_of(sidecars(folder)[0]))
    rows = "\n".join(f"| `{c.name}` | {c.type} | {MEANING.get(c.name, '')} |" for c in columns)
    first = f'members = load_dataset("{repo}", split="train")  # a row a member, and its picture\n' if pictures else ""
    tags = ", ".join(f"`{path.name.removesuffix('.json')}`" for path in files_in(folder, "tags/*.json")) or "none"
    return f"""# {name}

{facts["groups"]} prompts, {came},
and measured by {", ".join(manifest.measured.get("evaluators", []))}: {facts["members"]} pictures, {facts["failed"]} of
which failed. Made for training by group preferences ([GPO](https://arxiv.org/abs/2505.11070)).

![groups]({PICTURE})

{origin}
- fingerprint `{manifest.fingerprint}`; {manifest.created}
- reward `{manifest.measured.get("reward")}`
- tags: {tags} (`gpo-data verify RECIPE --tag NAME`)

## Rewards

Mean {facts["mean"]}, standard deviation inside groups {facts["std"]}; {facts["dead"]} of {facts["groups"]} groups have
equal rewards and teach nothing.

```
{bars}
```

## Reading it

```python
from datasets import load_dataset
{first}table = load_dataset("{repo}", "members", split="train")   # a row a member, without pictures
tars = "hf://datasets/{repo}/dataset=*/shard-*.tar"
groups = load_dataset("webdataset", data_files=tars, split="train")   # a row a prompt: pictures, latents, embeddings
```

`lake: hf://datasets/{repo}` of a recipe reads it in place; `gpo-data pull RECIPE {repo}` copies it.

| column | type | |
|---|---|---|
{rows}
"""


def _drawn(manifest: Manifest) -> tuple[str, str]:
    """What the prompts are, in half a sentence, and where the pictures are from, as a section's beginning."""
    fields = manifest.fields
    settings = {k.removeprefix("sampler."): v for k, v in fields.items() if k.startswith("sampler.") and v is not None}
    return (
        f"each drawn {fields.get('group_size')} times from different noise by `{fields.get('model')}`",
        f"""## How it was drawn

- {_model(manifest)}. The pictures are this model's:
  its licence{licence_in_words(str(fields.get("model")))} holds for them too.
- {", ".join(f"{name} {value}" for name, value in settings.items())}
- seed {fields.get("seed")}""",
    )


def _imported(manifest: Manifest) -> tuple[str, str]:
    """As `_drawn`, of pictures that the model did not draw."""
    fields = manifest.fields
    width, height = (fields.get(f"sampler.{side}") for side in ("width", "height"))
    return (
        f"each with pictures that were imported, not drawn, and encoded by `{fields.get('model')}`",
        f"""## Where the pictures are from

- imported, each from what `imported_from` says, resized and cut to {width} x {height}. They keep the licences under
  which they were published, whatever the head of this card says of the rest.
- latents by the autoencoder of {_model(manifest)}. There is no noise that a picture was drawn from; `seed` is a name.
- digest of captions, names and labels `{fields["imported"]}`""",
    )


def _model(manifest: Manifest) -> str:
    fields = manifest.fields
    revision = f", revision `{fields['revision']}`" if fields.get("revision") else ""
    return f"model `{fields.get('model')}`{revision}, weights digest\n  `{fields.get('weights_digest')}`"


def _facts(lake: str, name: str) -> tuple[dict[str, Any], str]:
    """(numbers of the dataset, the rewards as bars)."""
    con = catalog.connect(lake, name)
    row = con.execute(
        """SELECT count(*), sum(n + failed), sum(failed), avg(mean), avg(std), count(*) FILTER (dead)
           FROM groups WHERE dataset = ?""",
        [name],
    ).fetchall()[0]
    facts: dict[str, Any] = dict(zip(("groups", "members", "failed", "mean", "std", "dead"), row, strict=True))
    facts |= {k: "-" if facts[k] is None else f"{facts[k]:.3f}" for k in ("mean", "std")}
    rewards = con.execute(
        "SELECT reward FROM members WHERE dataset = ? AND status = 'ok' AND isfinite(reward)", [name]
    ).fetchnumpy()["reward"]
    if not len(rewards):
        return facts, "no rewards"
    low, high = float(rewards.min()), float(rewards.max())
    width = (high - low) / BARS or 1.0
    counts = [0] * BARS
    for reward in rewards:
        counts[min(int((float(reward) - low) / width), BARS - 1)] += 1
    bars = [f"{low + i * width:8.3f} {'#' * round(50 * count / max(counts))} {count}" for i, count in enumerate(counts)]
    return facts, "\n".join(bars)
