"""Scorers behind HTTP: `gpo-data serve` as a process of its own, asked by `http` and by plain requests."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import urllib3
from ruamel.yaml import YAML

from gpo_data import cli
from gpo_data.errors import RunError, UsageError
from gpo_data.evaluators import protocol
from gpo_data.evaluators.color import ColorEvaluator
from gpo_data.evaluators.http import HttpEvaluator
from gpo_data.evaluators.protocol import kind_of, not_finite, type_of
from gpo_data.evaluators.yolo import COLUMNS as YOLO_COLUMNS
from gpo_data.recipe import Http, Recipe, Vlm
from gpo_data.tiny.render import render_text

SIGNS = [render_text(word, color="red", seed=i) for i, word in enumerate(("KITE", "UP", "SKY"))]
TARGETS = [{"target": word, "prompt": f'a red sign that says "{word}"'} for word in ("KITE", "UP", "SKY")]
QUICK = {"timeout": 5.0, "retries": 0}


@contextmanager
def served(folder: Path, *arguments: str, recipe: str, token: str = "") -> Iterator[str]:
    """`gpo-data serve` on a port of its own; its address."""
    path = folder / "judge.yaml"
    path.write_text(recipe)
    environment = {k: v for k, v in os.environ.items() if k != protocol.TOKEN_VARIABLE} | {"PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "gpo_data.cli", "serve", str(path), "--trust", "--port", "0", *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=environment | ({protocol.TOKEN_VARIABLE: token} if token else {}),
    )
    assert process.stdout is not None
    try:
        told = process.stdout.readline()
        found = re.search(r"http://\S+?(?=/score)", told)
        assert found, told + process.stdout.read()
        yield found[0]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        process.stdout.close()


OWN = """
import numpy as np

def bright(images, targets):
    if any(image.max() == 0 for image in images):
        raise ValueError("all black")
    return [{"bright": float(image.mean()), "words": [target["prompt"]]} for image, target in zip(images, targets)]

import pyarrow
bright.columns = {"bright": float, "words": pyarrow.list_(pyarrow.string())}
bright.version = 3
"""
RECIPE = 'evaluators: [color, "own:bright"]\nreward: bright\n'


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("judge")
    (folder / "own.py").write_text(OWN)
    with served(folder, recipe=RECIPE) as url:
        yield url


def post(url: str, body: Any, **headers: str) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = urllib3.request("POST", url, body=data, headers={"Content-Type": "application/json"} | headers)
    return answer.status, answer.json()


@pytest.mark.parametrize("encoding", ["json", "multipart"])
def test_a_served_evaluator_sees_what_it_sees_at_home(judge: str, encoding: Any) -> None:
    remote = HttpEvaluator("judge", Http(urls={"judge": judge}, encoding=encoding, batch_size=2, **QUICK))
    assert list(remote.columns) == [*ColorEvaluator.columns, "bright", "words"]
    rows = remote.measure(SIGNS, TARGETS)
    at_home = ColorEvaluator().measure(SIGNS, TARGETS)
    assert [{name: row[name] for name in ColorEvaluator.columns} for row in rows] == at_home
    assert [row["words"] for row in rows] == [[target["prompt"]] for target in TARGETS]
    assert [row["bright"] for row in rows] == [float(sign.mean()) for sign in SIGNS]
    assert re.fullmatch(r"http-[0-9a-f]{12}", remote.version)


def test_types_cross_the_wire() -> None:
    for type in (*YOLO_COLUMNS.values(), *ColorEvaluator.columns.values(), pa.bool_(), pa.int64()):
        assert type_of(json.loads(json.dumps(kind_of(type)))) == type


def test_what_one_picture_fails_on_costs_that_picture(judge: str) -> None:
    remote = HttpEvaluator("judge", Http(urls={"judge": judge}, **QUICK))
    black = np.zeros_like(SIGNS[0])
    with pytest.raises(RuntimeError, match=r"own\.bright: ValueError: all black"):
        remote.measure([SIGNS[0], black], TARGETS[:2])
    assert remote.measure(SIGNS[:1], TARGETS[:1])[0]["bright"] > 0


def test_requests_that_are_none_get_a_reason(judge: str) -> None:
    good = base64.b64encode(protocol.png(SIGNS[0])).decode()
    for body, words in (
        (b"{", "not JSON"),
        ({"images": []}, "expected a list of pictures"),
        ({"images": ["%%"]}, "expected a picture in base64"),
        ({"images": [base64.b64encode(b"GIF89a").decode()]}, "expected a picture, PNG, JPEG, WEBP"),
        ({"images": [good], "prompts": ["a", "b"]}, "prompts: expected a list of 1 str"),
        ({"images": [good], "targets": [3]}, "targets: expected a list of 1 dict"),
    ):
        status, answer = post(f"{judge}/score", body)
        assert status == 400 and words in answer["error"]
    assert post(f"{judge}/score", b"x", **{"Content-Type": "text/plain"})[0] == 400
    assert post(f"{judge}/score", {"images": [good], "prompts": ["a"]})[1]["scores"][0]["words"] == ["a"]
    assert post(f"{judge}/score", {"images": [good]})[0] == 200


def test_beyond_loopback_there_is_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(protocol.TOKEN_VARIABLE, raising=False)
    Path("judge.yaml").write_text("evaluators: [color]\nreward: '1'\n")
    assert cli.main(["serve", "judge.yaml", "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "set GPO_JUDGE_TOKEN" in capsys.readouterr().err
    with served(tmp_path, "--host", "0.0.0.0", recipe="evaluators: [color]\nreward: '1'\n", token="a secret") as url:
        url = url.replace("0.0.0.0", "127.0.0.1")
        with pytest.raises(UsageError, match="wants another token; set GPO_JUDGE_TOKEN"):
            HttpEvaluator("judge", Http(urls={"judge": url}, **QUICK))
        monkeypatch.setenv(protocol.TOKEN_VARIABLE, "a secret")
        assert HttpEvaluator("judge", Http(urls={"judge": url}, **QUICK)).measure(SIGNS[:1], TARGETS[:1])


class Somebody(BaseHTTPRequestHandler):
    """A scorer of somebody's own, ten lines: a number a picture; it fails as often as it is told to."""

    fails: list[int]
    requests: list[int]
    answer: Any = None

    def do_GET(self) -> None:
        self._say(404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(len(body["images"]))
        if self.fails:
            return self._say(self.fails.pop(), {"error": "busy"})
        self._say(200, self.answer or {"scores": [len(prompt) for prompt in body["prompts"]]})

    def _say(self, status: int, answer: Any) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def somebody() -> Iterator[tuple[str, type[Somebody]]]:
    handler = type("Handler", (Somebody,), {"fails": [], "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_bare_scorer_is_a_number_a_picture_and_no_picture_is_asked_about_twice(somebody: Any) -> None:
    url, handler = somebody
    remote = HttpEvaluator("length", Http(urls={"length": url}, batch_size=2, timeout=5.0, retries=2))
    handler.fails = [503]
    wanted = [{"length": float(len(target["prompt"]))} for target in TARGETS]
    assert remote.measure(SIGNS, TARGETS) == wanted
    assert handler.requests == [2, 2, 1]  # batches of two; the first was busy once
    assert remote.measure(SIGNS, TARGETS) == wanted and handler.requests == [2, 2, 1]
    remote.measure([SIGNS[0], SIGNS[0]], [TARGETS[1], TARGETS[1]])
    assert handler.requests == [2, 2, 1, 1]  # another prompt, one picture twice


def test_a_scorer_that_is_slow_is_asked_again_and_then_gone(somebody: Any) -> None:
    url, handler = somebody
    remote = HttpEvaluator("length", Http(urls={"length": url}, timeout=0.3, retries=1))
    answer = handler.do_POST

    def slow(self: Any) -> None:
        handler.asked += 1
        time.sleep(0.6 if handler.asked <= handler.slow else 0)
        with suppress(BrokenPipeError, ConnectionResetError):  # who asked has gone
            answer(self)

    handler.do_POST, handler.slow, handler.asked = slow, 1, 0
    assert remote.measure(SIGNS[:1], TARGETS[:1]) == [{"length": float(len(TARGETS[0]["prompt"]))}]
    handler.slow = 99
    with pytest.raises(RunError, match="in 2 tries: .*timed out"):
        remote.measure(SIGNS[1:], TARGETS[1:])


def test_answers_that_are_none_are_refused(somebody: Any) -> None:
    url, handler = somebody
    remote = HttpEvaluator("length", Http(urls={"length": url}, **QUICK))
    for answer, words in (
        ({"scores": [1.0, 2.0]}, "one of each of 1 pictures, found 2"),
        ([1.0], "expected {'scores': "),
        ({"scores": ["good"]}, "expected"),
        ({"scores": [{"other": 1.0}]}, "expected the columns length, found other"),
    ):
        handler.answer = answer
        with pytest.raises(UsageError, match=re.escape(words)):
            remote.measure(SIGNS[:1], TARGETS[:1])
    assert not_finite([1.0, {"a": [2.0, float("inf")]}]) == float("inf") and not_finite([1.0, None, "nan"]) is None
    handler.answer = {"scores": [float("nan")]}
    with pytest.raises(RuntimeError, match="length is nan"):
        remote.measure(SIGNS[:1], TARGETS[:1])
    handler.answer = {"scores": [None]}
    assert remote.measure(SIGNS[:1], TARGETS[:1]) == [{"length": None}]


def test_a_scorer_that_is_gone_ends_the_run_and_the_same_command_goes_on(
    recipe_file: Path, somebody: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = somebody
    text = recipe_file.read_text().replace("evaluators: [ocr]", "evaluators: [length]")
    text = re.sub("reward: .*", "reward: length / 100 - dark_fraction", text)
    recipe_file.write_text(text + f"http: {{urls: {{length: '{url}'}}, retries: 0, timeout: 5.0}}\n")

    def refused(self: Any) -> None:
        """The first question is the trial on a blank picture, the second the first group; then it is gone."""
        length = int(self.headers["Content-Length"])
        body = json.loads(self.rfile.read(length))
        self.requests.append(len(body["images"]))
        gone = 2 < len(self.requests) < 5
        self._say(503 if gone else 200, {"error": "gone"} if gone else {"scores": [50] * len(body["images"])})

    handler.do_POST = refused
    assert cli.main(["shards", str(recipe_file)]) == 1
    told = capsys.readouterr().err
    assert f"http.urls.length: no answer from {url} in one try: status 503: gone" in told and "same command" in told
    handler.requests += [0] * 3
    assert cli.main(["shards", str(recipe_file)]) == 0
    rows = [
        row for path in recipe_file.parent.glob("lake/dataset=*/*.parquet") for row in pq.read_table(path).to_pylist()
    ]
    assert len(rows) == 24 and all(row["length"] == 50.0 and row["status"] == "ok" for row in rows)


def test_answers_are_kept_beside_the_lake(judge: str, tmp_path: Path) -> None:
    http = Http(urls={"judge": judge}, **QUICK)
    first = HttpEvaluator("judge", http, str(tmp_path / "lake")).measure(SIGNS, TARGETS)
    again = HttpEvaluator("judge", http, str(tmp_path / "lake"))
    again._service.url = "http://127.0.0.1:9"  # nobody is there: what is known needs nobody
    assert again.measure(SIGNS, TARGETS) == first
    with pytest.raises(RunError, match="in one try"):
        again.measure(SIGNS[:1], TARGETS[1:2])


def test_an_address_that_is_none_is_told_at_once(tmp_path: Path) -> None:
    for url in ("localhost:9", "file:///etc/passwd", ""):
        with pytest.raises(UsageError, match="expected an address such as"):
            HttpEvaluator("judge", Http(urls={"judge": url}, **QUICK))
    began = time.monotonic()
    with pytest.raises(RunError, match="no answer from http://127"):
        HttpEvaluator("judge", Http(urls={"judge": "http://127.0.0.1:9"}, **QUICK))
    assert time.monotonic() - began < 5
    with pytest.raises(UsageError, match=r"http\.urls: expected names of letters"):
        Http(urls={"A b": "http://127.0.0.1:9"})


def test_the_examples_of_the_page() -> None:
    page = (Path(__file__).parents[1] / "docs/judges.md").read_text()
    found = {kind: re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("json", "yaml")}
    question, answer, hello = map(json.loads, found["json"])
    assert protocol.json_body([], question["targets"]).keys() == question.keys()
    assert protocol.scores_of(answer, 1, "mine", {"mine": pa.float64()})[0].row == {"mine": 0.71}
    assert protocol.described(hello).columns == {"imagereward": pa.float64()}
    recipes: list[Any] = [YAML(typ="safe", pure=True).load(text) for text in found["yaml"]]
    asking = next(one for one in recipes if "http" in one)
    assert set(asking["http"]["urls"]) < {*asking["evaluators"]}
    for one in recipes:
        sections = {"http": Http(**one.get("http", {})), "vlm": Vlm(**one.get("vlm", {}))}
        assert Recipe(**({"reward": "1"} | one | sections)).evaluators == one["evaluators"]
