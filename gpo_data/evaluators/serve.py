"""The verb `serve`: the evaluators of a recipe behind `POST /score` (protocol.py), for http.py or anybody's program.

    gpo-data serve imagereward.yaml                        127.0.0.1:8190
    GPO_JUDGE_TOKEN=... gpo-data serve RECIPE --host 0.0.0.0 --port 9000

What always holds: beyond loopback a token is asked for, of every request; requests are data and pictures, opened within
limits; pictures are measured one request at a time, in the order of the requests; one that an evaluator cannot measure
has an `error` in its place, and the others are measured.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web
from rich.console import Console

from gpo_data.errors import RunError, UsageError
from gpo_data.evaluators import protocol
from gpo_data.evaluators.build import Evaluator, close, columns_of
from gpo_data.evaluators.protocol import Malformed, Request

LARGEST = 2**28  # bytes of a request


def serve(evaluators: list[Evaluator], host: str, port: int, console: Console) -> None:
    """Answer until Ctrl-C or SIGTERM. Raises UsageError: no token, an address that cannot be had."""
    token = os.environ.get(protocol.TOKEN_VARIABLE, "")
    if not token and not _loopback(host):
        raise UsageError(
            f"--host {host}: whoever reaches it may use it; set {protocol.TOKEN_VARIABLE} here and where it is asked "
            f"from, or serve 127.0.0.1 (the default) and tunnel"
        )
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UsageError(f"--host {host} --port {port}: cannot listen there: {error.strerror or error}") from None
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    console.print(
        f"{', '.join(one.name for one in evaluators)} at {address}/score"
        f"{', with the token' if token else ''}; Ctrl-C ends it",
        soft_wrap=True,
    )
    try:
        web.run_app(application(evaluators, token), sock=listening, print=None)
    finally:
        listening.close()
        close(evaluators)


def application(evaluators: list[Evaluator], token: str = "") -> web.Application:
    """Of aiohttp; `token`: '' asks for none."""

    @web.middleware
    async def guarded(request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and not hmac.compare_digest(given.encode(), token.encode()):
            return web.json_response({"error": "expected Authorization: Bearer <token>"}, status=401)
        try:
            response: web.StreamResponse = await handler(request)
            return response
        except (Malformed, UsageError) as error:  # UsageError: of a class that the evaluator does not know, or the like
            return web.json_response({"error": str(error)}, status=400)
        except RunError as error:  # a scorer that this one asks is gone
            return web.json_response({"error": str(error)}, status=503)

    measuring = ThreadPoolExecutor(1, thread_name_prefix="measure")
    told = description(evaluators)

    async def describe(request: web.Request) -> web.Response:
        return web.json_response(told)

    async def score(request: web.Request) -> web.Response:
        asked = await _read(request)
        rows = await asyncio.get_running_loop().run_in_executor(measuring, measured, evaluators, asked)
        return web.json_response({"scores": rows})

    app = web.Application(client_max_size=LARGEST, middlewares=[guarded])
    app.add_routes([web.get("/", describe), web.post(protocol.SCORE, score)])
    return app


def description(evaluators: list[Evaluator]) -> dict[str, Any]:
    """The answer to GET /."""
    versions = {one.name: one.version for one in evaluators}
    one_of = next(iter(versions.values()))
    joined = hashlib.blake2b(json.dumps(versions).encode(), digest_size=6).hexdigest()
    return {
        "protocol": protocol.PROTOCOL,
        "name": "+".join(versions),
        "version": one_of if len(versions) == 1 else joined,
        "evaluators": versions,
        "columns": {name: protocol.kind_of(type) for name, type in columns_of(evaluators).items()},
    }


def measured(evaluators: list[Evaluator], asked: Request) -> list[dict[str, Any]]:
    """A row of all columns a picture, or {"error"}."""
    rows: list[dict[str, Any]] = [{} for _ in asked.images]
    for evaluator in evaluators:
        good = [i for i, row in enumerate(rows) if "error" not in row]
        for i, found in zip(good, _each(evaluator, asked, good), strict=True):
            rows[i] = found if "error" in found else rows[i] | found
    return rows


def _each(evaluator: Evaluator, asked: Request, places: list[int]) -> list[dict[str, Any]]:
    if not places:
        return []
    try:
        return evaluator.measure([asked.images[i] for i in places], [asked.targets[i] for i in places])
    except (UsageError, RunError):
        raise
    except Exception as error:  # one bad picture spoils the batch: find it, one by one
        if len(places) == 1:
            return [{"error": f"{evaluator.name}: {type(error).__name__}: {error}"[:300]}]
        return [row for i in places for row in _each(evaluator, asked, [i])]


async def _read(request: web.Request) -> Request:
    if request.content_type == "multipart/form-data":
        form = await request.post()
        images = [one.file.read() for one in form.getall("images", []) if isinstance(one, web.FileField)]
        return protocol.request_of(images, _parsed(form.get("prompts")), _parsed(form.get("targets")))
    if request.content_type != "application/json":
        raise Malformed(f"expected application/json or multipart/form-data, found {request.content_type}")
    body = _parsed(await request.text())
    if not isinstance(body, dict):
        raise Malformed("expected an object with images, prompts and targets")
    return protocol.request_of(body.get("images", []), body.get("prompts"), body.get("targets"))


def _parsed(text: Any) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}") from None


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
