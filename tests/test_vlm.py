"""Evaluator `vlm`: questions, what answers are worth, and `transformers serve` itself with a small real model."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import urllib3

from gpo_data import cli
from gpo_data.errors import RunError, UsageError
from gpo_data.evaluators.protocol import png
from gpo_data.evaluators.questions import Question, filled, questions_of, together
from gpo_data.evaluators.vlm import COLUMNS, VlmEvaluator, grade_of, probability_of, reply_of
from gpo_data.generation.reward import expect_reward
from gpo_data.recipe import Recipe, Vlm
from gpo_data.tiny.render import render_text
from tests.parts.serving import free_port

SIGNS = [render_text("KITE", color="red", seed=1), render_text("UP", color="blue", seed=2)]
TARGETS = [{"prompt": "a red sign", "target": "KITE"}, {"prompt": "a blue sign", "target": "UP"}]


def test_questions_of_a_recipe_and_of_a_row() -> None:
    two = Vlm(questions=["Does this show {prompt}?", "Is there a {target}?"])
    assert [q.text for q in questions_of(two, TARGETS[0])] == ["Does this show a red sign?", "Is there a KITE?"]
    own = Vlm(questions_column="vqa_list")
    geneval2 = [["How many dogs are there?", "two"], ["Are they red?", "Yes"]]
    for row in (geneval2, json.dumps(geneval2)):
        found = questions_of(own, {"prompt": "two red dogs", "vqa_list": row})
        assert found == [Question("1", "How many dogs are there?", "two"), Question("2", "Are they red?", "Yes")]
    dpg = [
        {"proposition_id": 1, "dependency": "0", "question_natural_language": "Is there a dog?"},
        {"proposition_id": 2, "dependency": "1", "question_natural_language": "Is the dog red?"},
        {"proposition_id": 3, "dependency": "1, 2", "question_natural_language": "Is it left of a cat?"},
    ]
    assert [q.depends for q in questions_of(own, {"vqa_list": dpg})] == [(), ("1",), ("1", "2")]
    assert questions_of(own, {"prompt": "a dog", "vqa_list": None}) == []
    assert questions_of(own, {"vqa_list": "Is there a dog?"}) == [Question("1", "Is there a dog?")]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("[1", "not JSON"),
        ([3], "expected a text"),
        ([["a"]], "expected a text, [question, answer] or an object"),
        ([{"answer": "yes"}], "expected a question, found None"),
        ([{"question": "a?", "depends": ["7"]}], "question 1 depends on 7, which is not there"),
        ([{"question": "a?", "id": 1}, {"question": "b?", "id": 1}], "two questions of one id"),
        (7, "expected a list of questions, found 7"),
    ],
)
def test_a_row_whose_questions_are_none_is_told(row: Any, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        questions_of(Vlm(questions_column="vqa_list"), {"prompt": "a dog", "vqa_list": row})
    assert questions_of(Vlm(questions_column="vqa_list"), {"prompt": "a dog"}) == []  # its row has none
    asks = Recipe(name="a", evaluators=["vlm"], reward="vlm", vlm=Vlm(questions_column="vqa_list"))
    with pytest.raises(UsageError, match="no column 'vqa_list' travels with the prompts; they have: target"):
        expect_reward(asks, {"target": pa.string()}, [])
    with pytest.raises(UsageError, match="no 'word'; there are: prompt"):
        filled("Is there a {word}?", {"prompt": "a dog"})


def test_prompts_are_shown_without_their_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "few.csv").write_text("Prompts,Category\nA red car.,Colors\nA black dog.,Colors\n")
    asked = ["prompts", "drawbench-sd35m", "--task.prompts", str(tmp_path / "few.csv")]
    assert cli.main([*asked, "--vlm.url", "http://127.0.0.1:9/v1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "A black dog." in said and "2 prompts of 2 targets" in said
    assert "not checked against the evaluators: vlm.url: no answer from http://127.0.0.1:9/v1 in one try" in said


def test_what_depends_on_a_thing_that_is_not_there_counts_nothing() -> None:
    asked = [Question("1", "a dog?"), Question("2", "red?", depends=("1",)), Question("3", "a cat?")]
    assert together(asked, [0.9, 0.8, 0.4], "arithmetic") == (pytest.approx(0.7), [0.9, 0.8, 0.4])
    assert together(asked, [0.4, 0.8, 0.6], "arithmetic") == (pytest.approx(1 / 3), [0.4, 0.0, 0.6])
    assert together(asked, [0.9, 0.8, 0.6], "geometric")[0] == pytest.approx((0.9 * 0.8 * 0.6) ** (1 / 3))
    assert together(asked, [0.4, 0.8, 0.6], "geometric")[0] == 0


def test_probabilities_of_first_tokens() -> None:
    tokens = [("Yes", 0.5), (" yes", 0.1), ("No", 0.2), ("The", 0.2)]
    assert probability_of("yes", tokens) == pytest.approx(0.75)
    assert probability_of("No", tokens) == pytest.approx(0.25)
    assert probability_of("two", [("Two", 0.6), (" tw", 0.1), ("t", 0.1), ("three", 0.2)]) == pytest.approx(0.7)
    with pytest.raises(RuntimeError, match="neither yes nor no, but 'The', '<think>'"):
        probability_of("yes", [("The", 0.6), ("<think>", 0.4)])
    assert grade_of("4", [("4", 0.5), ("2", 0.5), ("good", 0.1)], 5) == pytest.approx(0.5)
    assert grade_of("I give it 4 of 5", None, 5) == pytest.approx(0.75)
    for reply in ("good", "7"):
        with pytest.raises(RuntimeError, match="no grade of 1 to 5"):
            grade_of(reply, None, 5)


def test_a_chat_reply_as_the_api_documents_it() -> None:
    likely = [{"token": "Yes", "logprob": math.log(0.7), "bytes": None}, {"token": "No", "logprob": math.log(0.2)}]
    content = [{"token": "Yes", "logprob": math.log(0.7), "top_logprobs": likely}]
    answer = {"choices": [{"message": {"role": "assistant", "content": "Yes"}, "logprobs": {"content": content}}]}
    reply, tokens = reply_of(answer, "http://here")
    assert reply == "Yes" and tokens is not None
    assert probability_of("yes", tokens) == pytest.approx(0.7 / 0.9)
    assert reply_of({"choices": [{"message": {"content": "4"}, "logprobs": None}]}, "http://here") == ("4", None)
    with pytest.raises(UsageError, match="expected a reply, found"):
        reply_of({"error": "no"}, "http://here")


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(RunError, match=r"vlm\.url: no answer from http://127.0.0.1:9/v1 in one try"):
        VlmEvaluator(Vlm(url="http://127.0.0.1:9/v1", retries=0))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """`transformers serve`, and its model's folder."""
    from tests.parts.vlm import write_vlm

    folder = tmp_path_factory.mktemp("vlm")
    write_vlm(folder / "model")
    (folder / "hub").mkdir()
    port = free_port()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(folder / "hub")}
    line = [str(Path(sys.executable).parent / "transformers"), "serve", str(folder / "model"), "--device", "cpu"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*line, "--port", str(port)], env=environment, stdout=log, stderr=log)
    url = f"http://localhost:{port}"
    try:
        for _ in range(600):
            with suppress(urllib3.exceptions.HTTPError):
                if urllib3.request("GET", f"{url}/health", retries=False, timeout=1).status == 200:
                    break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"{url}/v1", folder / "model"
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
def test_the_probability_is_that_of_the_models_own_logits(server: tuple[str, Path], tmp_path: Path) -> None:
    from transformers import pipeline

    url, folder = server
    questions = ["Is there {prompt}?", "Is there only one?"]
    judge = VlmEvaluator(Vlm(url=url, model=str(folder), api="systemone", questions=questions), str(tmp_path))
    rows = judge.measure(SIGNS, TARGETS)
    pa.Table.from_pylist(rows, schema=pa.schema(list(COLUMNS.items())))
    decide = pipeline("decision", model=str(folder), device="cpu")
    for image, target, row in zip(SIGNS, TARGETS, rows, strict=True):
        asset = {"type": "image", "format": "png", "data_base64": base64.b64encode(png(image)).decode()}
        texts = [f"Is there {target['prompt']}?", "Is there only one?"]
        asked = {str(i): {"type": "noul", "instructions": text} for i, text in enumerate(texts)}
        said = decide({"state": "[picture]", "assets": {"[picture]": asset}, "questions": asked})
        expected = [said[str(i)]["noul"] for i in range(2)]
        assert [one["p"] for one in row["vlm_answers"]] == pytest.approx(expected, abs=1e-4)
        assert row["vlm_score"] == pytest.approx(np.mean(expected), abs=1e-4)
    assert rows[0]["vlm_score"] != rows[1]["vlm_score"]
    again = VlmEvaluator(
        Vlm(url="http://127.0.0.1:9/v1", model=str(folder), api="systemone", questions=questions), str(tmp_path)
    )
    assert again.measure(SIGNS, TARGETS) == rows  # kept beside the lake: nobody is asked


@pytest.mark.slow
def test_grades_and_a_rows_own_questions(server: tuple[str, Path]) -> None:
    url, folder = server
    graded = VlmEvaluator(Vlm(url=url, model=str(folder), answer="grade", questions=["Is there a red sign?"]))
    found = [row["vlm_score"] for row in graded.measure(SIGNS, TARGETS)]
    assert all(score in (0, 0.25, 0.5, 0.75, 1) for score in found)
    levels = VlmEvaluator(Vlm(url=url, model=str(folder), answer="grade", api="systemone"))
    assert all(0 < row["vlm_score"] < 1 for row in levels.measure(SIGNS, TARGETS))
    own = VlmEvaluator(Vlm(url=url, model=str(folder), api="systemone", questions_column="asked"))
    asked = [{"id": 1, "question": "Is there a sign?", "answer": "no"}, {"id": 2, "question": "red?", "depends": [1]}]
    row = own.measure(SIGNS[:1], [{"prompt": "a sign", "asked": asked}])[0]
    first, second = row["vlm_answers"]
    assert second["counted"] == (second["p"] if first["p"] >= 0.5 else 0)
    assert row["vlm_score"] == pytest.approx((first["counted"] + second["counted"]) / 2, abs=1e-5)
    assert own.measure(SIGNS[:1], [{"prompt": "a sign", "asked": None}]) == [dict.fromkeys(COLUMNS)]


@pytest.mark.slow
def test_a_server_without_log_probabilities_says_where_they_are(server: tuple[str, Path]) -> None:
    url, folder = server
    with pytest.raises(UsageError, match=r"gives no log-probabilities in chat.* vlm\.api: systemone"):
        VlmEvaluator(Vlm(url=url, model=str(folder))).measure(SIGNS[:1], TARGETS[:1])
    with pytest.raises(UsageError, match=r"vlm\.model: http://localhost:\d+/v1 has none; set it to one"):
        VlmEvaluator(Vlm(url=url))
    with pytest.raises(UsageError, match="refuses: status 4"):
        VlmEvaluator(Vlm(url=url, model="another/model", answer="grade", retries=0)).measure(SIGNS[:1], TARGETS[:1])
