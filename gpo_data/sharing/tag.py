"""Named, immutable snapshots of a dataset, for a paper to cite: `dataset=<name>/tags/<tag>.json`.

    {"tag", "dataset", "fingerprint", "digest", "files", "created"}

`files` is {path in the dataset's folder: sha256} of every committed sidecar and measures file; of the latter it is that
of what its footer says of its tar and values, because it is written again when it is to count again. Each sidecar holds
its tar's sha256, so that the digest, blake2b over `files`, stands for every byte of data. A dataset that grows keeps
its tags: what a tag lists has to be there as it was, and nothing else.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from dataclasses import dataclass

from gpo_data.errors import RunError, UsageError, few
from gpo_data.lake.document import read_document, write_document
from gpo_data.lake.locks import held
from gpo_data.lake.manifest import read_manifest
from gpo_data.lake.remote import AnyPath, below, files_in, is_shard, stage_folder
from gpo_data.lake.shard import sidecars
from gpo_data.lake.sidecar import footer_of

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Tag:
    tag: str
    dataset: str
    fingerprint: str
    digest: str
    files: dict[str, str]
    created: str


def make_tag(folder: AnyPath, name: str) -> Tag:
    """Raises UsageError: no name of a tag, one that is taken, or a dataset without shards."""
    if not NAME.fullmatch(name):
        raise UsageError(f"tag: expected 1 to 100 of a-z, 0-9, '.', '-' and '_', found {name!r:.200}")
    fingerprint, files = read_manifest(folder).fingerprint, _hashes(folder)
    if not files:
        raise UsageError(f"{folder}: no committed shard to tag; `gpo-data shards RECIPE` draws some")
    path = folder / "tags" / f"{name}.json"
    with held(stage_folder(folder) / "tags.lock", wait=True):
        if path.is_file():
            raise UsageError(f"{path}: this tag is taken and does not change; take another name")
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        made = Tag(name, folder.name.removeprefix("dataset="), fingerprint, digest_of(files), files, created)
        path.parent.mkdir(exist_ok=True)
        write_document(made, path, once=True)
    return read_tag(folder, name)


def read_tag(folder: AnyPath, name: str) -> Tag:
    """Raises UsageError where there is none of that name, or it was changed."""
    path = folder / "tags" / f"{name}.json"
    try:
        made = read_document(Tag, path, "restore it, or take another tag")
    except FileNotFoundError:
        known = [one.name.removesuffix(".json") for one in files_in(folder, "tags/*.json")]
        raise UsageError(f"{folder}: no tag {name!r}; there are: {few(known)}") from None
    if made.digest != digest_of(made.files):
        raise UsageError(f"{path}: its files are not those of its digest {made.digest}; restore it")
    return made


def differences(folder: AnyPath, tag: Tag) -> list[str]:
    """What of a tag is not there any more as it was."""
    present = _hashes(folder)
    wrong = [] if read_manifest(folder).fingerprint == tag.fingerprint else ["dataset.json has another fingerprint"]
    for path, sha256 in tag.files.items():
        # A tag of before has a measures file's own.
        if present.get(path) != sha256 and not (path in present and _sha256(folder / path) == sha256):
            wrong.append(f"{path} {'was changed' if path in present else 'is not there'} since tag {tag.tag}")
    return wrong


def digest_of(files: dict[str, str]) -> str:
    return hashlib.blake2b(json.dumps(files, sort_keys=True).encode(), digest_size=16).hexdigest()


def _hashes(folder: AnyPath) -> dict[str, str]:
    paths = [*sidecars(folder), *files_in(folder, "measures/*@*/shard-*.parquet")]
    return {below(path, folder): _said(path) or _sha256(path) for path in filter(is_shard, paths)}


def _sha256(path: AnyPath) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _said(path: AnyPath) -> str | None:
    """sha256 of what a measures file says of itself, which `verify` holds it to; None of others."""
    if path.parent.parent.name != "measures":
        return None
    try:
        footer = footer_of(path)
    except RunError:
        return None
    said = {name: footer.get(name) for name in ("tar_sha256", "evaluator", "version", "failed", "values")}
    return hashlib.sha256(json.dumps(said).encode()).hexdigest() if said["values"] else None
