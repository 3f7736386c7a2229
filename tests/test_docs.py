"""The documentation is true: links lead somewhere, code runs, and the page of a recipe's keys is what the code says."""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
import types
from pathlib import Path
from typing import Any, get_args

import pytest
from ruamel.yaml import YAML

from gpo_data import recipe
from gpo_data.errors import UsageError
from gpo_data.lake import catalog
from gpo_data.recipe import Ocr, Recipe, Sampler, Task, reference
from gpo_data.tasks import TASKS
from gpo_train.settings import train_settings
from tests.parts.pages import DOCS, FENCED, ROOT, block, blocks, run, table

PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def prose(page: Path) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", FENCED.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {reference.anchor(heading) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: {link}: no such file"
        assert not anchor or anchor in anchors(file), f"{page.name}: {link}: no such heading"


def test_the_index_has_every_page() -> None:
    listed = re.findall(r"\]\(([^)]+)\)", (DOCS / "README.md").read_text())
    assert sorted(listed) == sorted(page.name for page in DOCS.glob("*.md") if page.name != "README.md")


def test_the_page_of_the_recipe_is_what_the_code_says(tmp_path: Path) -> None:
    assert (DOCS / "recipe.md").read_text() == reference.page(), "python -m gpo_data.recipe.reference > docs/recipe.md"
    (example,) = blocks("recipe.md", "yaml")
    path = tmp_path / "example.yaml"
    path.write_text(example)
    assert recipe.load(path).name == "example"
    given: dict[str, Any] = {"evaluators": ["ocr"], "reward": "1"}
    for name in reference.REQUIRED:
        with pytest.raises(UsageError, match=f"^{name}: "):
            Recipe(**{key: value for key, value in given.items() if key != name})


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "notebook"}
    for code in blocks("notebook.md"):
        run("notebook.md", code, names)
        for printed in re.findall(r"print\(.*\)  # (.*)", code):
            assert printed in capsys.readouterr().out
    assert names["sheet"].width > 64 and names["pairs"].num_rows == 16


@pytest.fixture
def own(random_sd3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe with the page's task and evaluator, which are there as the page says and nowhere else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "contrast", raising=False)
    (tmp_path / "contrast.py").write_text(block("extending.md", "def contrast"))
    monkeypatch.setitem(TASKS, "sums", run("extending.md", block("extending.md", "TASK = TaskKind"))["TASK"])
    return Recipe(
        name="own",
        model=str(random_sd3),
        group_size=3,
        groups_per_shard=2,
        task=Task("sums", num_prompts=3),
        sampler=Sampler(
            num_inference_steps=2,
            guidance_scale=1.0,
            height=64,
            width=64,
            max_sequence_length=1,
            batch_size=6,
            dtype="float32",
            device="cpu",
        ),
        ocr=Ocr(mode="recognition"),
        **YAML(typ="safe", pure=True).load(block("extending.md", "evaluators:", "yaml")),
    )


def test_a_task_of_ones_own_works_everywhere(own: Recipe, tmp_path: Path) -> None:
    from gpo_data.audit import run as audit
    from gpo_data.audit.show import grid, load_groups
    from gpo_data.generation.plan import plan
    from gpo_data.lake.lake import Lake
    from gpo_train.evaluation.evaluate import eval_recipes, members
    from gpo_train.evaluation.prompts import choose
    from gpo_train.online.iterations import summarise, write_prompts

    planned = [group for shard in plan(own) for group in shard.groups]
    assert [group.key for group in planned] == [f"sums-{i:08d}" for i in range(3)]
    drawn = Lake("lake").draw(own)
    rows = drawn.members(reward="text_exact(target, ocr_text)").to_pylist()
    assert len(rows) == 9 and all(row["exact"] == (row["reward"] == 1) for row in rows)
    for row in rows:
        terms = [int(number) for number in re.findall(r"\d+", row["prompt"])]
        assert (row["target"], row["terms"], row["level"]) == (str(sum(terms)), len(terms), len(terms))
        assert row["contrast"] > 0 and row["wordy"] == (len(row["prompt"]) > 24)
    assert len(drawn.groups(reward="contrast")) == 3  # ready to train on
    assert "terms of the sum" in audit("lake", "own").read_text()
    assert grid(load_groups(tmp_path / "lake/dataset=own")).width > 64
    assert summarise(own, "own").exact is not None
    base, policy = members(own, own, own)
    assert base == policy and {one["level"] for one in base.values()} <= {2, 3}

    kind, path = TASKS["sums"], tmp_path / "prompts.jsonl"
    write_prompts([group.prompt for group in planned], path)  # as an online run does
    again = dataclasses.replace(own.task, prompts=str(path), num_prompts=None, split="all")
    assert kind.prompts(again, 0) == [group.prompt for group in planned]
    assert kind.prompts(dataclasses.replace(own.task, num_prompts=9), 0)[:3] == kind.prompts(own.task, 0)
    sides = [
        {p.text for p in kind.prompts(dataclasses.replace(own.task, split=split, num_prompts=None), 0)}
        for split in ("train", "validation", "heldout", "all")
    ]
    assert not sides[0] & (sides[1] | sides[2]) and sides[0] | sides[1] | sides[2] == sides[3]
    chosen = choose(own, set(), tmp_path)
    assert eval_recipes(own, chosen.task, "run", tmp_path)[0].task.split == "heldout"
    assert set(chosen.keys) == {f"{p.target['target']} of {p.target['terms']}" for p in kind.prompts(chosen.task, 1000)}


def test_a_model_family_of_ones_own_draws_what_diffusers_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    from gpo_data import models
    from gpo_data.tiny.pipeline import new_tokenizer
    from tests.parts.families import PROMPTS, SAMPLER, new_autoencoder, save

    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    encoder = UMT5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    autoencoder, scheduler = new_autoencoder(scaling_factor=0.13025), FlowMatchEulerDiscreteScheduler(shift=1.73)
    save(AuraFlowPipeline(tokenizer, UMT5EncoderModel(encoder), autoencoder, transformer, scheduler), tmp_path)

    module = types.ModuleType("auraflow")
    run("extending.md", block("extending.md", "class AuraFlow"), module.__dict__)
    monkeypatch.setitem(sys.modules, "auraflow", module)
    monkeypatch.setitem(models.FAMILIES, "AuraFlowPipeline", ("auraflow", "AuraFlow"))
    plain = AuraFlowPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    for guidance_scale in (1.0, 4.0):
        model = models.load(
            tmp_path, dataclasses.replace(SAMPLER, guidance_scale=guidance_scale, max_sequence_length=12)
        )
        theirs = plain(
            PROMPTS,
            height=64,
            width=64,
            num_inference_steps=2,
            guidance_scale=guidance_scale,
            max_sequence_length=12,
            generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
            output_type="latent",
        ).images
        ours = model.draw(model.encode(PROMPTS), [1, 2])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert len(model.decode(ours)) == 2
    training = models.load(tmp_path, SAMPLER, for_training=True)
    x_0, e = torch.randn(2, 2, 4, 8, 8)
    t = training.time(torch.tensor([0.3, 0.7]))
    conditioning = {name: value.clone() for name, value in model.encode(PROMPTS).items()}
    said = training.predict(training.noise(x_0, e, t), t, conditioning)
    assert said.shape == training.target(x_0, e, t).shape


def test_an_objective_of_ones_own() -> None:
    import torch

    hinge_loss = run("extending.md", block("extending.md", "def hinge_loss"))["hinge_loss"]
    advantages = torch.tensor([1.5, -0.5, -1.0, 0.0], dtype=torch.float64)
    error_diff = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    loss = hinge_loss(error_diff, advantages)
    (gradient,) = torch.autograd.grad(loss, error_diff)
    assert loss.item() == pytest.approx(0.001) and torch.allclose(gradient, advantages.expand(2, 4) / 8)
    assert hinge_loss(-advantages.expand(2, 4), advantages).item() == 0


def test_an_objective_is_one_file_and_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from gpo_data.recipe import Train
    from gpo_data.recipe.training import Loss
    from gpo_train import objectives
    from gpo_train.objectives.terms import Terms, objective_of

    assert all(objective_of(loss) for loss in get_args(Loss))
    (tmp_path / "hinge.py").write_text(block("extending.md", '"""hinge:'))
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path)])
    advantages = torch.tensor([1.5, -0.5, -1.0, 0.0], dtype=torch.float64)
    terms = Terms(torch.tensor([0.002, 0, -0.002, 0], dtype=torch.float64), advantages)
    hinge: Any = "hinge"
    for weighting, expected in (("zscore", 0.001 + 0.005 / 4), ("max", 0.001 + 0.002)):
        made: Any = {"weighting": weighting}
        assert objective_of(hinge).loss(terms, Train(**made)).item() == pytest.approx(expected)


def test_pages_name_files_that_exist() -> None:
    """`gpo_data/tasks/base.py` and the like, where they are not an example's own."""
    examples = {"gpo_data/tasks/sums.py", "gpo_data/models/auraflow.py", "gpo_train/objectives/hinge.py"}
    named = itertools.chain.from_iterable(
        re.findall(r"`((?:gpo_data|gpo_train|tests|recipes)/[\w/.-]+\.\w+)`", page.read_text()) for page in PAGES
    )
    assert [name for name in named if name not in examples and not (ROOT / name).is_file()] == []


def test_the_house_has_the_files_that_the_page_names() -> None:
    """The tree of docs/design.md: folders by indentation, each with names of files in it."""
    folders = [Path()]
    for line in block("design.md", "gpo_data/  ", "").splitlines():
        if found := re.match(r"( *)([a-z_]+)/ ", line):
            folders = [*folders[: 1 + len(found[1]) // 2], folders[len(found[1]) // 2] / found[2]]
            assert (ROOT / folders[-1]).is_dir(), line
        for name in re.findall(r"(?<!/)\b[\w.]+\.(?:py|sql|j2)\b", line):
            assert (ROOT / folders[-1] / name).is_file(), f"{folders[-1]}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_keys_that_a_recipe_has(page: Path) -> None:
    sections = "|".join(recipe.SECTIONS)
    named = set(re.findall(rf"[` ](?:--)?((?:{sections})\.\w+)", page.read_text()))
    files = {name for name in named if name.endswith((".py", ".png", ".md"))}
    assert named - files - set(recipe.key_names(Recipe)) == set()


def test_a_recipe_of_another_trainer_loads(tmp_path: Path) -> None:
    for number, text in enumerate(blocks("coming-from.md", "yaml")):
        path = tmp_path / f"recipe-{number}.yaml"
        path.write_text(text)
        assert train_settings(recipe.load(path), "online").reference_update == "never"


def test_the_views_have_the_columns_that_the_page_names(tmp_path: Path) -> None:
    con = catalog.connect(str(tmp_path))
    for view, row in table("concepts.md", "view", "a row is"):
        columns = {name for name, *_ in con.execute(f"DESCRIBE {view}").fetchall()}
        assert set(re.findall(r"`(\w+)`", row)) <= columns, view
