"""A recipe: what describes an experiment and is used by every verb; made from a YAML file (parse.py) or in Python.

It checks itself, sections and all, when it is made: an impossible value is a `UsageError` that names the key.
`fingerprint()` covers what changes pixels; evaluators, rewards and paths may change without drawing again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, cast, get_type_hints

from gpo_data import hardware
from gpo_data.recipe.checks import Count, Members, Number, PathText, Seed, Share, check, expect
from gpo_data.recipe.evaluation import Eval
from gpo_data.recipe.evaluators import Clip, Http, Ocr, Vlm, Yolo
from gpo_data.recipe.online import Online
from gpo_data.recipe.sections import Ray, Sampler, Task
from gpo_data.recipe.training import Train


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Args:
        name: of the dataset; null takes the recipe file's name.
        model: `tiny` (the embedded model), a local diffusers folder, or a hub id.
        revision: of a hub model.
        policy: trained weights that go over the model's own: a LoRA's .safetensors, or a folder with one or with the
            denoiser's sub-folder, as `gpo-train fit` writes them to `runs/<run>/policy`.
        lake: what holds the datasets: a folder, or a URL such as s3://bucket/lake, gs://, az:// or hf://datasets/org/name
            (read only); credentials are the environment's.
        seed: every random choice comes from it.
        group_size: members a group, G.
        groups_per_shard: groups in one tar.
        max_failed: share of members that may fail; with more of them, counted from the 64th member on, drawing stops.
        task: what to draw.
        sampler: how to draw.
        evaluators: what measures the pictures: `ocr`, `yolo`, `color`, `glyphs` and `blobs` (colour, word and number of
            the tiny world's things, without a model), `boxes` (colour and class of what `yolo` finds), `compose`
            (GenEval's clauses), `thumbnail` (4 x 4 mean colours), `clip_score`, `pickscore`, `hpsv2`, `aesthetic`,
            `vlm`, a name of `http.urls`, or a function of your own, `module:function`.
        watchers: evaluators that only watch: what they see is shown beside the reward by audit, watch and eval, and no
            reward may read it, so that a policy that games the reward shows.
        ocr: settings of `ocr`.
        yolo: settings of `yolo`, `boxes` and `compose`, or just its weights.
        clip_score: settings of `clip_score`, the fit of picture and prompt.
        pickscore: settings of `pickscore`, what people would pick.
        hpsv2: settings of `hpsv2`, the human preference score.
        aesthetic: settings of `aesthetic`, LAION's predictor; its `weights` have to be given.
        vlm: settings of `vlm`, a vision-language model behind an OpenAI-compatible server.
        http: scorers in other environments or on other machines.
        reward: SQL expression over targets and measurements.
        rewards: in the place of `reward` several by name, such as `{word: "text_exact(target, ocr_text)"}`. `reward` is
            their weighted sum; for the advantages each is standardised in its group before they are summed: none counts
            for more because its numbers are larger. A run's snapshot has a column `reward_<name>` of each.
        reward_weights: of `rewards`, by name; 1 where one has none.
        where: SQL condition on groups and members for audit and training.
        relabel: SQL condition on `borrower` and `lender`: members drawn for the lender's prompt join the borrower's
            group in training and are judged against its target; see lake/relabel.py.
        train: settings of `gpo-train fit`.
        online: settings of `gpo-train fit --mode online`.
        eval: settings of `gpo-train eval`.
        ray: how many processes draw and measure, and where.
    """

    name: str | None = None
    model: PathText = "tiny"
    revision: PathText | None = None
    policy: PathText | None = None
    lake: PathText = "lake"
    seed: Seed = 0
    group_size: Members = 32
    groups_per_shard: Count = 8
    max_failed: Share = 0.2
    task: Task = field(default_factory=Task)
    sampler: Sampler = field(default_factory=Sampler)
    evaluators: list[str] = field(default_factory=list)
    watchers: list[str] = field(default_factory=list)
    ocr: Ocr = field(default_factory=Ocr)
    yolo: Yolo = field(default_factory=Yolo)
    clip_score: Clip = field(default_factory=Clip)
    pickscore: Clip = field(default_factory=lambda: Clip("yuvalkirstain/PickScore_v1"))
    hpsv2: Clip = field(default_factory=lambda: Clip("adams-story/HPSv2-hf"))
    aesthetic: Clip = field(default_factory=Clip)
    vlm: Vlm = field(default_factory=Vlm)
    http: Http = field(default_factory=Http)
    reward: str = ""
    rewards: dict[str, str] = field(default_factory=dict)
    reward_weights: dict[str, Number] = field(default_factory=dict)
    where: str | None = None
    relabel: str | None = None
    train: Train = field(default_factory=Train)
    online: Online = field(default_factory=Online)
    eval: Eval = field(default_factory=Eval)
    ray: Ray = field(default_factory=Ray)

    def __post_init__(self) -> None:
        check(self)
        named = self.name is None or NAME.fullmatch(self.name) is not None
        expect(named, "name", "1 to 100 letters a-z, digits, '-' and '_'", self.name)
        taken = next((name for name in self.http.urls if name in (*EVALUATORS, "image_stats")), None)
        expect(taken is None, "http.urls", "names that are not evaluators already", taken)
        one_of = self.evaluators_known()
        expect(bool(self.evaluators), "evaluators", f"at least one of {one_of}, as in [ocr]", self.evaluators)
        for key, names in (("evaluators", self.evaluators), ("watchers", self.watchers)):
            for name in names:
                expect(self.knows(name), key, one_of, name)
        everyone = [*self.evaluators, *self.watchers]
        expect(len(set(self.evaluators)) == len(self.evaluators), "evaluators", "each name once", self.evaluators)
        expect(len(set(everyone)) == len(everyone), "watchers", "names that are not in evaluators", self.watchers)
        self._sum_rewards()
        expect(
            bool(self.reward.strip()), "reward", "a SQL expression such as text_exact(target, ocr_text)", self.reward
        )

    def knows(self, evaluator: str) -> bool:
        """Whether that is the name of an evaluator."""
        own = OWN_EVALUATOR.fullmatch(evaluator) is not None
        return own or evaluator in EVALUATORS or evaluator in self.http.urls

    def evaluators_known(self) -> str:
        """For messages."""
        return f"{', '.join([*EVALUATORS, *self.http.urls])}, a name of http.urls or module:function"

    def _sum_rewards(self) -> None:
        """Make `reward` the sum of `rewards`."""
        for name, expression in self.rewards.items():
            expect(REWARD_NAME.fullmatch(name) is not None, "rewards", "names of letters a-z, digits and '_'", name)
            expect(bool(expression.strip()), f"rewards.{name}", "a SQL expression", expression)
        unknown = sorted(self.reward_weights.keys() - self.rewards.keys())
        expect(not unknown, "reward_weights", f"names of rewards ({', '.join(self.rewards) or 'none'})", unknown)
        if self.rewards:
            summed = " + ".join(f"{weight} * CAST(({sql}\n) AS DOUBLE)" for _, sql, weight in self.weighted_rewards())
            expect(self.reward in ("", summed), "reward", "none beside rewards:, whose sum it is", self.reward)
            object.__setattr__(self, "reward", summed)

    def weighted_rewards(self) -> list[tuple[str, str, float]]:
        """(name, expression, weight) of `rewards`."""
        return [(name, sql, self.reward_weights.get(name, 1.0)) for name, sql in self.rewards.items()]

    def fingerprint_fields(self) -> dict[str, Any]:
        """All that changes pixels, flat; two datasets with equal fields hold the same pictures."""
        plain, sampler = dataclasses.asdict(Sampler()), dataclasses.asdict(self.sampler)
        if self.sampler.dtype == "auto":  # as this machine draws; a dataset that exists has its own: manifest.settle
            sampler["dtype"] = hardware.dtype_for("auto", hardware.device_of(self.sampler.device))
        fields: dict[str, Any] = {
            f"sampler.{k}": v for k, v in sampler.items() if k not in PLACES and not (k in SINCE and v == plain[k])
        }
        fields |= {f"task.{k}": v for k, v in dataclasses.asdict(self.task).items() if k not in NOT_DRAWN}
        fields |= {k: getattr(self, k) for k in ("model", "revision", "seed", "group_size", "groups_per_shard")}
        return dict(sorted(fields.items()))

    def fingerprint(self) -> str:
        """blake2b of `fingerprint_fields()`, 16 hex digits."""
        return fingerprint_of(self.fingerprint_fields())


DETECTING = ("yolo", "boxes", "compose")  # evaluators that the section `yolo` is for


def section_of(evaluator: str) -> str:
    """The section that the evaluator reads, if there is one of that name."""
    return "yolo" if evaluator in DETECTING else evaluator


# Name in a recipe: the module and the class that measure (evaluators/build.py says what such a class has).
EVALUATORS = {
    "ocr": ("gpo_data.evaluators.ocr", "OcrEvaluator"),
    "yolo": ("gpo_data.evaluators.yolo", "YoloEvaluator"),
    "color": ("gpo_data.evaluators.color", "ColorEvaluator"),
    "glyphs": ("gpo_data.evaluators.glyphs", "GlyphsEvaluator"),
    "blobs": ("gpo_data.evaluators.blobs", "BlobsEvaluator"),
    "thumbnail": ("gpo_data.evaluators.thumbnail", "ThumbnailEvaluator"),
    "boxes": ("gpo_data.evaluators.boxes", "BoxesEvaluator"),
    "compose": ("gpo_data.evaluators.compose", "ComposeEvaluator"),
    "clip_score": ("gpo_data.evaluators.clip_models", "ClipEvaluator"),
    "pickscore": ("gpo_data.evaluators.clip_models", "ClipEvaluator"),
    "hpsv2": ("gpo_data.evaluators.clip_models", "ClipEvaluator"),
    "aesthetic": ("gpo_data.evaluators.clip_models", "ClipEvaluator"),
    "vlm": ("gpo_data.evaluators.vlm", "VlmEvaluator"),
}
BEHIND_HTTP = ("gpo_data.evaluators.http", "HttpEvaluator")  # each name of http.urls
OWN_EVALUATOR = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)  # module:function; evaluators/function.py
REWARD_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")  # part of a column's name
NAME = re.compile(r"[a-z0-9_-]{1,100}")  # of a dataset: part of a folder's name
SECTIONS: dict[str, type] = {k: t for k, t in get_type_hints(Recipe).items() if dataclasses.is_dataclass(cast(Any, t))}
# What a recipe says of training where it only draws: two that draw the same are then equal.
NO_TRAINING: dict[str, Any] = {"train": Train(), "online": Online(), "eval": Eval()}
PLACES = ("device", "text_encoders")  # where it is computed, not what
NOT_DRAWN = ("duplicates",)  # how prompts are read; what was read counts, as `prompts_digest`
# Younger than the first datasets, whose fingerprints are without them: they count where they are set.
SINCE = ("text_encoder_8bit", "vae_slicing", "vae_tiling", "attention_backend", "store_unconditional")


def fingerprint_of(fields: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=8).hexdigest()
