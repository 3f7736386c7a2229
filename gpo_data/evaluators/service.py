"""Ask a server over HTTP: time-outs, tries again with back-off, and one line where it cannot be had.

What always holds: what may pass (no connection, a time-out, 408, 425, 429, 5xx) is tried `retries` times more, at once
and after 1, 2, 4 ... s, or when the server asks for it; then it is a `RunError`, which ends the run: what is committed
stays, and the same command goes on. What the server refuses (4xx) is a `UsageError` with its own words.
"""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError

from gpo_data.errors import RunError, UsageError

AGAIN = (408, 425, 429, 500, 502, 503, 504)
LONGEST_WAIT = 30.0  # seconds between two tries


class Service:
    """Safe to use from several threads.

    Args:
        key: of the recipe, for messages.
        token_variable: the environment's, whose value is sent as a bearer token where it is set.
    """

    def __init__(self, url: str, key: str, timeout: float, retries: int, token_variable: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{key}: expected an address such as http://127.0.0.1:8190, found {url!r:.200}")
        self.url, self.key, self.retries, self.token_variable = url.rstrip("/"), key, retries, token_variable
        token = os.environ.get(token_variable, "")
        self._headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        policy = urllib3.Retry(
            total=retries,
            redirect=False,
            allowed_methods=None,  # scoring twice changes nothing
            status_forcelist=AGAIN,
            backoff_factor=0.5,
            backoff_max=LONGEST_WAIT,
            raise_on_status=False,
        )
        self._pool = urllib3.PoolManager(
            maxsize=16, retries=policy, timeout=urllib3.Timeout(connect=min(timeout, 10.0), read=timeout)
        )

    def get(self, path: str) -> Any:
        return self._ask("GET", path)

    def post(self, path: str, body: Any = None, fields: list[tuple[str, Any]] | None = None) -> Any:
        """`body` as JSON, or `fields` as multipart/form-data."""
        if fields is not None:
            return self._ask("POST", path, fields=fields)
        return self._ask("POST", path, body=json.dumps(body).encode(), headers={"Content-Type": "application/json"})

    def get_if_there(self, path: str) -> Any:
        """None where there is nothing at `path` to GET."""
        response = self._response("GET", path)
        return None if response.status in (404, 405, 501) else self._read(path, response)

    def _ask(self, method: str, path: str, headers: dict[str, str] | None = None, **how: Any) -> Any:
        return self._read(path, self._response(method, path, headers, **how))

    def _read(self, path: str, response: Any) -> Any:
        said = _words(response.data)
        if response.status in AGAIN:
            raise self.gone(f"status {response.status}: {said}")
        if response.status == 401:
            raise UsageError(f"{self.key}: {self.url} wants another token; set {self.token_variable} to it ({said})")
        if response.status >= 300:
            raise UsageError(f"{self.key}: {self.url}{path} refuses: status {response.status}: {said}")
        try:
            return json.loads(response.data)
        except (ValueError, RecursionError):
            raise UsageError(f"{self.key}: {self.url}{path}: expected JSON, found {said}") from None

    def _response(self, method: str, path: str, headers: dict[str, str] | None = None, **how: Any) -> Any:
        try:
            return self._pool.request(
                method, self.url + path, headers=self._headers | (headers or {}), redirect=False, **how
            )
        except MaxRetryError as error:
            raise self.gone(_words(str(error.reason or error).encode())) from None
        except HTTPError as error:
            raise self.gone(_words(str(error).encode())) from None

    def gone(self, why: str) -> RunError:
        tries = f"{self.retries + 1} tries" if self.retries else "one try"
        return RunError(
            f"{self.key}: no answer from {self.url} in {tries}: {why}; start it, and the same command goes on"
        )


def _words(data: bytes) -> str:
    """The `error` or `detail` of a JSON answer, else its text, in one line."""
    text = data[:2000].decode(errors="replace")
    try:
        found = json.loads(data)
        text = str(found.get("error") or found.get("detail") or text) if isinstance(found, dict) else text
    except (ValueError, RecursionError):
        pass
    return " ".join(text.split())[:300] or "nothing"
