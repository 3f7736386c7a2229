"""Prompts of the user's own: sentences, tables and data sets, and what is wrong with them."""

import csv
import io
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpo_data.errors import UsageError
from gpo_data.recipe import Task
from gpo_data.split import part_of
from gpo_data.tasks import TASKS, count, extras, quotes, sources
from tests.parts.prompts import prompts

PARTS = ("train", "validation", "heldout")


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ('a neon sign that reads "Open Late" at night', "Open Late"),
        ("a cup with “Café” on it", "Café"),
        ('a "red" door that says "Pull"', "red\nPull"),
    ],
)
def test_a_text_line_has_its_target_in_quotes(tmp_path, line, target):
    path = tmp_path / "own.txt"
    path.write_text(line + "\n\n", encoding="utf-8")
    (prompt,) = prompts(kind="text", prompts=str(path), num_prompts=None, split="all")
    assert (prompt.text, prompt.target) == (line, {"target": target})


@pytest.mark.parametrize(
    ("line", "name", "number"),
    [
        ("a photo of three small brown dogs on a beach", "dog", 3),
        ("5 teddy bears, on a bed", "teddy bear", 5),
        ("two people walking", "person", 2),
        ("One red circle.", "circle", 1),
    ],
)
def test_a_count_line_has_a_number_and_things(tmp_path, line, name, number):
    path = tmp_path / "own.txt"
    path.write_text(line, encoding="utf-8")
    (prompt,) = prompts(kind="count", prompts=str(path), num_prompts=None, split="all")
    assert prompt.target == {"target_class": name, "target_count": number}


@pytest.mark.parametrize(
    ("kind", "name", "content", "message"),
    [
        ("text", "a.txt", 'a sign "A"\na sign without\n', r"a\.txt:2: no target.*double quotes"),
        ("text", "a.txt", 'a sign ""\n', r"a\.txt:1: an empty quote"),
        ("text", "a.txt", 'a sign "A\n', r"a\.txt:1: a quote that does not end, '\"A'"),
        ("text", "a.txt", "a 'B' and \"A\"\n", r"two kinds of quotes.*'A' in double and 'B' in single"),
        ("text", "a.csv", "prompt,target\na,A\nb,\n", r"a\.csv:3: target is empty"),
        ("text", "a.csv", "prompt,target\na,A,\n", r"a\.csv:2: expected 2 fields.*found 3"),
        (
            "text",
            "a.jsonl",
            '{"prompt": "a \\ud800", "target": "A"}\n',
            r":1: prompt: character 3 is half of a surrogate",
        ),
        ("count", "a.txt", "two or three dogs\n", r":1: two numbers: 'two or three'"),
        ("count", "a.txt", "two cats and five dogs\n", r":1: several things.*2 cat, 5 dog.*task\.kind compose"),
        ("count", "a.txt", "zero dogs\n", r":1: the number: expected a whole number, 1 to 10,000, found 0"),
        ("count", "a.tsv", "prompt\ttarget\tclass\na\t20000\tcat\n", r"a\.tsv:2: target: .*found 20,000"),
        ("count", "a.txt", "two cats\n\nsome cats\n", r"a\.txt:3: no target"),
        ("text", "a.txt", "\n\n", r"a\.txt: no prompts"),
        ("text", "a.txt", 'a "A"\nb "B"\na "A"\n', r"a\.txt:3: the same prompt as .*a\.txt:1"),
        ("text", "a.jsonl", '{"prompt": "a", "target": "A"}\n{"prompt": "b"}\n', r"a\.jsonl:2: no 'target'.*prompt"),
        ("text", "a.jsonl", '{"prompt": "a"\n', r"a\.jsonl:1: not JSON"),
        ("count", "a.jsonl", '{"prompt": "a", "target": "3", "class": "cat"}\n', r":1: target: expected a whole"),
        ("count", "a.jsonl", '{"prompt": "a", "target": 3}\n', r":1: no 'class'.*task\.class_column"),
        ("text", "a.xml", "x\n", r"a\.xml: expected a file that ends in \.txt, \.csv"),
        ("text", "a.json", '{"a": 1}', r"a\.json: expected a list of objects"),
    ],
)
def test_a_bad_line_is_an_error_with_its_number(tmp_path, kind, name, content, message):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        prompts(kind=kind, prompts=str(path), num_prompts=None, split="all")


def test_a_missing_file_is_an_error():
    with pytest.raises(UsageError, match=r"task\.prompts: nowhere\.txt: no such file"):
        prompts(kind="text", prompts="nowhere.txt")


def test_json_lines_with_named_columns(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [{"caption": f"{n} red cats", "n": n, "thing": "cat"} for n in range(1, 9)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    spec = dict(kind="count", prompts=str(path), prompt_column="caption", target_column="n", class_column="thing")
    every = prompts(**spec, num_prompts=None, split="all")
    assert [p.target for p in every] == [{"target_class": "cat", "target_count": n} for n in range(1, 9)]
    sides = [
        prompts(**spec, num_prompts=None, split=s) for s in PARTS if any(part_of(f"{n} cat") == s for n in range(1, 9))
    ]
    assert sorted(p.text for side in sides for p in side) == sorted(p.text for p in every)
    with pytest.raises(UsageError, match=r"task\.num_prompts: expected at most 8"):
        prompts(**spec, num_prompts=9, split="all")


def test_a_folder_of_datasets(tmp_path):
    rows = {"prompt": ['a sign "A"', 'a sign "B"'], "target": ["A", "B"]}
    folder = str(tmp_path / "saved")
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)}).save_to_disk(folder)
    found = prompts(kind="text", prompts=folder, num_prompts=None, split="all")
    assert [p.target["target"] for p in found] == ["A", "B"]
    with pytest.raises(UsageError, match=r"task\.dataset_split: .* has train, not 'test'"):
        prompts(kind="text", prompts=folder, num_prompts=None, split="all", dataset_split="test")


def test_a_data_set_that_does_not_open_says_what_to_put_where(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"task\.prompts: no-body/no-prompts: .*save_to_disk\(folder\)"):
        prompts(kind="text", prompts="no-body/no-prompts")


COUNTED = [
    ("a 3D render of five dogs", "dog", 5),
    ("a 1920s street with three cars", "car", 3),
    ("two large, fluffy cats", "cat", 2),
    ("five red and blue balls", "sports ball", 5),
    ("two cats sleep on a couch", "cat", 2),
    ("two pairs of scissors", "scissors", 2),
    ("two dogs' bowls", "bowl", 2),
    ("three birds’ nests and a tree", "nest", 3),
    ("two people's umbrellas", "umbrella", 2),
    ("a pair of dogs", "dog", 2),
    ("a dozen apples", "apple", 12),
    ("half a dozen oranges", "orange", 6),
    ("twenty-one birds", "bird", 21),
    ("a bench", "bench", 1),
    ("1,000 paper cranes", "crane", 1000),
    ("three televisions in a shop", "tv", 3),
    ("an orange cat", "cat", 1),
    ("a two-story house with six clocks", "clock", 6),
    ("five dogs, one of them brown", "dog", 5),
    ("half dozen oranges", "orange", 6),
    ("7 dogs around a poker table, two of which turn away", "dog", 7),
    ("two dogs in one of the rooms", "dog", 2),
    ("a one of a kind vase with two dogs", "dog", 2),
    ("a Boeing 747 and two trucks", "truck", 2),
    ("room 5, two dogs", "dog", 2),
    ("a blue 1977 Porsche 911 and two men", "person", 2),
    ("a five star hotel and two cats", "cat", 2),
    ("a 3 x 3 grid of nine cats", "cat", 9),
    ("a clock that reads 11:44 and two dogs", "dog", 2),
    ("a 24/7 shop with two dogs", "dog", 2),
    ("a train station with two trains", "train", 2),
    ("a bench in a train station", "bench", 1),
]


@pytest.mark.parametrize(("line", "name", "number"), COUNTED)
def test_the_number_belongs_to_what_is_counted(line, name, number):
    assert count.from_sentence(line) == {"target_class": name, "target_count": number}


REFUSED = ["at least five dogs", "two groups of dogs", "two large", "2 to 3 cats", "some cats", "a train station"]


@pytest.mark.parametrize("line", REFUSED)
def test_a_sentence_that_counts_nothing_certain_is_refused(line):
    with pytest.raises(ValueError, match=r"no one number|how many|no target|two numbers"):
        count.from_sentence(line)


BARE = [
    ("two red and three blue balls", "two red and three"),
    ("two orange and three black cats", "two orange and three"),
    ("two red and a blue ball", "two red and a"),
    ("two goldfish and three vases", "two goldfish and three"),
    ("three of the five dogs", "three of the five"),
    ("one of the five dogs", "one of the five"),
    ("two of those five dogs", "two of those five"),
    ("9 out of 10 dogs", "9 out of 10"),
    ("two of the dogs and three cats", "two of the"),
    ("1,5 dogs", "1 , 5"),
    ("a photo of only 1,5 dogs", "1 , 5"),
    ("two, three dogs", "two , three"),
    ("between 5 and 10 dogs", "5 and 10"),
    ("½ dozen eggs", "½ dozen"),
    ("½ a dozen eggs", "½ a dozen"),
    ("1/2 dozen eggs", "1/2 dozen"),
    ("2.5 dozen eggs", "2.5 dozen"),
]


@pytest.mark.parametrize(("line", "shown"), BARE)
def test_a_number_without_things_is_no_number_of_the_next_things(line, shown):
    with pytest.raises(ValueError, match=f"no (things after a|whole) number: '{shown}' in '{line}'; "):
        count.from_sentence(line)


QUOTED = [
    ("a sign ‘Don’t walk’ now", ["Don’t walk"]),
    ("a sign 'Open' by the dogs' bowl", ["Open"]),
    ("ein Schild „Offen“ und »Zu«", ["Offen", "Zu"]),
    ("「営業中」 sign", ["営業中"]),
    ('a 27" monitor that says "Hello"', ["Hello"]),
    ('the number "27" on a door', ["27"]),
    ('a ""Open"" sign', ["Open"]),
    (r"a \"Open\" sign", ["Open"]),
    ("it's a dog's life, rock 'n' roll", []),
    ('"A", "B" and "A"', ["A", "B", "A"]),
    ("a poster from the '90s that reads 'Rave'", ["Rave"]),
    ("a poster 'Rave' from the '90s", ["Rave"]),
    ("a sign that says '90s Music'", ["90s Music"]),
    ("'Tis the season: a card that says 'Merry'", ["Merry"]),
    ("a '67 Mustang with the plate 'GT 500'", ["GT 500"]),
    ("the ‘Open’ and 'Closed' signs", ["Open", "Closed"]),
]


def test_a_quote_in_a_quote_is_refused():
    with pytest.raises(
        ValueError, match="a quote that begins twice: \"rock 'n\" or 'n'; put the words .* double quotes"
    ):
        quotes.quoted("a sign that says 'rock 'n' roll'")


@pytest.mark.parametrize(("line", "texts"), QUOTED)
def test_quotes_of_all_kinds(line, texts):
    assert quotes.quoted(line) == texts


ROWS = [
    {"Prompt": 'a sign "A", old', "tag": "x", "page": 1, "why": [1, 2]},
    {"Prompt": 'a "B"', "tag": "y", "page": 2.5},
]
EXTRA = [{"target": "A", "tag": "x", "page": 1.0, "why": "[1, 2]"}, {"target": "B", "tag": "y", "page": 2.5}]


def as_table(rows, delimiter):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return "\ufeff" + text.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", as_table(ROWS, ",")),
        ("a.TSV", as_table(ROWS, "\t")),
        ("a.json", json.dumps(ROWS)),
        ("b.json", json.dumps({"version": 1, "data": ROWS})),
        ("a.ndjson", "\r\n".join(map(json.dumps, ROWS))),
        ("a.JSONL", "\n".join(map(json.dumps, ROWS))),
    ],
)
def test_every_column_of_a_file_travels(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode())
    found = prompts(kind="text", prompts=str(path), num_prompts=None, split="all")
    assert [p.text for p in found] == [row["Prompt"] for row in ROWS]
    assert [p.target for p in found] == EXTRA
    types = {name: str(kind) for name, kind in extras.types_of(found, {}).items()}
    assert types == {"page": "double", "tag": "string", "target": "string", "why": "string"}


def test_parquet_and_pictures_that_nobody_asked_for(tmp_path):
    broken = {"bytes": b"no picture", "path": None}
    table = pa.Table.from_pylist([{"prompt": 'a "A"', "image": broken, "seed": 3}, {"prompt": 'a "B"', "image": None}])
    pq.write_table(table, tmp_path / "a.parquet")
    found = prompts(kind="text", prompts=str(tmp_path / "a.parquet"), num_prompts=None, split="all")
    assert [p.target for p in found] == [{"target": "A", "row_seed": 3}, {"target": "B"}]
    features = datasets.Features({"prompt": datasets.Value("string"), "image": datasets.Image()})
    saved = datasets.Dataset.from_dict({"prompt": ['a "A"'], "image": [broken]}, features=features)
    saved.save_to_disk(str(tmp_path / "saved"))
    (one,) = prompts(kind="text", prompts=str(tmp_path / "saved"), num_prompts=None, split="all")
    assert one.target == {"target": "A"}


def test_a_folder_of_text_files(tmp_path):
    for name, line in (("10.txt", "a dog\n"), ("9.txt", "a cat\n")):
        (tmp_path / name).write_text(line)
    found = prompts(kind="align", prompts=str(tmp_path), num_prompts=None, split="all")
    assert [(p.text, p.target) for p in found] == [("a cat", {"file": "9"}), ("a dog", {"file": "10"})]


def test_all_problems_are_one_message(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"sign {i}\n" for i in range(12)) + 'a "B"\n')
    with pytest.raises(UsageError) as caught:
        prompts(kind="text", prompts=str(path), num_prompts=None, split="all")
    lines = str(caught.value).split("\n")
    assert "12 problems; the first 10" in lines[0] and len(lines) == 11
    assert "a.txt:1: no target" in lines[1] and "a.txt:10: no target" in lines[10]


def test_prompts_that_occur_twice_are_dropped_or_merged(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,question,n\na dog,is it a dog?,1\na cat,is it a cat?,1\na dog,is it one?,1\n")
    spec = dict(kind="align", prompts=str(path), num_prompts=None, split="all")
    with pytest.raises(
        UsageError, match=r"a\.csv:4: the same prompt as .*a\.csv:2; delete one, or set task\.duplicates"
    ):
        prompts(**spec)
    assert [p.target["question"] for p in prompts(**spec, duplicates="drop")] == ["is it a dog?", "is it a cat?"]
    merged = prompts(**spec, duplicates="merge")
    assert [p.target["question"] for p in merged] == ['["is it a dog?", "is it one?"]', "is it a cat?"]
    assert [p.target["row_n"] for p in merged] == [1, 1]
    assert sources.read(Task(**spec, duplicates="drop")).repeated == 1


def test_a_list_of_texts_is_a_target(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "a shop", "text": ["Open", "All day"], "length": 2}))
    (one,) = prompts(kind="text", prompts=str(path), num_prompts=None, split="all", target_column="text")
    assert one.target == {"target": "Open\nAll day", "length": 2}


def test_a_folder_of_text_files_may_have_any_names(tmp_path):
    names = ("9.txt", "10.txt", "a.txt", "²1.txt")  # a superscript is a digit, and no number
    for name in names:
        (tmp_path / name).write_text(f"a picture called {name}")
    found = TASKS["align"].prompts(Task("align", prompts=str(tmp_path), num_prompts=None, split="all"), 0)
    assert [p.text.split()[-1] for p in found] == list(names)


def test_a_column_of_another_type_than_a_tasks_has_a_name_of_its_own(tmp_path):
    """Else one dataset's `aspect` of numbers would make the lake's column of texts unreadable."""
    path = tmp_path / "own.csv"
    path.write_text("prompt,target,aspect,color,target_count\na,AB,1.5,1,3\nb,CD,0.5,2,4\n")
    found = prompts(kind="text", prompts=str(path), num_prompts=None, split="all")
    assert found[0].target == {"target": "AB", "row_aspect": 1.5, "row_color": 1, "target_count": 3}


def test_two_columns_of_one_name_are_a_problem(tmp_path):
    same, both = tmp_path / "same.csv", tmp_path / "both.csv"
    same.write_text("prompt,target,Category,category\na,AB,A,A\n")
    (found,) = prompts(kind="text", prompts=str(same), num_prompts=None, split="all")
    assert found.target == {"target": "AB", "category": "A"}
    both.write_text("prompt,target,color,row_color\na,AB,1,mine\n")
    with pytest.raises(UsageError, match="columns color, row_color would both be row_color"):
        prompts(kind="text", prompts=str(both), num_prompts=None, split="all")
    path = tmp_path / "own.csv"
    path.write_text("prompt,target,Category,category\na,AB,A,B\n")
    with pytest.raises(UsageError, match="columns Category, category would all be category"):
        prompts(kind="text", prompts=str(path), num_prompts=None, split="all")


def test_prompts_may_lie_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.txt").write_text('a sign that says "AB"\n')
    (found,) = prompts(kind="text", prompts="~/own.txt", num_prompts=None, split="all")
    assert found.target["target"] == "AB"
