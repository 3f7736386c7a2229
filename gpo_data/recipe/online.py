"""The section `online:` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpo_data.recipe.checks import Count, Members, NotNegative, Whole, check, expect


@dataclass(frozen=True)
class Online:
    """How the policy draws for itself, `fit --mode online`, with the recipe's sampler.

    Args:
        iterations: how often new groups are drawn; with more of them a finished run goes on.
        group_size: members a group; null takes the recipe's.
        num_inference_steps: of its drawing; with fewer than `sampler.num_inference_steps`, which evaluation draws with,
            an iteration costs less and its pictures are rougher (`verify --redraw` of one wants
            `--sampler.num_inference_steps` too). In the tiny world pictures of 4 steps taught nine points less than of
            8 in the same time, of 2 thirty (docs/experiments.md). null takes the sampler's.
        epochs_per_iteration: epochs trained on an iteration.
        prompts: groups an iteration; null takes the recipe's `task.num_prompts`.
        prompt_selection: `next` (the task's next prompts, from the first again where they end), `same` (every time the
            first ones, with new noise), or `unmastered` (out of `pool`: those never drawn, then those whose last group
            had the largest std of rewards, as the lake knows).
        pool: prompts that `unmastered` chooses from; null is four times `prompts`, or all where there are fewer. A long
            run on few of them learns those few (docs/experiments.md).
        rollout_policy: who draws: the `policy`, its average `ema` (needs train.ema_decay), or the `base`, to compare:
            the same images and steps without any feedback.
        replay: train on so many last iterations, each with its own advantages.
        keep_last: so many last iterations keep their tars and policies; of older ones the rows stay for SQL. null: all.
        grid_every: iterations between two picture grids of fixed prompts and seeds; 0 is off.
        stop_plateau: stop when the best mean reward is so many iterations old.
        stop_diversity: stop when the diversity inside groups falls below this share of the first iteration's.
        stop_drift: stop when an image statistic moves by more than this share of the first iteration's value.
        stop_distance: stop when policy and reference are further apart than this: an epoch's mean of s over all
            members, which estimates the divergence of the reference from the policy on the reference's own pictures.
            Not with sft, `rwr` and `best_of_n`, which ask none.
        rollback: `validation`: at the end, also one by a stop rule, the policy of every iteration draws prompts of that
            part of the split, and the best one is what the run ends with (needs task.split: train). null: the last one.
        rollback_prompts: how many prompts, each with `eval.group_size` images.
    """

    iterations: Count = 5
    group_size: Members | None = None
    num_inference_steps: Count | None = None
    epochs_per_iteration: Count = 1
    prompts: Count | None = None
    prompt_selection: Literal["next", "same", "unmastered"] = "next"
    pool: Count | None = None
    rollout_policy: Literal["policy", "ema", "base"] = "policy"
    replay: Count = 1
    keep_last: Count | None = None
    grid_every: Whole = 1
    stop_plateau: Count | None = None
    stop_diversity: NotNegative | None = None
    stop_drift: NotNegative | None = None
    stop_distance: NotNegative | None = None
    rollback: Literal["validation"] | None = None
    rollback_prompts: Count = 64

    def __post_init__(self) -> None:
        check(self, "online.")
        expect(
            self.keep_last is None or self.keep_last >= self.replay,
            "online.keep_last",
            f"at least online.replay ({self.replay})",
            self.keep_last,
        )
