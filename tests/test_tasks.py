"""Prompts and their targets: the grammars, the split, and sources of the user's own."""

import csv
import hashlib
import io
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpo_data.errors import UsageError
from gpo_data.recipe import Task
from gpo_data.split import held_out, part_of
from gpo_data.tasks import TASKS, classes, count, extras, quotes, sources, text, unseen
from gpo_data.tiny import words

PARTS = ("train", "validation", "heldout")
EVERY = [(kind, grammar) for kind in TASKS for grammar in ("signs", "scenes")]


def prompts(seed=0, **spec):
    task = Task(**spec)
    return TASKS[task.kind].prompts(task, seed)


@pytest.mark.parametrize(("kind", "grammar"), EVERY)
def test_prompts_are_distinct_seeded_and_grow(kind, grammar):
    many = prompts(kind=kind, grammar=grammar, num_prompts=100)
    assert len({p.text for p in many}) == len({p.prompt_id for p in many}) == 100
    assert many[:20] == prompts(kind=kind, grammar=grammar, num_prompts=20)
    assert many[:20] != prompts(1, kind=kind, grammar=grammar, num_prompts=20)
    for prompt in many:
        assert set(prompt.target) <= set(TASKS[kind].columns)


@pytest.mark.parametrize(("kind", "grammar"), [pair for pair in EVERY if pair[0] != "align"])
def test_the_sides_of_the_split_share_no_target(kind, grammar):
    keys = {}
    for split in PARTS:
        keys[split] = {TASKS[kind].key(p) for p in prompts(kind=kind, grammar=grammar, num_prompts=9, split=split)}
        assert {part_of(key) for key in keys[split]} == {split}
        assert {held_out(key) for key in keys[split]} == {split != "train"}
    assert len(set.union(*keys.values())) == sum(map(len, keys.values()))


@pytest.mark.parametrize(("kind", "grammar"), EVERY)
def test_a_task_knows_the_key_that_its_split_hashes(kind, grammar):
    for split in PARTS:
        for p in prompts(kind=kind, grammar=grammar, num_prompts=9, split=split):
            assert part_of(TASKS[kind].key(p)) == split


# Digests of the first prompts of seeds 0 to 2: what a recipe trains on does not change.
TRAINED_ON = {
    ("text", "signs", 256): "6802a648a3078521",
    ("count", "signs", None): "0147f6851baa9316",
    ("text", "scenes", 512): "d2ebaf6eeaba5273",
    ("count", "scenes", 512): "b11880c2618a2370",
    ("align", "scenes", 512): "bdec634678689571",
    ("align", "signs", None): "0147f6851baa9316",
}


@pytest.mark.parametrize(("kind", "grammar", "number"), TRAINED_ON)
def test_training_prompts_are_what_they_were(kind, grammar, number):
    state = hashlib.blake2b(digest_size=8)
    for seed in range(3):
        for p in prompts(seed, kind=kind, grammar=grammar, num_prompts=number):
            state.update(f"{p.text}\t{sorted(p.target.items())}\n".encode())
    assert state.hexdigest() == TRAINED_ON[kind, grammar, number]


def test_signs_are_the_tiny_worlds_captions():
    for p in prompts(kind="text", num_prompts=30):
        assert p.text == words.text_caption(p.target["color"], p.target["target"])
    for p in prompts(kind="count", num_prompts=30):
        t = p.target
        assert p.text == words.count_caption(t["target_count"], t["color"], t["target_class"])


def test_scenes_are_thousands():
    assert len(prompts(kind="text", grammar="scenes", num_prompts=None)) > 10_000
    assert len(prompts(kind="count", grammar="scenes", num_prompts=None)) > 1_000
    assert not any(text.key({"target": w.upper()}) != text.key({"target": w}) for w in text.WORDS)


def test_scenes_have_targets_enough_to_evaluate_with():
    words = {
        split: {text.key(p.target) for p in prompts(grammar="scenes", num_prompts=None, split=split)} for split in PARTS
    }
    assert {split: len(found) for split, found in words.items()} == {"train": 119, "validation": 104, "heldout": 203}
    assert not words["train"] & {text.key({"target": word}) for word in unseen.WORDS}
    every = [p.target for p in prompts(kind="count", grammar="scenes", num_prompts=None, split="all")]
    assert len({t["target_class"] for t in every}) == len({*count.CLASSES, *unseen.CLASSES}) == 65
    assert all(held_out(count.key(t)) for t in every if t["target_class"] in unseen.CLASSES)


def test_more_prompts_than_there_are_names_the_key_and_the_number():
    there = len(prompts(kind="count", num_prompts=None))
    held = [len(prompts(kind="count", num_prompts=None, split=split)) for split in ("validation", "heldout")]
    assert (there, *held) == (118, 9, 17)
    with pytest.raises(UsageError, match=rf"task\.num_prompts: expected at most {there}.*found 200"):
        prompts(kind="count", num_prompts=200)
    with pytest.raises(UsageError, match=r"task\.num_prompts.*give a number"):
        prompts(kind="text", num_prompts=None)


def test_words_for_things():
    for name in (*count.CLASSES, *unseen.CLASSES, "box", "wine glass", "city", "circle"):
        assert classes.singular(classes.plural(name)) == name


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
]


@pytest.mark.parametrize(("line", "name", "number"), COUNTED)
def test_the_number_belongs_to_what_is_counted(line, name, number):
    assert count.from_sentence(line) == {"target_class": name, "target_count": number}


@pytest.mark.parametrize("line", ["at least five dogs", "two groups of dogs", "two large", "2 to 3 cats", "some cats"])
def test_a_sentence_that_counts_nothing_certain_is_refused(line):
    with pytest.raises(ValueError, match=r"no one number|how many|no target|two numbers"):
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
]


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
