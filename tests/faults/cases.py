"""What is killed: small runs on real parts, a minute's worth of drawing and training in seconds.

A reward by chance leaves dead groups, so that epochs differ in length.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

RECIPE = """
model: {model}
lake: lake
group_size: 4
groups_per_shard: 2
task: {{kind: align, num_prompts: 4}}
sampler:
  {{num_inference_steps: 2, guidance_scale: 2.0, height: 64, width: 64, max_sequence_length: 1, batch_size: 6,
   dtype: float32, device: cpu}}
evaluators: [color]
reward: {reward}
train: {{tuning: full, timesteps_per_image: 2, num_inner_epochs: 1, epochs: 3, groups_per_step: 1,
        learning_rate: 1.0e-3, precision: float32, checkpoint_steps: 2, loggers: [],
        trainer: {{enable_progress_bar: false}}}}
online: {{iterations: 3, grid_every: 0}}
"""
DEAD = "(CAST(10000 * entropy AS BIGINT) % 7 = 0)::DOUBLE"  # by chance: no member of some groups has it
ALIVE = "entropy"


@dataclass(frozen=True)
class Case:
    """`verb` with `options`; `before`: verbs run once in the folder, before it is copied for each series.

    Of two `ranks`, half of the kills are of one alone: the other is to end by itself, with one line and exit code 1.
    """

    name: str
    verb: str
    options: tuple[str, ...] = ()
    reward: str = DEAD
    before: tuple[tuple[str, ...], ...] = ()
    ranks: int = 1

    def command(self) -> Callable[[], int]:
        return lambda: main([self.verb, "r.yaml", *self.options])


def main(arguments: list[str]) -> int:
    import gpo_data.cli
    import gpo_train.cli

    return (gpo_train.cli.main if arguments[0] == "fit" else gpo_data.cli.main)(arguments)


ONLINE = ("--mode", "online", "--run", "a")
EMA = ("--train.ema_decay", "0.5", "--online.rollout_policy", "ema")
TWO = (
    *("--train.trainer.devices", "2", "--train.trainer.accelerator", "cpu", "--train.trainer.strategy", "ddp"),
    *("--train.groups_per_step", "2"),
)
PARTS = (
    ("shards", "r.yaml", "--name", "p0"),
    ("shards", "r.yaml", "--name", "p1", "--seed", "1", "--task.num_prompts", "6"),
    ("shards", "r.yaml", "--name", "p2", "--seed", "2", "--task.num_prompts", "2"),
)  # of unequal size
CASES = [
    Case("drawing", "shards", ("--task.num_prompts", "8")),
    Case("online, stored", "fit", ONLINE),
    Case("online, frozen", "fit", (*ONLINE, "--train.reference", "frozen")),
    Case("online, lora", "fit", (*ONLINE, "--train.tuning", "lora")),
    Case("online, ema draws", "fit", (*ONLINE, *EMA)),
    Case("online, ema draws, lora", "fit", (*ONLINE, *EMA, "--train.tuning", "lora")),
    Case("online, replay 2, keep 2", "fit", (*ONLINE, "--online.replay", "2", "--online.keep_last", "2")),
    Case("online, two epochs each", "fit", (*ONLINE, "--online.epochs_per_iteration", "2")),
    Case("online, no dead groups", "fit", ONLINE, ALIVE),
    Case("offline, stored", "fit", ("--name", "p1", "--run", "a"), before=PARTS),
    Case(
        "offline, in turn",
        "fit",
        ("--train.datasets", "p*", "--train.sequential", "true", "--run", "a", "--train.reference_update", "iteration"),
        before=PARTS,
    ),
    Case(
        "offline, in turn, frozen, ema",
        "fit",
        (
            "--train.datasets",
            "p*",
            "--train.sequential",
            "true",
            "--run",
            "a",
            "--train.reference",
            "frozen",
            "--train.ema_decay",
            "0.5",
        ),
        before=PARTS,
    ),
    Case("two ranks, offline", "fit", ("--name", "p1", "--run", "a", *TWO), ALIVE, PARTS, ranks=2),
    Case("two ranks, online", "fit", (*ONLINE, *TWO, "--task.num_prompts", "8"), ranks=2),
]


def content(folder: Path) -> dict[str, str]:
    """What has to be the same: weights, tars, rows' keys, what iterations were worth; by file."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix in (".tar", ".safetensors") and "/reference/" not in name:
            found[name] = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
        elif path.name == "summary.json":
            facts = json.loads(path.read_text())
            found[name] = str({k: v for k, v in facts.items() if k != "seconds"})
        elif path.name == "run.json":
            card = json.loads(path.read_text())
            found[name] = str([card[k] for k in ("state", "steps", "snapshot") if k in card])
        elif path.suffix == ".parquet":
            found[name] = "there"
    return found


def leftovers(folder: Path) -> list[str]:
    """What a kill may leave and a finished command may not."""
    return [
        str(p.relative_to(folder))
        for pattern in ("**/*.tmp", "**/.stage/*.sample", "**/tmp[!.]*")
        for p in folder.glob(pattern)
    ]
