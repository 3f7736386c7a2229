"""The tiny world: renderer, grammar, split, tokenizer, and the committed weights."""

import hashlib
import re

import numpy as np
import pytest

from gpo_data.split import held_out
from gpo_data.tiny import PIPELINE_DIR, YOLO_WEIGHTS, words
from gpo_data.tiny.pipeline import MAX_TOKENS, new_tokenizer, tokenize
from gpo_data.tiny.render import World, render_count, render_text, sample_scene


@pytest.mark.parametrize("task", ["text", "count"])
def test_a_scene_is_a_function_of_the_generator(task):
    first, second = (sample_scene(np.random.default_rng(3), task) for _ in range(2))
    assert first[1] == second[1] and np.array_equal(first[0], second[0])
    assert first[0].shape == (64, 64, 3) and first[0].dtype == np.uint8


def test_the_whole_world_is_drawn_as_it_was_when_the_weights_were_made():
    rng, digest = np.random.default_rng(2025), hashlib.sha256()
    for i in range(64):
        picture, caption, _ = sample_scene(rng, ("text", "count")[i % 2], held=(False, None, True)[i % 3])
        digest.update(picture.tobytes() + caption.encode())
    assert digest.hexdigest().startswith("476d1ca7fd298e04"), "other pictures, or a Pillow that rounds otherwise"


def test_a_world_says_how_much_lettering_varies():
    def drawn(world: World, word: str = "KITE") -> list[np.ndarray]:
        ground = (245, 245, 240)
        return [render_text(word, color="red", background=ground, world=world, seed=s) for s in range(300)]

    for world, expected in (
        (World(1, 1, "columns", 0), 1),
        (World(3, 1, "columns", 0), 3),
        (World(3, 2, "free", 0), 6),
    ):
        assert len({picture.tobytes() for picture in drawn(world)}) == expected
    # In fixed columns the K of KITE and of KITED looks the same; the rest of the sign is not looked at.
    long, short = drawn(World(1, 1, "columns", 0))[0], drawn(World(1, 1, "columns", 0), "KITED")[0]
    assert np.array_equal(long[:, 2:14], short[:, 2:14])
    assert len({picture.tobytes() for picture in drawn(World())}) > 100


def test_a_world_may_be_without_letters_and_numbers():
    rng, world = np.random.default_rng(0), World(without="AEQ46")
    for _ in range(200):
        _, _, target = sample_scene(rng, "text", world=world)
        assert {*"AEQ"}.isdisjoint(target["word"])
        _, _, target = sample_scene(rng, "count", world=world)
        assert target["n"] in (1, 2, 3, 5)
    with pytest.raises(ValueError, match="level 6: not in a world without AEQ46"):
        sample_scene(rng, "count", level=6, world=world)
    for wrong in ("q", "7", "6Q", "123456"):
        with pytest.raises(ValueError, match="without: expected up to eight letters"):
            World(without=wrong)


def test_captions_are_of_the_grammar():
    rng = np.random.default_rng(0)
    for _ in range(200):
        _, text, _ = sample_scene(rng, "text")
        assert re.fullmatch(r'a [a-z]+ sign that says "[A-Z]{2,5}"', text)
        _, count, target = sample_scene(rng, "count")
        plural = "s" if target["n"] > 1 else ""
        number = words.NUMBERS[target["n"] - 1]
        assert count == f"{number} {target['color']} {target['shape']}{plural}"


def test_shapes_do_not_touch_and_boxes_hold_them():
    rng = np.random.default_rng(1)
    for shape in words.SHAPES:
        for _ in range(30):
            picture, boxes = render_count(shape, 6, "black", rng)
            assert len(boxes) == 6
            ink = (picture.max(axis=2) < 100).astype(int)
            for x0, y0, x1, y1 in boxes:
                assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64
                ink[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = 0
            assert ink.sum() == 0
            for i, a in enumerate(boxes):
                for b in boxes[:i]:
                    centres = np.hypot((a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2)
                    assert centres > max(a[2] - a[0], a[3] - a[1])


def test_outside_the_grammar_is_refused():
    for word in ("A", "ABCDEF", "kite", "K1TE"):
        with pytest.raises(ValueError, match="2 to 5 letters"):
            render_text(word, color="red", seed=0)
    with pytest.raises(ValueError, match="expected one of red"):
        render_text("KITE", color="mauve", seed=0)
    with pytest.raises(ValueError, match="1 to 6"):
        render_count("circle", 7, "red", np.random.default_rng(0))


def test_training_never_sees_what_is_held_out():
    rng = np.random.default_rng(2)
    for _ in range(300):
        assert not held_out(words.sample_word(rng))
        assert held_out(words.sample_word(rng, held=True))
        assert not held_out(words.count_key(*words.sample_count(rng)))
    for n in range(1, 7):
        keys = [words.count_key(n, c, s) for c in words.COLORS for s in words.SHAPES]
        assert any(map(held_out, keys)), f"no held-out prompt for a count of {n}"


def test_letters_are_tokens_of_their_own_and_words_one_token():
    tokenizer = new_tokenizer()
    ids = tokenize(tokenizer, ['a red sign that says "ZEBRA"'])[0]
    expected = ["<start>", "a", "red", "sign", "that", "says", '"', *"ZEBRA", '"', "<end>"]
    assert tokenizer.convert_ids_to_tokens(ids.tolist()) == expected
    assert len(expected) == MAX_TOKENS
    for caption in ('a teal sign that says "QX"', "one red circle", "six purple triangles", ""):
        assert tokenizer.unk_token_id not in tokenize(tokenizer, [caption])[0]


def test_the_pipeline_folder_opens_and_draws():
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(PIPELINE_DIR)
    pipe.set_progress_bar_config(disable=True)
    image = pipe('a red sign that says "KITE"', num_inference_steps=4, guidance_scale=2.0).images[0]
    assert image.size == (64, 64)
    assert np.asarray(image).std() > 5


def test_the_detector_counts_rendered_pictures():
    from ultralytics import YOLO

    from gpo_data.tiny.reading import count_shapes

    rng = np.random.default_rng(4)
    drawn = [sample_scene(rng, "count", held=True) for _ in range(50)]
    shapes = [target["shape"] for _, _, target in drawn]
    numbers = count_shapes(np.stack([d[0] for d in drawn]), YOLO(str(YOLO_WEIGHTS)), shapes)
    assert sum(n == d[2]["n"] for n, d in zip(numbers, drawn, strict=True)) >= 45


def test_the_recogniser_reads_rendered_words():
    from gpo_data.tiny.reading import read_words

    rng = np.random.default_rng(5)
    drawn = [sample_scene(rng, "text", held=True) for _ in range(40)]
    read = read_words(np.stack([d[0] for d in drawn]))
    assert sum(w == d[2]["word"] for w, d in zip(read, drawn, strict=True)) >= 38
