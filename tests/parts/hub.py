"""A small hub over HTTP on loopback: what huggingface_hub's own client sends to push, pull, tag and read in place.

Repositories are kept in memory, a commit at a time. Files that the client calls large (`*.tar`, `*.parquet`,
`*.safetensors`, pictures) go through LFS. `fail` says which requests end in a 403, to break an upload.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.parts.serving import Served

LARGE = (".tar", ".parquet", ".safetensors", ".png")
DATE = "2026-01-01T00:00:00.000Z"


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Hub(Served):
    commits: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)  # by repository: files of each commit
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # LFS, by sha256
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # (path, range) of each GET
    puts: int = 0
    fail: Callable[[str, str], bool] = lambda method, path: False

    def answer(self, asked: BaseHTTPRequestHandler) -> None:
        body = asked.rfile.read(int(asked.headers.get("Content-Length") or 0))
        url = urlsplit(asked.path)
        path, query = unquote(url.path).strip("/"), parse_qs(url.query)
        if asked.command == "GET":
            self.asked.append((path, asked.headers.get("Range")))
        if self.fail(asked.command, path):
            return self._say(asked, 403, b"no")
        try:
            status, content, headers = self._do(asked.command, path, query, body)
        except KeyError as error:
            code = "RepoNotFound" if error.args[0] not in ("entry", "revision") else error.args[0].title() + "NotFound"
            status, content, headers = 404, b"{}", {"X-Error-Code": code, "X-Error-Message": "Not found"}
        if isinstance(content, dict | list):
            content, headers = json.dumps(content).encode(), headers | {"Content-Type": "application/json"}
        asked_range = asked.headers.get("Range")
        if asked_range and status == 200 and asked.command == "GET":
            first, _, last = asked_range.removeprefix("bytes=").partition("-")
            content, status = content[int(first) : int(last) + 1 if last else None], 206
        self._say(asked, status, content, headers)

    def _say(self, asked: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str] | None = None):
        asked.send_response(status)
        for name, value in (headers or {}).items():
            asked.send_header(name, value)
        asked.send_header("Content-Length", str(len(content)))
        asked.end_headers()
        if asked.command != "HEAD":
            asked.wfile.write(content)

    def _do(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any, dict[str, str]]:
        if path == "api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            key = f"{asked.get('type') or 'model'}s/{name}"
            new = key not in self.commits
            self.commits.setdefault(key, [{}])
            self.tags.setdefault(key, {})
            prefix = "" if key.startswith("models/") else "datasets/"
            return (200 if new else 409), {"url": f"{self.url}/{prefix}{name}", "id": name}, {}
        if path == "api/validate-yaml":
            head = yaml.safe_load(json.loads(body)["content"].split("---")[1])
            return 200, {"errors": [] if head.get("license") else [{"message": "license"}], "warnings": []}, {}
        if path.startswith("lfs/"):
            self.puts += 1
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("lfs/")
            self.objects[path.removeprefix("lfs/")] = body
            return 200, b"", {}
        if path.endswith("info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            found = []
            for one in wanted:
                actions = {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}} if one["oid"] not in self.objects else {}
                found.append({"oid": one["oid"], "size": one["size"]} | ({"actions": actions} if actions else {}))
            return 200, {"transfer": "basic", "objects": found}, {}
        parts = path.split("/")
        if parts[0] == "api":
            key, rest = "/".join(parts[1:4]), parts[4:]
            return self._api(method, key, rest, query, body)
        if "resolve" in parts:
            at = parts.index("resolve")
            key = "/".join(parts[:at]) if parts[0] == "datasets" else "models/" + "/".join(parts[:at])
            revision, files = self._at(key, parts[at + 1])
            name = "/".join(parts[at + 2 :])
            if name not in files:
                raise KeyError("entry")
            content = files[name]
            etag = hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else blob_id(content)
            return 200, content, {"X-Repo-Commit": revision, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        raise KeyError("repo")

    def _at(self, key: str, revision: str) -> tuple[str, dict[str, bytes]]:
        commits = self.commits[key]
        revision = self.tags[key].get(revision, revision)
        number = len(commits) - 1 if revision == "main" else int(revision, 16) if len(revision) == 40 else -1
        if not 0 <= number < len(commits):
            raise KeyError("revision")
        return f"{number:040x}", commits[number]

    def _api(
        self, method: str, key: str, rest: list[str], query: dict[str, list[str]], body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        if key not in self.commits:
            raise KeyError(key)
        if rest[:1] == ["preupload"]:
            asked = json.loads(body)["files"]
            files = self.commits[key][-1]
            told = []
            for one in asked:
                there = files.get(one["path"])
                mode = "lfs" if one["path"].endswith(LARGE) else "regular"
                oid = None if there is None else hashlib.sha256(there).hexdigest() if mode == "lfs" else blob_id(there)
                told.append({"path": one["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            return 200, {"files": told}, {}
        if rest[:1] == ["commit"] and method == "POST":
            files = dict(self.commits[key][-1])
            for line in body.decode().splitlines():
                one = json.loads(line)
                if one["key"] == "file":
                    files[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
                elif one["key"] == "lfsFile":
                    files[one["value"]["path"]] = self.objects[one["value"]["oid"]]
                elif one["key"] == "deletedFile":
                    del files[one["value"]["path"]]
            self.commits[key].append(files)
            oid = f"{len(self.commits[key]) - 1:040x}"
            return 200, {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{key}/commit/{oid}"}, {}
        if rest[:1] == ["tag"]:
            self.tags[key][json.loads(body)["tag"]] = self._at(key, rest[1])[0]
            return 200, {}, {}
        if rest[:1] == ["refs"]:
            named = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in self.tags[key].items()]
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": self._at(key, "main")[0]}
            return 200, {"branches": [main], "converts": [], "tags": named}, {}
        if rest[:1] == ["tree"]:
            _, files = self._at(key, rest[1])
            return (
                200,
                self._tree(files, "/".join(rest[2:]), "true" in query.get("recursive", ["false"])[0].lower()),
                {},
            )
        if rest[:1] == ["paths-info"]:
            _, files = self._at(key, rest[1])
            fields = parse_qs(body.decode()) if b"=" in body and not body.startswith(b"{") else json.loads(body)
            told = []
            for path in fields["paths"]:
                if path in files:
                    told.append(self._entry(path, files[path]))
                elif any(name.startswith(path + "/") for name in files):
                    told.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
            return 200, told, {}
        revision, files = self._at(key, rest[1] if rest[:1] == ["revision"] else "main")
        return 200, self._info(key, revision, files), {}

    def _info(self, key: str, revision: str, files: dict[str, bytes]) -> dict[str, Any]:
        name = key.partition("/")[2]
        return {
            "id": name,
            "sha": revision,
            "private": False,
            "lastModified": DATE,
            "createdAt": DATE,
            "tags": [],
            "siblings": [{"rfilename": path} for path in sorted(files)],
        }

    def _tree(self, files: dict[str, bytes], below: str, recursive: bool) -> list[dict[str, Any]]:
        told: dict[str, dict[str, Any]] = {}
        start = below + "/" if below else ""
        for path, content in files.items():
            if not path.startswith(start):
                continue
            folders = path[len(start) :].split("/")[:-1]
            for depth in range(1, len(folders) + 1 if recursive else min(2, len(folders) + 1)):
                folder = start + "/".join(folders[:depth])
                told[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            if recursive or not folders:
                told[path] = self._entry(path, content)
        if not told and below:
            raise KeyError("entry")
        return list(told.values())

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "oid": blob_id(content), "size": len(content)}
        if path.endswith(LARGE):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
        return entry


def python(hub: Hub, folder: Path, code: str, given: str = "", **more: str) -> str:
    """Code in a process of its own, for huggingface_hub reads HF_ENDPOINT when it is imported; its output."""
    env = os.environ | more | {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HOME": str(folder / "hf")}
    env |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    env |= {"HF_HUB_DISABLE_XET": "1", "GPO_SCRATCH": str(folder / "scratch"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code], input=given, text=True, capture_output=True, env=env, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stderr + ended.stdout
