"""Training on real parts: a pipeline with random weights, real shards, real Lightning; see test_fit.py."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gpo_data import models, recipe
from gpo_data.errors import RunError, UsageError
from gpo_data.lake import catalog
from gpo_data.lake.latents import StoredLatents
from gpo_data.lake.reader import Reader, batches
from gpo_data.lake.snapshot import take_snapshot
from gpo_data.recipe import Train
from gpo_train import cli
from gpo_train.module import learning_rate_share
from gpo_train.noise import epoch_noise, sample_noise
from gpo_train.run import Run
from gpo_train.settings import train_settings
from tests.parts.training import module_of, newest_of, reader_of, train, weights_of


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    first = batches(10, 3, 0, 0, 2)
    assert first == batches(10, 3, 0, 0, 2) and first != batches(10, 3, 0, 1, 2)
    assert len(first) == 6 and all(len({g for step in part for g in step}) == 9 for part in (first[:3], first[3:]))
    with pytest.raises(UsageError, match="groups_per_step: 4 groups a step, and the snapshot has 3"):
        batches(3, 4, 0, 0)


def test_the_reader_gives_what_was_drawn(here: Path) -> None:
    reader = reader_of(here)
    group = reader[0]
    assert len(reader) == 6 and group.latents.shape == (4, 16, 8, 8) and group.rewards.dtype == torch.float64
    assert reader.digest == reader_of(here).digest
    tar = Path(reader.places[0].parts[0].record.tar)
    before = tar.read_bytes()
    tar.write_bytes(before[:700] + b"x" + before[701:])
    with pytest.raises(RunError, match=r"shard-000000.tar: damaged .* run `gpo-data verify RECIPE --repair`"):
        reader[0]


def test_the_reader_gives_borrowed_members_with_the_borrowers_prompt(here: Path) -> None:
    made, plain = recipe.load(here), {group.key: group for group in map(reader_of(here).__getitem__, range(6))}
    how = {"reward": made.reward, "targets": ("target", "color"), "relabel": "length(lender.target) > 0"}
    reader = Reader(made.lake, take_snapshot(catalog.connect(made.lake), "small", where="member < 3", **how))
    for index in range(len(reader)):
        group, place = reader[index], reader.places[index]
        mine = plain[group.key]
        assert len(group.latents) == 18 and torch.equal(group.latents[:3], mine.latents[:3])
        assert group.seeds[:3] == mine.seeds[:3] and group.prompt == mine.prompt and len(place.parts) == 6
        for name, value in mine.conditioning.items():
            assert torch.equal(group.conditioning[name], value)
        for other in plain.values():
            where = group.seeds.index(other.seeds[1])
            assert torch.equal(group.latents[where], other.latents[1]) and group.members[where] == 1
    with pytest.raises(UsageError, match="where: leaves group small/.* no member of its own"):
        Reader(made.lake, take_snapshot(catalog.connect(made.lake), "small", where="lender <> group_key", **how))
    run = train(here, "--relabel", "true", "--where", "member < 2", name="lent")
    assert run.manifest().state == "finished"


@pytest.mark.parametrize(
    "extra",
    [
        ["--train.shared_noise", "true"],
        ["--train.shared_noise", "false"],
        ["--train.shared_noise", "true", "--train.weighting", "max"],
        ["--train.shared_noise", "false", "--train.weighting", "max"],
        ["--train.kl", "0.5"],
        ["--train.kl", "0.5", "--train.loss", "linear"],
        ["--train.mean_shift_penalty", "0.5"],
        ["--train.loss", "nft"],
        ["--train.loss", "gdro", "--train.kl", "0.5"],
    ],
    ids=lambda extra: "-".join(extra).replace("--train.", ""),
)
def test_the_gradient_does_not_depend_on_the_micro_batch(here: Path, tmp_path: Path, extra: list[str]) -> None:
    group = reader_of(here)[0]
    gradients = []
    extra = [*extra, "--train.reference", "frozen", "--train.beta", "10"]  # 1000 times the last bit of an error is seen
    for size in ("80", "4", "3"):  # all draws at once, one draw, less than a draw
        module = module_of(here, tmp_path, "--train.micro_batch_size", size, *extra)
        module.group_backward(group)
        gradients.append([p.grad for p in module.policy.trainable()])
    for other in gradients[1:]:
        for mine, theirs in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * float(mine.abs().max()) + 1e-9)


@pytest.mark.parametrize("tuning, reference", [("full", "frozen"), ("lora", "adapters"), ("lora", "frozen")])
def test_the_penalty_is_the_distance_to_the_reference(here: Path, tmp_path: Path, tuning: str, reference: str) -> None:
    group, found = reader_of(here)[0], {}
    for kl in ("0.0", "0.5", "1.0"):
        module = module_of(here, tmp_path, "--train.tuning", tuning, "--train.reference", reference, "--train.kl", kl)
        found[kl] = module.group_backward(group)
    apart = module.policy.compared(group, module.noise_of(0, group)).distance
    assert found["1.0"]["kl"] == pytest.approx(apart.mean().item(), rel=1e-4) and apart.min() > 0
    for kl in ("0.5", "1.0"):
        added = found[kl]["loss"] - found["0.0"]["loss"]
        assert added == pytest.approx(float(kl) * module.settings.beta * apart.mean().item(), rel=1e-3)


def test_shared_draws_are_shared_and_repeatable(here: Path) -> None:
    made = recipe.load(here)
    model, group = models.load(Path(made.model), made.sampler), reader_of(here)[1]
    shared = epoch_noise(model, train_settings(made), 0, 0, group)
    assert torch.equal(shared.u[:, 0], shared.u[:, 3]) and torch.equal(shared.e[:, 0], shared.e[:, 3])
    own = train_settings(recipe.load(here, ["--train.shared_noise", "false", "--train.timestep_range", "high"]))
    first, again, later = (epoch_noise(model, own, 0, epoch, group) for epoch in (0, 0, 1))
    assert torch.equal(first.e, again.e) and not torch.equal(first.e, later.e)
    assert not torch.equal(first.u[:, 0], first.u[:, 1]) and first.u.min() >= 0.5
    middle = train_settings(
        recipe.load(here, ["--train.timestep_range", "[0.3, 0.6]", "--train.timesteps_per_image", "50"])
    )
    u = epoch_noise(model, middle, 0, 0, group).u
    assert 0.3 <= u.min() < u.max() <= 0.6
    path = epoch_noise(model, train_settings(recipe.load(here, ["--train.noise", "own"])), 0, 0, group)
    start = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(group.seeds[3]))
    assert torch.equal(path.e[0, 3], start[0]) and torch.equal(path.e[1], path.e[0])
    assert torch.equal(path.u, shared.u)
    pairs = epoch_noise(model, train_settings(recipe.load(here, ["--train.noise", "antithetic"])), 0, 0, group)
    assert torch.equal(pairs.e[1], -pairs.e[0]) and torch.equal(pairs.u, shared.u) and len(pairs.e) == len(shared.e)
    alone = sample_noise(group, 3, seed=3, shared=False, antithetic=True)
    by_rows = sample_noise(group, 3, seed=3, shared=False, antithetic=True, large=0)
    assert torch.equal(alone.e[1], -alone.e[0]) and not torch.equal(alone.e[0, 0], alone.e[0, 1])
    assert torch.equal(by_rows.e[torch.tensor([0, 1, 2]), torch.tensor([1, 1, 2])], alone.e[[0, 1, 2], [1, 1, 2]])


def test_timesteps_are_drawn_as_asked(here: Path) -> None:
    """Quantiles against those of diffusers' compute_density_for_timestep_sampling, which counts from the noisy end."""
    from diffusers.training_utils import compute_density_for_timestep_sampling

    made = recipe.load(here)
    model, group = models.load(Path(made.model), made.sampler), reader_of(here)[1]

    def drawn(*extra: str) -> torch.Tensor:
        settings = train_settings(recipe.load(here, ["--train.timesteps_per_image", "20000", *extra]))
        small = dataclasses.replace(group, latents=group.latents[:, :1, :1, :1])
        return epoch_noise(model, settings, 0, 0, small).u[:, 0]

    normal = drawn("--train.timestep_distribution", "logit_normal", "--train.logit_mean", "0.5")
    theirs = 1 - compute_density_for_timestep_sampling("logit_normal", 20000, -0.5, 1.0)
    at = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    torch.testing.assert_close(normal.quantile(at), theirs.quantile(at), atol=0.02, rtol=0)
    part = drawn("--train.timestep_distribution", "logit_normal", "--train.timestep_range", "[0.2, 0.4]")
    assert 0.2 < part.min() < 0.25 < 0.35 < part.max() < 0.4
    steps = drawn("--train.timestep_distribution", "discrete")
    sigmas = model.pipe.scheduler.sigmas.double()  # type: ignore[attr-defined]
    apart = (model.time(steps).double()[:, None] - sigmas).abs().min(dim=1).values
    assert apart.max() < 1e-6 and len(steps.unique()) > 990
    parts = drawn("--train.timestep_distribution", "stratified", "--train.timestep_range", "high")
    place = (parts - 0.5) * 40000 - torch.arange(20000.0)  # one in each part, anywhere in it
    assert -0.01 < place.min() < 0.01 < 0.99 < place.max() < 1.01 and abs(place.mean() - 0.5) < 0.01


def test_lent_members_have_noise_of_their_own(here: Path) -> None:
    made, how = recipe.load(here), {"targets": ("target", "color"), "relabel": "length(lender.target) > 0"}
    reader = Reader(made.lake, take_snapshot(catalog.connect(made.lake), "small", made.reward, **how))
    group, alone = reader[0], reader_of(here)[0]
    assert group.key == alone.key and group.lent[:5] == (False,) * 4 + (True,) and sum(group.lent) == 20
    noise, before = sample_noise(group, 2, seed=3, shared=False), sample_noise(alone, 2, seed=3, shared=False)
    assert torch.equal(noise.e[:, :4], before.e)  # its own members have what they had
    assert len(noise.u[0].unique()) == 24
    reader.large = 1  # read by rows, of six records
    assert isinstance(reader[0].latents, StoredLatents) and torch.equal(reader[0].latents[:], group.latents)


def test_a_run_on_several_rewards_has_a_column_of_each(here: Path) -> None:
    import pyarrow.parquet as pq

    terms = '{dark: "-dark_fraction", word: "text_edit(target, ocr_text) > 0.1", edges: "100 * edge_density"}'
    extra = ["--rewards", terms, "--reward", "", "--reward_weights", "{word: 0.5}"]
    made = recipe.load(here, extra)
    run = train(here, *extra, name="several")
    assert run.manifest().state == "finished" and run.manifest().recipe["reward"] == made.reward
    table = pq.read_table(run.folder / "snapshot.parquet").to_pydict()
    dark, word, edges = (np.array(table[f"reward_{name}"]) for name in ("dark", "word", "edges"))
    np.testing.assert_allclose(table["reward"], dark + 0.5 * word + edges, rtol=1e-9)
    keys = np.array(table["group_key"])
    for key in set(table["group_key"]):
        here_ = [one[keys == key] for one in (dark, word, edges)]
        parts = [(one - one.mean()) / (one.std() or 1) for one in here_]
        total = parts[0] + 0.5 * parts[1] + parts[2]
        np.testing.assert_allclose(np.array(table["advantage"])[keys == key], total / total.std(), rtol=1e-6, atol=1e-9)
    with pytest.raises(UsageError, match=r"reward: expected none beside rewards:"):
        recipe.load(here, ["--rewards", terms])
    with pytest.raises(UsageError, match=r"reward_weights: expected names of rewards \(dark, word, edges\), found"):
        recipe.load(here, [*extra, "--reward_weights", "{colour: 1}"])


def test_stored_errors_equal_a_frozen_reference(here: Path) -> None:
    stored = weights_of(train(here, "--train.reference", "stored", "--train.num_inner_epochs", "2", name="stored"))
    frozen = weights_of(
        train(
            here,
            "--train.reference",
            "frozen",
            "--train.num_inner_epochs",
            "2",
            "--train.reference_offload",
            "true",
            name="frozen",
        )
    )
    for name in stored:
        torch.testing.assert_close(stored[name], frozen[name], rtol=1e-3, atol=1e-4)


def test_lora_exports_what_diffusers_loads(here: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusion3Pipeline

    alpha = ["--train.lora_rank", "4", "--train.lora_alpha", "8"]
    run = train(here, "--train.tuning", "lora", "--train.reference", "adapters", *alpha, name="lora")
    assert cli.main(["export", str(here), "--run", "lora", "--out", str(tmp_path / "out")]) == 0
    pipe = StableDiffusion3Pipeline.from_pretrained(recipe.load(here).model, dtype=torch.float32)
    pipe.load_lora_weights(tmp_path / "out")
    moved = [p for n, p in pipe.transformer.named_parameters() if "lora_B" in n]
    assert moved and any(p.abs().max() > 0 for p in moved) and run.manifest().state == "finished"
    path = newest_of(run)
    assert path is not None
    trained, exported = torch.load(path, weights_only=True)["state_dict"], weights_of(run)
    for name in [name for name in exported if "lora_B" in name]:
        inner = name.removeprefix("transformer.").removesuffix("weight")
        assert torch.equal(exported[name], 2 * trained[f"policy.denoiser.{inner}default.weight"])  # alpha / rank


def test_the_gradient_is_clipped_in_units_of_the_error(here: Path, tmp_path: Path) -> None:
    """At the reference the gate is one half: `logsigmoid` pulls half as hard as `linear`, whatever beta is."""
    group, norms = reader_of(here)[0], {}
    for name, extra in {
        "linear": ["--train.loss", "linear"],
        "10": ["--train.beta", "10"],
        "1000": ["--train.beta", "1000"],
        "cut": ["--train.beta", "1000", "--train.max_grad_norm", "1e-4"],
    }.items():
        module = module_of(here, tmp_path, "--train.reference", "frozen", *extra)
        module.policy.denoiser.load_state_dict(module.policy.frozen.state_dict())  # type: ignore[union-attr]
        module.group_backward(group)
        norms[name] = module._clip(None)
        after = torch.stack([p.grad.norm() for p in module.policy.trainable() if p.grad is not None]).norm().item()
        unit = 1 if name == "linear" else float(extra[1])
        assert after / unit == pytest.approx(1e-4 if name == "cut" else norms[name], rel=1e-3)
    assert 1e-4 < norms["linear"] < 1  # not clipped by the default
    for name in ("10", "1000", "cut"):
        assert norms[name] == pytest.approx(norms["linear"] / 2, rel=1e-3)


def test_full_exports_a_plain_folder_and_eval_compares(here: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusion3Pipeline

    run = train(here, "--train.learning_rate", "1e-3", name="full")
    assert cli.main(["export", str(here), "--run", "full", "--out", str(tmp_path / "out")]) == 0
    pipe = StableDiffusion3Pipeline.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for name, value in weights_of(run).items():
        assert torch.equal(pipe.transformer.state_dict()[name], value)
    assert cli.main(["eval", str(here), "--run", "full"]) == 0
    found = json.loads((run.folder / "eval.json").read_text())
    assert found["n"] == 4 and found["difference"]["ci95"][0] <= found["difference"]["exact"]
    assert found["base"]["statistics"] != found["policy"]["statistics"]  # the policy's own pictures, not the base's
    assert (run.folder / "eval.html").is_file() and (run.folder / "eval.png").is_file()
    before = found
    assert cli.main(["eval", str(here)]) == 0  # the newest run; nothing is drawn again
    assert json.loads((run.folder / "eval.json").read_text()) == before
    assert cli.main(["eval", str(here), "--reward", "text_exact(target, ocr_text)"]) == 0  # beside what was measured
    assert json.loads((run.folder / "eval.json").read_text())["policy"]["exact"] == before["policy"]["exact"]


def test_the_learning_rate_warms_up_and_decays() -> None:
    assert [learning_rate_share(step, Train()) for step in (0, 1000)] == [1, 1]
    both = Train(warmup_steps=3, decay_steps=100)
    shares = [learning_rate_share(step, both) for step in (0, 3, 300, 9900)]
    assert shares == pytest.approx([0.25, (1 / 1.03) ** 0.5, 0.5, 0.1])


def test_sft_learns_from_chosen_members(here: Path) -> None:
    run = train(here, "--train.objective", "sft", "--train.sft_reward", "0.4", name="sft")
    assert run.manifest().state == "finished" and run.manifest().steps > 0


def test_what_a_user_can_do_wrong(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no dataset here .* draws one"):
        train(here, "--name", "nothing")
    with pytest.raises(UsageError, match="all 6 groups are dead"):
        train(here, "--reward", "0.5", name="dead")
    with pytest.raises(UsageError, match=r"unknown key 'train.lerning_rate'; did you mean 'train.learning_rate'"):
        train(here, "--train.lerning_rate", "1")
    with pytest.raises(
        UsageError, match=r"train.reference: expected .* \(adapters needs train.tuning: lora\), found 'adapters'"
    ):
        train(here, "--train.reference", "adapters")
    for strategy in ("fsdp", "deepspeed_stage_2", "ddp_spawn", "ddp_notebook_find_unused_parameters_true"):
        with pytest.raises(UsageError, match=rf"train.trainer.strategy: expected ddp, or fsdp2 .* found '{strategy}'"):
            train(here, "--train.trainer.strategy", strategy)
    with pytest.raises(UsageError, match=r"train.trainer.val_check_interval: expected none: nothing is validated"):
        train(here, "--train.trainer.val_check_interval", "7")
    with pytest.raises(
        UsageError, match=r"train.ema_decay: expected null \(Lightning cannot average weights that are sharded\)"
    ):
        train(here, "--train.trainer.strategy", "fsdp2", "--train.ema_decay", "0.9")
    with pytest.raises(UsageError, match=r"train.kl: expected 0 \(it needs what the .* found 0.5"):
        train(here, "--train.kl", "0.5")
    with pytest.raises(UsageError, match=r"train.timestep_range: expected .* <= 1, found \[0.6, 0.3\]"):
        train(here, "--train.timestep_range", "[0.6, 0.3]")
    train(here, name="mine")
    with pytest.raises(UsageError, match=r"another recipe; .* train.learning_rate: 0.0001 there, 0.5 now"):
        train(here, "--train.learning_rate", "0.5", name="mine")
    run = Run(Path("runs/mine"))  # a run that is older than a key has its default
    older = run.manifest().recipe
    del older["train"]["clip_range"]
    run.note(recipe=older)
    train(here, name="mine")
    with pytest.raises(UsageError, match=r"another recipe; .* train.clip_range: 0.0 there, 0.1 now"):
        train(here, "--train.clip_range", "0.1", name="mine")
    with pytest.raises(UsageError, match="no online run of small"):
        from gpo_train.run import newest

        newest("small", "online")
