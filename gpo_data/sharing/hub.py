"""`push` and `pull`: a dataset and a hub, through huggingface_hub, which resumes and sends nothing twice.

    <repo>/README.md, groups.png           the card
    <repo>/pictures/<name>-00000.parquet   a row a member, with its picture (pictures.py)
    <repo>/dataset=<name>/...              the dataset's folder as it is: a repository is a lake

What always holds: a dataset is proved (`verify`) before it is sent and after it came; tars go and come before the
sidecars, so that what is cut is a dataset that lacks shards. What lies in an object store goes by way of a copy on this
machine (copies.py). The token is the environment's (HF_TOKEN, or a login).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from rich.console import Console

from gpo_data.audit.show import grid, judged, load_groups
from gpo_data.errors import RunError, UsageError, few
from gpo_data.lake.durable import TEMPORARY
from gpo_data.lake.manifest import read_manifest
from gpo_data.lake.remote import AnyPath
from gpo_data.lake.verify import verify
from gpo_data.sharing.card import PICTURE, card
from gpo_data.sharing.copies import copied, place_of_copy, put
from gpo_data.sharing.pictures import files_of, write_pictures

IGNORED = [".stage/**", ".quarantine/**", "**/.*", f"**/*{TEMPORARY}", f"*{TEMPORARY}"]


def push(
    folder: AnyPath,
    repo: str,
    license: str,
    private: bool = False,
    tag: str | None = None,
    pictures: bool = True,
    console: Console | None = None,
) -> str:
    """Send a dataset; its URL. Raises UsageError, RunError.

    Args:
        tag: of the hub's repository, for what it holds now.
        pictures: whether they also go as a table, which is what a hub's viewer shows. They take their room twice.
    """
    manifest = read_manifest(folder)
    if not isinstance(folder, Path):
        with copied(folder, console) as copy:
            return push(copy, repo, license, private, tag, pictures, console)
    _proved(folder, console, "`gpo-data verify RECIPE --repair` takes away what is damaged")
    hub = HfApi()
    with explained(repo), tempfile.TemporaryDirectory() as temporary:
        made = hub.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        text = card(folder, manifest, license, made.repo_id, pictures)
        (Path(temporary) / "README.md").write_text(text, encoding="utf-8")
        name = folder.name.partition("=")[2]
        grid(*judged(load_groups(folder), str(folder.parent), name)).save(Path(temporary) / PICTURE)
        for part in ("*.tar", None):  # the tars first
            hub.upload_folder(
                repo_id=made.repo_id,
                repo_type="dataset",
                folder_path=folder,
                path_in_repo=folder.name,
                allow_patterns=part,
                ignore_patterns=IGNORED,
                commit_message=f"{manifest.name}, fingerprint {manifest.fingerprint}",
            )
        if pictures:
            write_pictures(folder, Path(temporary))
        hub.upload_folder(
            repo_id=made.repo_id,
            repo_type="dataset",
            folder_path=temporary,
            delete_patterns=files_of(str(manifest.name)),  # of an earlier push, where it had more
            commit_message=f"card of {manifest.name}",
        )
        if tag is not None:
            hub.create_tag(made.repo_id, tag=tag, repo_type="dataset")
    return str(made)


def pull(folder: AnyPath, repo: str, revision: str | None = None, console: Console | None = None) -> AnyPath:
    """Fetch the dataset of the folder's name; the folder. Raises UsageError, RunError."""
    hub, name, into = HfApi(), folder.name, folder if isinstance(folder, Path) else place_of_copy(folder)
    with explained(repo), tempfile.TemporaryDirectory() as temporary:
        there = hub.list_repo_files(repo, repo_type="dataset", revision=revision)
        if f"{name}/dataset.json" not in there:
            known = sorted({path.split("/")[0].removeprefix("dataset=") for path in there if path[:8] == "dataset="})
            raise UsageError(f"{repo}: no dataset {name.removeprefix('dataset=')} there; there are: {few(known)}")
        if (folder / "dataset.json").is_file():
            hub.hf_hub_download(
                repo, f"{name}/dataset.json", repo_type="dataset", revision=revision, local_dir=temporary
            )
            theirs, ours = read_manifest(Path(temporary) / name).fingerprint, read_manifest(folder).fingerprint
            if theirs != ours:
                raise UsageError(
                    f"{folder}: fingerprint {ours}, and {theirs} in {repo}: other pictures; pull into another --lake"
                )
        into.parent.mkdir(parents=True, exist_ok=True)
        for wanted, unwanted in (([f"{name}/**"], ["*.parquet"]), ([f"{name}/**"], None)):  # the sidecars last
            hub.snapshot_download(
                repo,
                repo_type="dataset",
                revision=revision,
                local_dir=into.parent,
                allow_patterns=wanted,
                ignore_patterns=unwanted,
            )
    otherwise = "pull again; what is damaged here is fetched anew after `gpo-data verify RECIPE --repair`"
    if not isinstance(folder, Path):
        _proved(into, console, f"remove {into.parent} and pull again")
        put(into, folder, console)
    _proved(folder, console, otherwise)
    return folder


def _proved(folder: AnyPath, console: Console | None, otherwise: str) -> None:
    report = verify(folder, console)
    if report.problems:
        path, problem = report.problems[0]
        raise RunError(f"{path}: {problem}; {len(report.problems)} problems in all; {otherwise}")
    if not report.shards:
        raise UsageError(f"{folder}: no committed shard; `gpo-data shards RECIPE` draws some")


@contextmanager
def explained(repo: str) -> Iterator[None]:
    """Inside, what a hub refuses becomes a UsageError or RunError of one line."""
    try:
        yield
    except HFValidationError as error:
        raise UsageError(f"{repo}: expected ORGANISATION/NAME of a hub repository: {_words(error)}") from None
    except (RepositoryNotFoundError, EntryNotFoundError) as error:
        raise UsageError(
            f"{repo}: no such repository, or the token may not see it (HF_TOKEN, `hf auth login`): {_words(error)}"
        ) from None
    except RevisionNotFoundError as error:
        raise UsageError(f"{repo}: no such branch, tag or commit: {_words(error)}") from None
    except HfHubHTTPError as error:
        raise RunError(f"{repo}: the hub refuses: {_words(error)}; the same command goes on from there") from None
    except (UsageError, RunError):
        raise
    except Exception as error:
        # The client has its HTTP library's errors, and wraps what an upload's thread raised.
        if not isinstance(error, OSError | RuntimeError) and not type(error).__module__.startswith("httpx"):
            raise
        told = _words(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        raise RunError(f"{repo}: the hub does not answer: {told}; the same command goes on from there") from None


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
