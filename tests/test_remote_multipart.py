"""Tars that the store's client sends in parts: killed at each of them, and a completion whose answer is lost."""

from __future__ import annotations

import http.client
import os
import signal
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from rich.console import Console

from gpo_data.errors import StoreError
from gpo_data.lake import catalog
from gpo_data.lake.remote import open_store, place
from gpo_data.lake.verify import verify
from tests.conftest import RECIPE, save_random_sd3
from tests.parts.bucket import bucket as bucket
from tests.parts.bucket import life, objects, on_disk, recipe_of
from tests.parts.bucket import proxy as proxy
from tests.parts.bucket import s3 as s3
from tests.parts.lives import lives
from tests.parts.s3 import Proxy, Request, connected, environment

QUIET = Console(quiet=True)
LARGE = 100 * 2**20  # bytes; from there on s3fs uploads in parts of 50 MiB
LARGE_SHARD = {"group_size: 4": "group_size: 26", "num_prompts: 6": "num_prompts: 2", "[ocr]": "[color]"}
# What brings a shard to the store: (method, part of the address).
REQUESTS = {
    "begin": ("POST", "?uploads"),
    "part 1": ("PUT", "partNumber=1&"),
    "part 2": ("PUT", "partNumber=2&"),
    "complete": ("POST", "uploadId="),
    "sidecar": ("PUT", ".parquet"),
}
# Killed before the store has done it or after; uploads that stay, begun and not completed.
KILLS = [
    *[("begin", "before", 0), ("begin", "after", 1), ("part 1", "before", 1), ("part 2", "after", 1)],
    *[("complete", "before", 1), ("complete", "after", 0), ("sidecar", "before", 0)],
]


@pytest.fixture(scope="module")
def large_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of one shard of 104 MiB: 52 members of 2 MiB, for the latents of its model have 8192 channels."""
    folder = tmp_path_factory.mktemp("large")
    text = RECIPE.format(model=save_random_sd3(folder / "model", latent_channels=8192), lake=folder / "lake")
    for old, new in LARGE_SHARD.items():
        text = text.replace(old, new)
    path = folder / "small.yaml"
    path.write_text(
        text.replace("0.5 + 0.5 * text_edit(target, ocr_text) - 0.5 * dark_fraction", "1.0 - dark_fraction")
    )
    return path


@pytest.fixture(scope="module")
def large_lake(large_recipe: Path) -> Path:
    from gpo_data.generation.generate import draw

    return draw(recipe_of(large_recipe, str(large_recipe.parent / "lake")), QUIET).parent


def length_of(port: int, url: str) -> int | None:
    """Bytes of an object, as the store itself says; None where it is not there."""
    there = http.client.HTTPConnection("127.0.0.1", port)
    there.request("HEAD", "/" + url.removeprefix("s3://"))
    answer = there.getresponse()
    answer.read()
    there.close()
    return int(answer.headers["Content-Length"]) if answer.status == 200 else None


def uploads(bucket: str) -> list[dict[str, object]]:
    """Those that were begun and not ended."""
    store, _ = open_store(bucket)
    return store.call_s3("list_multipart_uploads", Bucket=urlsplit(bucket).netloc).get("Uploads", [])


@pytest.mark.slow
@pytest.mark.parametrize(("at", "when", "left"), KILLS)
def test_killed_at_every_request_of_an_upload_in_parts(s3, bucket, large_recipe, large_lake, tmp_path, at, when, left):
    """Nobody sees a part of a tar; who resumes, here or on another machine, commits it once."""
    method, part = REQUESTS[at]
    whole = on_disk(large_lake)
    assert len(whole["shard-000000.tar"]) >= LARGE
    seen = set()
    with Proxy(s3.port) as proxy, connected(proxy.url, tmp_path / "here"):
        env = environment(proxy.url, tmp_path / "scratch")
        process = lives().Process(target=life, args=(str(large_recipe), bucket, env))

        def strike(request: Request) -> str | None:
            seen.add(length_of(s3.port, f"{bucket}/dataset=small/shard-000000.tar"))
            if request.method != method or part not in request.path:
                return None
            os.kill(process.pid or 0, signal.SIGKILL)
            return "gone"

        setattr(proxy, {"before": "fault", "after": "after"}[when], strike)
        process.start()
        process.join(240)
        assert process.exitcode == -signal.SIGKILL
        proxy.after = proxy.fault = lambda request: None
        assert objects(bucket).items() <= whole.items()
        assert catalog.ask(bucket, "SELECT count(*) AS n FROM members").to_pylist() == [{"n": 0}]
        if at.startswith("part"):  # where nothing is staged
            env["GPO_SCRATCH"] = str(tmp_path / "another-machine")
        life(str(large_recipe), bucket, env)
        assert objects(bucket) == whole
        assert not verify(place(bucket) / "dataset=small").problems
        assert catalog.ask(bucket, "SELECT count(*) AS n FROM members").to_pylist() == [{"n": 52}]
        assert seen <= {None, len(whole["shard-000000.tar"])}
        assert len(uploads(bucket)) == left


@pytest.mark.slow
@pytest.mark.parametrize("again", [None, "unknown", "taken"])
def test_a_completion_whose_answer_is_lost(proxy, bucket, again):
    """The client asks again. Some stores say then that they know no such upload, some that the name is taken."""
    content, path = bytes(LARGE), place(bucket) / "large.tar"

    def lost(request: Request) -> str | None:
        if request.method != "POST" or "uploadId=" not in request.path:
            return None
        return "lost" if proxy.count("POST", "uploadId=") == 1 else again

    proxy.fault = lost
    assert path.create(content)
    assert proxy.count("POST", "uploadId=") > 1 and length_of(proxy.to, path.url) == LARGE
    assert not path.create(content[:-1] + b"1") and not uploads(bucket)


@pytest.mark.slow
def test_an_upload_that_is_aborted_is_one_line(proxy, bucket):
    """As a lifecycle rule does it, on a day of a very slow upload."""
    path = place(bucket) / "large.tar"
    proxy.fault = lambda request: "unknown" if request.method == "POST" and "uploadId=" in request.path else None
    with pytest.raises(StoreError, match="run the same command again"):
        path.create(bytes(LARGE))
    assert not path.is_file()
