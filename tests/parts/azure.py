"""A real Azure Blob server on loopback: Azurite, where `azurite-blob` is on the PATH (npm install azurite)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.parts.serving import free_port, started, talking

PROGRAM = "azurite-blob"
# The account that every Azurite has; its key is in its documentation.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def server(folder: Path) -> Iterator[int]:
    """The port of a server that keeps its blobs in `folder`."""
    port = free_port()
    program = shutil.which(PROGRAM)
    assert program is not None
    command = [program, "--silent", "--location", str(folder), "--blobPort", str(port), "--skipApiVersionCheck"]
    with started(command, port):
        yield port


def environment(port: int, scratch: Path, key: str = KEY) -> dict[str, str]:
    """What a process needs to talk to it."""
    at = f"BlobEndpoint=http://127.0.0.1:{port}/{ACCOUNT};"
    return {
        "AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};{at}",
        "GPO_SCRATCH": str(scratch),
    }


@contextmanager
def connected(port: int, scratch: Path, key: str = KEY) -> Iterator[None]:
    """Inside, this process talks to the server, with connections of its own."""
    import adlfs

    with talking(environment(port, scratch, key), adlfs.AzureBlobFileSystem):
        yield
