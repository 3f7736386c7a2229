"""A real HTTP server on loopback: a class that answers requests of every method in one function."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


def free_port() -> int:
    """Of loopback; somebody else may take it before it is used."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def started(command: list[str], port: int) -> Iterator[Any]:
    """A program that listens on `port` of loopback, as a process; ended at the end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < until, f"{command[0]} does not start"
                time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def talking(environment: dict[str, str], client: Any) -> Iterator[None]:
    """Inside, this process has that environment, and stores of fsspec's class `client` are connected anew."""
    from gpo_data.lake import remote

    old = dict(os.environ)
    os.environ.update(environment)
    try:
        client.clear_instance_cache()
        remote._store.cache_clear()
        yield
    finally:
        os.environ.clear()
        os.environ.update(old)
        client.clear_instance_cache()
        remote._store.cache_clear()


class Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client was killed


class Served:
    """`with Served() as server`, which is then at `server.url`."""

    _server: Quiet

    def answer(self, asked: BaseHTTPRequestHandler) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def __getattr__(self, name: str) -> Any:
                if name.startswith("do_"):
                    return lambda: served.answer(self)
                raise AttributeError(name)

        self._server = Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"
