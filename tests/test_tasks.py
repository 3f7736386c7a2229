"""Prompts and their targets: the grammars and the split."""

import hashlib

import pytest

from gpo_data.errors import UsageError
from gpo_data.split import held_out, part_of
from gpo_data.tasks import TASKS, classes, count, text, unseen
from gpo_data.tiny import words
from tests.parts.prompts import prompts

PARTS = ("train", "validation", "heldout")
EVERY = [(kind, grammar) for kind in TASKS for grammar in ("signs", "scenes")]


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


def test_synonyms_are_on_one_side_of_the_split():
    def key(name, **more):
        return count.key({"target_count": 3, "target_class": name} | more)

    assert key("television") == key("TV_Monitor") == key("tv") == "3 tv"
    assert key("sofa", color="red") == key("couch", color="red") == "3 red couch"
    # what was split before stays where it is, whatever its spelling
    assert [key(name) for name in ("dog", "Dog", "sports_ball", "crane")] == [
        "3 dog",
        "3 Dog",
        "3 sports_ball",
        "3 crane",
    ]
    for name in (*classes.COCO, *words.SHAPES):
        assert key(name) == f"3 {name}"


def test_words_for_things():
    for name in (*count.CLASSES, *unseen.CLASSES, "box", "wine glass", "city", "circle"):
        assert classes.singular(classes.plural(name)) == name
