"""The unconditional embedding: stored once a shard, asked by caption dropout, and the other half of guidance."""

from __future__ import annotations

import csv
import dataclasses
import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image
from rich.console import Console

from gpo_data import cli, models, recipe
from gpo_data.errors import RunError, UsageError
from gpo_data.generation.generate import draw
from gpo_data.group import from_sample, to_sample
from gpo_data.lake.lake import Lake
from gpo_data.lake.manifest import read_manifest
from gpo_data.lake.reader import Reader, TrainGroup
from gpo_data.lake.verify import verify
from gpo_data.parts import UNCONDITIONAL, Damage
from gpo_train import cli as train_cli
from gpo_train.fit import fit
from gpo_train.noise import epoch_noise, sample_noise
from gpo_train.policy import Policy
from gpo_train.settings import train_settings
from tests.conftest import TRAIN, killed_at, lake_drawn, recipe_beside
from tests.parts.families import build
from tests.parts.training import equal, module_of, train, weights_of

STORED = ["--sampler.store_unconditional", "true"]
BOTH = ["--train.caption_dropout", "0.5", "--train.guidance_scale", "3.0"]


@pytest.fixture(scope="session")
def stored_lake(tmp_path_factory: pytest.TempPathFactory, random_sd3: Path) -> Path:
    """The lake of `drawn_lake` with unconditional embeddings."""
    return lake_drawn(tmp_path_factory.mktemp("stored"), random_sd3, STORED)


@pytest.fixture
def there(stored_lake: Path, tmp_path: Path, random_sd3: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`here` with unconditional embeddings."""
    monkeypatch.chdir(tmp_path)
    return recipe_beside(shutil.copytree(stored_lake, tmp_path / "lake"), random_sd3)


def files_of(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]


def groups_of(path: Path) -> Reader:
    return Lake(recipe.load(path).lake)["small"].groups(unconditional=True)


def test_it_is_in_the_first_group_of_each_shard_and_nothing_else_changes(
    drawn_lake: Path, stored_lake: Path, random_sd3: Path
) -> None:
    plain = recipe.load(drawn_lake.parent / "small.yaml")
    assert not any("unconditional" in name for name in plain.fingerprint_fields())
    model = models.load(random_sd3, plain.sampler)
    expected = {name: value[0] for name, value in model.encode([""]).items()}
    tars = sorted(stored_lake.glob("dataset=small/shard-*.tar"))
    for tar in tars:
        found, before = files_of(tar), files_of(drawn_lake / "dataset=small" / tar.name)
        added = sorted(found.keys() - before.keys())
        assert added == [f"{min(before).partition('.')[0]}.{UNCONDITIONAL}"]
        assert all(found[name] == data for name, data in before.items())
        assert equal(safetensors.torch.load(found[added[0]]), expected)
    report = verify(stored_lake / "dataset=small")
    assert len(tars) == 3 and not report.problems and report.groups == 6
    reader = groups_of(stored_lake.parent / "small.yaml")
    group = reader[3]
    assert group.unconditional is not None and equal(group.unconditional, expected)
    assert group.to("cpu").unconditional is not None
    assert Lake(str(stored_lake))["small"].groups()[3].unconditional is None
    assert [one.key for one in reader[4:9]] == [reader[4].key, reader[5].key] and reader[-1].key == reader[5].key


def test_a_shard_that_lost_it_is_damaged_and_drawn_again(there: Path, drawn_lake: Path) -> None:
    folder = Path("lake/dataset=small")
    for name in ("shard-000000.tar", "shard-000000.parquet"):
        shutil.copy(drawn_lake / "dataset=small" / name, folder)
    sidecar = folder / "shard-000000.parquet"
    table = pq.read_table(sidecar)  # as if it were of this dataset
    footer = table.schema.metadata | {b"fingerprint": read_manifest(folder).fingerprint.encode()}
    pq.write_table(table.replace_schema_metadata(footer), sidecar, write_page_checksum=True)
    (problem,) = verify(folder).problems
    assert f"text-00000000: no {UNCONDITIONAL}, which dataset.json says" in problem[1]
    with pytest.raises(RunError, match=f"shard-000000.tar: damaged .* expected {UNCONDITIONAL}"):
        groups_of(there)[0]
    assert cli.main(["verify", str(there), *STORED, "--repair"]) == 0
    draw(recipe.load(there, STORED), Console(quiet=True))
    assert not verify(folder).problems


def test_tensors_that_do_not_fit_the_prompts_are_damage(there: Path) -> None:
    group = groups_of(there)._firsts["small"].group()
    assert group.unconditional is not None
    for wrong in ({"prompt_embeds": torch.zeros(1, 2)}, {"pooled_prompt_embeds": torch.zeros(128)}):
        sample = to_sample(dataclasses.replace(group, unconditional=wrong))
        with pytest.raises(Damage, match=f"{UNCONDITIONAL}: expected prompt_embeds"):
            from_sample(sample)


def test_samples_are_dropped_for_all_members_and_the_noise_stays(there: Path) -> None:
    made, group = recipe.load(there), groups_of(there)[1]
    model = models.load(Path(made.model), made.sampler)

    def noise(epoch: int, *extra: str):
        settings = train_settings(recipe.load(there, ["--train.timesteps_per_image", "400", *extra]))
        small = dataclasses.replace(group, latents=group.latents[:, :1, :1, :1])
        return epoch_noise(model, settings, 0, epoch, small)

    plain, some = noise(0), noise(0, "--train.caption_dropout", "0.2")
    assert plain.dropped is None and torch.equal(plain.u, some.u) and torch.equal(plain.e, some.e)
    assert some.dropped is not None and some.dropped.shape == (400,) and 50 < some.dropped.sum() < 110
    again, later = noise(0, "--train.caption_dropout", "0.2"), noise(1, "--train.caption_dropout", "0.2")
    assert torch.equal(again.dropped, some.dropped) and not torch.equal(later.dropped, some.dropped)
    more = noise(0, "--train.caption_dropout", "0.6", "--train.shared_noise", "false")
    assert (more.dropped | ~some.dropped).all()  # those of a smaller share are among them


def test_predictions_are_those_of_the_halves(there: Path, tmp_path: Path) -> None:
    """Policy, reference and gradient, by hand: a dropped sample is f(u), another f(u) + w (f(c) - f(u))."""
    group = groups_of(there)[0]
    module = module_of(there, tmp_path, "--train.reference", "frozen", *BOTH)
    policy = module.policy
    noise = dataclasses.replace(module.noise_of(0, group), dropped=torch.tensor([True, False]))
    found = policy.compared(group, noise)
    assert group.unconditional is not None and policy.frozen is not None
    nobody = dataclasses.replace(group, conditioning=group.conditioning | group.unconditional)
    plain = module_of(there, tmp_path, "--train.reference", "frozen").policy  # the same weights, no guidance
    x = dataclasses.replace(noise, dropped=None)
    ours, theirs = ([policy_said(plain, one, x, f) for one in (nobody, group)] for f in (plain.denoiser, policy.frozen))
    target = plain._asked(group, x, slice(None)).target
    mixed = [torch.cat([u[:4], (u + 3.0 * (c - u))[4:]]) for u, c in (ours, theirs)]
    error, reference = (((target - one) ** 2).flatten(1).mean(1) for one in mixed)
    assert found.reference is not None
    torch.testing.assert_close(found.reference, reference, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.s, error - reference, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.distance, ((mixed[0] - mixed[1]) ** 2).flatten(1).mean(1), rtol=1e-3, atol=1e-7)
    found.s.sum().backward()
    error.sum().backward()
    for mine, other in zip(policy.trainable(), plain.trainable(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4 * float(other.grad.abs().max()))
    with pytest.raises(UsageError, match="expected the dataset's unconditional embedding beside"):
        policy.errors(dataclasses.replace(group, unconditional=None), noise)


def policy_said(policy: Policy, group: TrainGroup, noise, denoiser: torch.nn.Module) -> torch.Tensor:
    return policy._predict(denoiser, policy._asked(group, noise, slice(None)))


@pytest.mark.parametrize("extra", [["--train.loss", "nft"], ["--train.objective", "sft"]], ids=" ".join)
def test_the_gradient_does_not_depend_on_the_micro_batch(there: Path, tmp_path: Path, extra: list[str]) -> None:
    group, gradients = groups_of(there)[0], []
    module = module_of(there, tmp_path, "--train.reference", "frozen", "--train.beta", "10", *BOTH, *extra)
    for size in (80, 4, 3):
        module.settings = dataclasses.replace(module.settings, micro_batch_size=size)
        module.zero_grad()
        module.group_backward(group)
        gradients.append(torch.cat([p.grad.flatten() for p in module.policy.trainable() if p.grad is not None]))
    assert (dropped := module.noise_of(0, group).dropped) is not None and dropped.tolist() in (
        [True, False],
        [False, True],
    )
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-3, atol=1e-4 * float(gradients[0].abs().max()))


def test_stored_errors_equal_a_frozen_reference_and_a_killed_run_goes_on(there: Path) -> None:
    extra = [*BOTH, "--train.epochs", "1"]
    with killed_at(2):
        train(there, *extra, name="stored")
    stored = weights_of(train(there, *extra, name="stored"))
    frozen = weights_of(train(there, *extra, "--train.reference", "frozen", name="frozen"))
    for name in stored:
        torch.testing.assert_close(stored[name], frozen[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_lora_is_trained_with_guidance_and_dropout_and_moves_otherwise(there: Path) -> None:
    lora = [
        "--train.tuning",
        "lora",
        "--train.reference",
        "adapters",
        "--train.kl",
        "0.5",
        "--train.learning_rate",
        "0.01",
    ]
    both, plain = (weights_of(train(there, *lora, *more, name=f"l{len(more)}")) for more in (BOTH, []))
    assert any((both[name] - plain[name]).abs().max() > 1e-3 for name in both)


def test_imported_pictures_have_it_where_asked(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(4):
        Path("own").mkdir(exist_ok=True)
        Image.effect_noise((64, 64), 40 + 30 * i).save(f"own/{i}.png")
        Path(f"own/{i}.txt").write_text('a red sign that says "AB"')
    own = ["--name", "own", "--reward", "dark_fraction"]
    dropout = ["--train.caption_dropout", "0.5"]
    command = ["fit", str(there), "--train.epochs", "1", "--train.groups_per_step", "1", *dropout]
    assert cli.main(["import", str(there), "own", *own]) == 0
    assert train_cli.main([*command, *own]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "dataset own has no unconditional embedding, and train.caption_dropout asked for it: draw or import it" in said
    )
    assert not Path("runs/own-offline").exists()
    own[1] = "own-2"
    assert cli.main(["import", str(there), "own", *own, *STORED]) == 0
    assert not verify(Path("lake/dataset=own-2")).problems
    assert train_cli.main([*command, *own]) == 0


def test_what_has_none_is_refused(here: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"dataset small has no .* train.guidance_scale asked for it: draw .*--name"):
        train(here, "--train.guidance_scale", "4.5", name="none")
    assert not Path("runs/none").exists()
    with pytest.raises(UsageError, match=r"sampler.store_unconditional: None there, True in the recipe"):
        draw(recipe.load(here, STORED), Console(quiet=True))
    with pytest.raises(UsageError, match="store_unconditional: false: train.caption_dropout and .*set it to true"):
        train_settings(recipe.load(here, [*BOTH, "--train.reference", "frozen"]), "online")
    flux = build("flux-dev", tmp_path / "flux").folder
    model = ["--model", str(flux), "--sampler.max_sequence_length", "12"]
    with pytest.raises(UsageError, match=r"train.guidance_scale: the model in .*flux has no unconditional half"):
        train(here, *model, "--train.guidance_scale", "4.5", name="flux")


@pytest.mark.slow
def test_online_iterations_have_it_and_the_gate_and_are_replayed(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe_file.write_text(recipe_file.read_text() + TRAIN)
    gate = ["--train.reference", "frozen", "--train.kl", "5", "--train.kl_judges", '["edge_density"]']
    more = ["--online.iterations", "2", "--online.replay", "2", "--online.grid_every", "0"]
    made = recipe.load(recipe_file, [*STORED, *BOTH, *gate, *more])
    run = fit(made, "on", Console(quiet=True), "online")
    assert run.manifest().state == "finished"
    with (run.folder / "logs/csv/metrics.csv").open() as file:
        gated = [float(row["kl_gated"]) for row in csv.DictReader(file) if row["kl_gated"]]
    assert len(gated) == 3 + 6 and 0 < sum(gated) / len(gated) < 0.2


def test_the_embedded_model_predicts_with_guidance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows empty captions: of its own pictures the prompt tells more than none, and six times it too much."""
    monkeypatch.chdir(tmp_path)
    small = ["--task.num_prompts", "2", "--group_size", "4", "--sampler.num_inference_steps", "4", "--lake", "lake"]
    small += ["--evaluators", "[color]", "--reward", "entropy", "--sampler.dtype", "float32", "--sampler.device", "cpu"]
    made = recipe.load("text-tiny", [*small, "--train.precision", "float32", *STORED])
    group = Lake("lake").draw(made).groups(unconditional=True)[0]
    policy = Policy.load("tiny", made.train, made.sampler)
    error = {}
    for w in (0.0, 1.0, 6.0):
        policy.settings = dataclasses.replace(policy.settings, guidance_scale=w)
        with torch.no_grad():
            error[w] = policy.errors(group, sample_noise(group, 8, seed=0)).mean().item()
    assert error[1.0] < error[0.0] < error[6.0]
