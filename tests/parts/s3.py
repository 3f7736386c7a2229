"""A real S3 server on loopback (moto's), in a process of its own, and a proxy before it that can do harm.

    with server() as s3, Proxy(s3.port) as proxy:
        proxy.fault = lambda request: "500" if request.method == "PUT" else None

A fault is `500`, `cut` (the connection ends in the middle of the answer), `lost` (the request is done and its answer
cut), `gone` (it never came), a store's own answer (`expired` credentials, `skewed` clocks, `denied`, an upload
that is `unknown`, a name that is `taken`), or a number of seconds to wait.
"""

from __future__ import annotations

import http.client
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.parts.serving import Served, free_port, started, talking

Fault = str | float | None
ANSWERS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "skewed": (
        403,
        "RequestTimeTooSkewed",
        "The request time and the current time differ too much.",
    ),
    "denied": (403, "AccessDenied", "Access Denied"),
    "taken": (412, "PreconditionFailed", "At least one of the preconditions did not hold."),
    "unknown": (404, "NoSuchUpload", "The specified upload does not exist."),
}


@dataclass
class Request:
    method: str
    path: str  # with its query
    body: int  # bytes
    sent: int = 0  # bytes of the answer


@dataclass
class Server:
    port: int
    process: Any

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def server() -> Iterator[Server]:
    """moto's server, empty."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with started(command, port) as process:
        yield Server(port, process)


def environment(url: str, scratch: Path) -> dict[str, str]:
    """What a process needs to talk to it."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "GPO_SCRATCH": str(scratch),
    }


@contextmanager
def connected(url: str, scratch: Path) -> Iterator[None]:
    """Inside, this process talks to the server at `url`, with connections of its own."""
    import s3fs

    with talking(environment(url, scratch), s3fs.S3FileSystem):
        yield


def make_bucket(url: str, name: str) -> None:
    put = http.client.HTTPConnection(urlsplit(url).netloc)
    put.request("PUT", f"/{name}")
    assert put.getresponse().status == 200
    put.close()


@dataclass
class Proxy(Served):
    """Passes requests on to `port`, and counts them. `fault` says what goes wrong with one, or None."""

    to: int
    fault: Callable[[Request], Fault] = lambda request: None
    after: Callable[[Request], None] = lambda request: None  # called when the server has done the request
    seen: list[Request] = field(default_factory=list)
    latency: float = 0.0  # seconds, of every request

    def count(self, method: str, part: str = "") -> int:
        return sum(one.method == method and part in one.path for one in self.seen)

    def answer(self, asked: BaseHTTPRequestHandler) -> None:
        body = asked.rfile.read(int(asked.headers.get("Content-Length") or 0))
        request = Request(asked.command, asked.path, len(body))
        self.seen.append(request)
        time.sleep(self.latency)
        fault = self.fault(request)
        if isinstance(fault, float | int):
            time.sleep(fault)
        elif fault == "gone":
            asked.close_connection = True
            asked.connection.close()
            return
        elif fault in ANSWERS:
            self._refuse(asked, *ANSWERS[fault])
            return
        headers = {k: v for k, v in asked.headers.items() if k.lower() not in ("expect", "connection")}
        there = http.client.HTTPConnection("127.0.0.1", self.to, timeout=60)
        there.request(asked.command, asked.path, body, headers)
        answer = there.getresponse()
        content = answer.read()
        request.sent = 0 if asked.command == "HEAD" else len(content)
        there.close()
        self.after(request)
        if fault == "lost":
            asked.close_connection = True
            asked.connection.close()
            return
        head = [f"HTTP/1.1 {answer.status} {answer.reason}"]
        head += [f"{k}: {v}" for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding")]
        if "content-length" not in {k.lower() for k, _ in answer.getheaders()}:
            head.append(f"Content-Length: {len(content)}")
        asked.wfile.write(("\r\n".join(head) + "\r\n\r\n").encode("latin-1"))
        asked.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
        if fault == "cut":
            asked.wfile.flush()
            asked.close_connection = True
            asked.connection.shutdown(socket.SHUT_RDWR)

    def _refuse(self, asked: BaseHTTPRequestHandler, status: int, code: str, words: str) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{words}</Message></Error>".encode()
        asked.send_response(status)
        asked.send_header("Content-Type", "application/xml")
        asked.send_header("Content-Length", str(len(text)))
        asked.end_headers()
        if asked.command != "HEAD":
            asked.wfile.write(text)
