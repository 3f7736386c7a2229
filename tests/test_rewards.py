"""Named rewards against plain Python, in characters; expressions are checked before anything is drawn."""

from __future__ import annotations

import math
import random
import unicodedata

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpo_data.errors import UsageError
from gpo_data.lake import rewards
from gpo_data.tasks import text as text_task
from gpo_data.tiny.words import COLORS

COLUMNS = {"target": pa.string(), "ocr_text": pa.string(), "target_count": pa.int32(), "n_detected": pa.int32()}


def text(reward: str, target: str | None, read: str | None) -> float | None:
    return rewards.score([{"target": target, "ocr_text": read}], f"{reward}(target, ocr_text)", COLUMNS)[0]


def count(reward: str, wanted: int | None, found: int | None) -> float | None:
    return rewards.score(
        [{"target_count": wanted, "n_detected": found}], f"{reward}(target_count, n_detected)", COLUMNS
    )[0]


def color(reward: str, wanted: str | None, seen: str | None) -> float | None:
    """`seen` by name; for `color_near` the colour of that name."""
    columns = {"color": pa.string(), "color_seen": pa.string(), "color_rgb": pa.list_(pa.float64())}
    row = {"color": wanted, "color_seen": seen, "color_rgb": None if seen is None else COLORS.get(seen, [])}
    measure = "color_rgb" if reward == "color_near" else "color_seen"
    return rewards.score([row], f"{reward}(color, {measure})", columns)[0]


def same_class(reward: str, wanted: str | None, seen: str | None) -> float | None:
    columns = {"target_class": pa.string(), "class_seen": pa.string()}
    row = {"target_class": wanted, "class_seen": seen}
    return rewards.score([row], f"{reward}(target_class, class_seen)", columns)[0]


def held(reward: str, asked: int | None, right: int | None) -> float | None:
    columns = {"clauses": pa.int32(), "clauses_right": pa.int32()}
    return rewards.score([{"clauses": asked, "clauses_right": right}], f"{reward}(clauses, clauses_right)", columns)[0]


def distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def fold(s: str) -> str:
    return "".join(unicodedata.normalize("NFC", s).upper().split())


@pytest.mark.parametrize(
    ("reward", "target", "read", "expected"),
    [
        ("text_exact", "Open Late", "OPENLATE", 1),
        ("text_exact", "KITE", " ki\tte\n", 1),
        ("text_exact", "KITE", "KITES", 0),
        ("text_exact", "KITE", "", 0),
        ("text_exact", "café", "CAFE\u0301", 1),  # composed or not is one character
        ("text_edit", "KITE", "KITE", 1),
        ("text_edit", "KITE", "KITS", 0.75),
        ("text_edit", "KITE", "", 0),
        ("text_edit", "KITE", "a very long line of other words", 0),
        ("text_edit", "café", "cafe", 0.75),  # DuckDB's levenshtein counts bytes and would say 0.5
        ("text_edit", "日本語", "日本", 2 / 3),
        ("text_edit", "", "", 1),
        ("text_edit", "", "X", 0),
        ("text_edit", "KITE", "KITEKITE", 0),
        ("text_edit_lenient", "KITE", "KITEKITE", 1),
        ("text_edit_lenient", "KITE", "KITS", 0.75),
        ("text_contains", "KITE", "the kite shop", 1),
        ("text_contains", "KITE", "KIT E", 1),
        ("text_contains", "KITE", "KIT", 0),
        ("text_contains", "100%", "it is 100% x", 1),
    ],
)
def test_text_rewards(reward, target, read, expected):
    assert text(reward, target, read) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reward", "wanted", "found", "expected"),
    [
        ("count_exact", 3, 3, 1),
        ("count_exact", 3, 4, 0),
        ("count_exact", 0, 0, 1),
        ("count_relaxed", 4, 4, 1),
        ("count_relaxed", 4, 3, 0.75),
        ("count_relaxed", 4, 6, 0.5),
        ("count_relaxed", 2, 50, 0),
        ("count_relaxed", 0, 0, 1),
        ("count_relaxed", 0, 1, 0),
    ],
)
def test_count_rewards(reward, wanted, found, expected):
    assert count(reward, wanted, found) == pytest.approx(expected)


def test_color_reward():
    assert "color_exact" in rewards.named()
    assert [color("color_exact", "red", seen) for seen in ("red", "teal", "")] == [1, 0, 0]
    orange = 1 - math.dist(COLORS["red"], COLORS["orange"]) / 100
    assert [color("color_near", "red", seen) for seen in ("red", "orange", "blue", "")] == [1, orange, 0, 0]
    assert color("color_near", "mauve", "red") is None


def test_color_near_reads_pictures_without_a_colour_from_parquet(tmp_path):
    table = pa.table({"color": ["red", "red"], "color_rgb": pa.array([[205.0, 30.0, 35.0], []])})
    pq.write_table(table, tmp_path / "two.parquet")
    con = duckdb.connect()
    rewards.add_macros(con)
    found = con.execute(f"SELECT color_near(color, color_rgb) FROM '{tmp_path}/two.parquet'").fetchall()
    assert found == [(1,), (0,)]


def test_class_reward():
    assert "class_exact" in rewards.named()
    assert [same_class("class_exact", "circle", seen) for seen in ("circle", "square", "")] == [1, 0, 0]


LISTS = [  # target, read, exact, contains, recall, precision
    ("Open\nClosed", "CLOSED OPEN", 1, 1, 1, 1),
    ("Open\nOpen Late", "open late open", 1, 1, 1, 1),
    ("Open\nClosed", "open", 0, 0, 1 / 2, 1),
    ("Open\nClosed", "open closed now", 0, 1, 1, 2 / 3),
    ("营业\n欢迎", "欢迎 营业", 1, 1, 1, 1),
    ("a b b", "b, A!", 0, 0, 2 / 3, 1),
    ("A\nB", "", 0, 0, 0, 0),
    ("CD\nAB", "ACDB", 0, 0, 0, 0),  # what stands around a text is not another
    ("CD\nAB", "A CD B", 0, 0, 1 / 2, 1 / 3),
    ("CD\nAB", "ABCD", 1, 1, 0, 0),
    ("CD\nAB", "ab x cd", 0, 1, 1, 2 / 3),
    ("Go\nooo", "GOOOO", 1, 1, 0, 0),  # the first `OOO` would leave no `GO`
    ("Go\nooo", "GOOOO!", 0, 1, 0, 0),
    ("Open\nOpen", "open open", 1, 1, 1, 1),
    ("Open\nOpen", "open", 0, 0, 1 / 2, 1),
]


@pytest.mark.parametrize("row", LISTS)
def test_several_texts_are_read_in_any_order(row):
    target, read, *wanted = row
    names = ("text_exact", "text_contains", "word_recall", "word_precision")
    assert [text(name, target, read) for name in names] == pytest.approx(wanted)


def test_several_texts_are_read_with_spaces_between_or_none():
    rng = random.Random(0)
    rows = []
    for _ in range(300):
        texts = rng.sample(text_task.WORDS, rng.randint(2, 4))
        shuffled = rng.sample(texts, len(texts))
        rows += [{"target": "\n".join(texts), "ocr_text": between.join(shuffled)} for between in ("", " ", "\n")]
    assert rewards.score(rows, "text_exact(target, ocr_text)", COLUMNS) == [1.0] * len(rows)
    for row in rows:
        row["ocr_text"] += " Z"
    assert rewards.score(rows, "text_exact(target, ocr_text)", COLUMNS) == [0.0] * len(rows)
    assert rewards.score(rows, "text_contains(target, ocr_text)", COLUMNS) == [1.0] * len(rows)


@pytest.mark.parametrize("reward", rewards.named())
def test_what_was_not_measured_has_no_reward(reward):
    kinds = {
        "text": (text, ("A", "B")),
        "word": (text, ("A", "B")),
        "count": (count, (1, 2)),
        "color": (color, ("red", "teal")),
        "class": (same_class, ("circle", "square")),
        "geneval": (held, (2, 1)),
        "clauses": (held, (2, 1)),
    }
    call, values = kinds[reward.split("_")[0]]
    assert call(reward, None, values[1]) is None
    assert call(reward, values[0], None) is None
    assert call(reward, None, None) is None


def test_the_edit_reward_counts_characters_and_every_reward_is_bounded():
    rng = random.Random(0)
    letters = "ABcé e\u0301\u0302ö日本中%_'\\\x01\n\U0001f1e9\U0001f1ea"
    rows = [{k: "".join(rng.choices(letters, k=rng.randint(0, 9))) for k in ("target", "ocr_text")} for _ in range(500)]
    rows += [{"target": "".join(map(chr, range(0x4E00, 0x4E00 + 126))) * 2, "ocr_text": "一x丁"}]
    for row, found in zip(rows, rewards.score(rows, "text_edit(target, ocr_text)", COLUMNS), strict=True):
        a, b = fold(row["target"]), fold(row["ocr_text"])
        assert found == pytest.approx(max(0, 1 - distance(a, b) / len(a)) if a else float(a == b)), row
    for reward in rewards.named():
        if reward.startswith("text"):
            assert all(0 <= r <= 1 for r in rewards.score(rows, f"{reward}(target, ocr_text)", COLUMNS))


def test_texts_of_more_than_126_different_characters_are_scored():
    rng = random.Random(0)
    rows = []
    for length in (127, 150, 200, 3):
        target = "".join(map(chr, range(0x4E00, 0x4E00 + length)))
        read = "".join(rng.choice([c, c, c, "", "é", rng.choice(target)]) for c in target)
        rows += [{"target": target, "ocr_text": read}, {"target": target, "ocr_text": target}]
    found = rewards.score(rows, "text_edit(target, ocr_text)", COLUMNS)
    assert found == [1 - distance(fold(r["target"]), fold(r["ocr_text"])) / len(r["target"]) for r in rows]


@pytest.mark.parametrize(
    ("target", "read"),
    [
        ("Honk If You’re Holographic", "HONK IF YOU'RE HOLOGRAPHIC"),
        ("Rock ‘n’ Roll", "Rock 'n' Roll"),
        ("“Open” „Late‟", '"OPEN" "LATE"'),
        ("9–17 — daily", "9-17 - daily"),
        ("co‑op −5", "co-op -5"),
        ("Wait…", "Wait..."),
        ("Café\u00a0Noir", "Café Noir"),
        ("東京\u3000駅", "東京駅"),
        ("ＯＰＥＮ　２４！", "OPEN 24!"),
        ("ｶﾞﾗｽ", "ガラス"),
        ("Straße", "STRASSE"),
        ("STRAẞE", "Strasse"),
        ("ﬁsh ﬂat oﬃce", "FISH FLAT OFFICE"),
        ("½ Price™ № 5", "1/2 PRICETM No 5"),
        ("H₂O m²", "H2O M2"),
        ("soft\u00adhyphen \u200bzero\ufeff", "SOFTHYPHENZERO"),
    ],
)
def test_typographic_marks_are_read_as_plain_ones(target, read):
    for one, other in ((target, read), (read, target)):
        assert text("text_exact", one, other) == text("text_contains", one, other) == text("text_edit", one, other) == 1
    assert text("text_exact", target, read + "x") == 0


def test_compatibility_forms_are_folded_as_unicode_does():
    forms = [chr(c) for c in (*range(0xFF01, 0xFF5F), *range(0xFF61, 0xFFA0), *range(0xFB00, 0xFB07))]
    plain = [unicodedata.normalize("NFKC", form) for form in forms]
    rows = [{"target": a, "ocr_text": b} for a, b in zip(forms, plain, strict=True)]
    assert rewards.score(rows, "text_exact(target, ocr_text)", COLUMNS) == [1.0] * len(rows)


def test_rewards_of_plain_words_are_the_same_to_the_last_bit():
    rng = random.Random(0)
    rows = [
        {k: "".join(rng.choices("ABEKIT9 '", k=rng.randint(1, 7))) for k in ("target", "ocr_text")} for _ in range(500)
    ]
    pairs = [(fold(row["target"]), fold(row["ocr_text"])) for row in rows]
    share = [max(0.0, 1.0 - distance(a, b) / len(a)) if a else float(a == b) for a, b in pairs]
    assert rewards.score(rows, "text_edit(target, ocr_text)", COLUMNS) == share
    assert rewards.score(rows, "text_exact(target, ocr_text)", COLUMNS) == [float(a == b) for a, b in pairs]
    assert rewards.score(rows, "text_contains(target, ocr_text)", COLUMNS) == [float(a in b) for a, b in pairs]


def test_scores_keep_the_order_and_drop_what_is_not_finite():
    rows = [
        {"target": "A", "x": 1.0},
        {"target": "B", "x": 0.0},
        {"target": "C", "x": None},
        {"target": "D", "x": -2.0},
    ]
    assert rewards.score(rows, "1.0 / x") == [1.0, None, None, -0.5]
    assert rewards.score(rows, "CASE WHEN x = 1 THEN 'nan'::DOUBLE ELSE 'inf'::DOUBLE END") == [None] * 4
    assert rewards.score(rows, "target = 'B'") == [0.0, 1.0, 0.0, 0.0]
    assert rewards.score(pa.Table.from_pylist(rows), "x -- as it is") == [1.0, 0.0, None, -2.0]
    assert rewards.score([], "x") == []
    many = [{"x": float(i)} for i in range(200_000)]
    assert rewards.score(many, "x + 0") == [row["x"] for row in many]


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        ("text_edit(target, ocr_txt)", "ocr_txt.*columns: target, ocr_text, target_count.*named rewards: .*text_exact"),
        ("txt_edit(target, ocr_text)", "text_edit"),
        ("avg(length(target))", "an aggregate"),
        ("target", "found type string"),
        ("target, ocr_text", "found type struct"),
        ("(1", "syntax error"),
        ("", "found"),
    ],
)
def test_a_bad_expression_is_one_line_that_names_it(reward, says):
    with pytest.raises(UsageError, match=says) as error:
        rewards.check(reward, COLUMNS)
    assert str(error.value).startswith(f"reward: {reward!r}: ") and "\n" not in str(error.value)


def test_good_expressions_pass_the_check():
    for reward in (
        "0.8*text_exact(target, ocr_text) + 0.2*text_edit(target, ocr_text)",
        "target = ocr_text",
        "count_relaxed(target_count, n_detected)",
        "1 -- comment",
    ):
        rewards.check(reward, COLUMNS)
