"""The verb `export-pairs`: pairs of a dataset as other trainers read them.

    pickapic      pairs-00000.parquet: Pick-a-Pic's columns caption, jpg_0, jpg_1 (the stored pictures, PNG or WebP),
                  label_0, label_1 (1 and 0), ...; which side is the better one is drawn by lot, from the pair's name
    verl-omni     pairs-00000.parquet as its offline DPO reads it (SD3): img_win and img_lose (paths under images/),
                  their latents and the prompt's embeddings, tensors as torch.save writes them, win_score, lose_score
    simpletuner   chosen/ and rejected/: pictures of equal names with their captions (.txt), and multidatabackend.json

Each has, in columns or in pairs.jsonl, the prompt, both rewards and both noise seeds.

What always holds: the folder is new or empty; pictures are the stored ones, byte for byte; latents are the sampler's
own.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console

from gpo_data.errors import UsageError
from gpo_data.exchange.pairs import Pair, choose
from gpo_data.group import from_sample
from gpo_data.lake.durable import write_atomic
from gpo_data.out_folder import expect_empty, make_folder
from gpo_data.parts import pictures_of
from gpo_data.progress import Bar
from gpo_data.recipe import Recipe

FILE_ROWS = 2000  # pairs in one Parquet file
Row = dict[str, Any]
Sample = Mapping[str, bytes]


def export(recipe: Recipe, out: Path, kind: str, margin: float | None, console: Console) -> int:
    """Write the pairs; how many. Raises UsageError, RunError.

    Args:
        kind: one of KINDS.
        margin: smallest difference of rewards; None: a group's best and worst.
    """
    expect_empty(out)
    pairs = choose(recipe, margin)
    if not pairs:
        how = "two members of different reward" if margin is None else f"members whose rewards differ by {margin:g}"
        raise UsageError(f"dataset {recipe.name}: no group has {how}; try another reward: or --margin")
    make_folder(out)
    groups = len({pair.key for pair in pairs})
    with Bar("exporting", groups, "groups", console) as bar:

        def samples() -> Iterator[tuple[Pair, Sample]]:
            for key, of_group in groupby(pairs, key=lambda pair: pair.key):
                together = list(of_group)
                sample = together[0].record.read()
                for pair in together:
                    yield pair, sample
                bar.step(line=key)

        KINDS[kind](recipe, out, samples())
    console.print(f"{len(pairs)} pairs of {groups} groups: {out}", soft_wrap=True)
    return len(pairs)


def _pickapic(recipe: Recipe, out: Path, samples: Iterator[tuple[Pair, Sample]]) -> None:
    def row(pair: Pair, sample: Sample) -> Row:
        first_wins = hashlib.blake2b(pair.name.encode(), digest_size=1).digest()[0] % 2 == 0
        sides = (pair.better, pair.worse) if first_wins else (pair.worse, pair.better)
        uids = [f"{pair.key}-{side.member:02d}" for side in sides]
        made: Row = {"caption": pair.prompt}
        for i, side in enumerate(sides):
            label = 1.0 if side is pair.better else 0.0
            made |= {f"jpg_{i}": picture_of(sample, side.member)[1], f"label_{i}": label}
            made |= {f"image_{i}_uid": uids[i], f"model_{i}": recipe.model}
            made |= {f"reward_{i}": side.reward, f"seed_{i}": side.seed, f"member_{i}": side.member}
        made |= {"best_image_uid": uids[0 if first_wins else 1], "are_different": True, "has_label": True}
        return made | {"prompt_id": pair.prompt_id, "group_key": pair.key}

    _parquet(out, (row(pair, sample) for pair, sample in samples))


def _verl_omni(recipe: Recipe, out: Path, samples: Iterator[tuple[Pair, Sample]]) -> None:
    (out / "images").mkdir()
    negative = recipe.sampler.negative_prompt or " "

    def row(index: int, pair: Pair, sample: Sample) -> Row:
        group = from_sample(sample, images=False)
        if "pooled_prompt_embeds" not in group.conditioning or "add_time_ids" in group.conditioning:
            raise UsageError(
                "--format verl-omni: its offline DPO takes the latents and embeddings of Stable Diffusion 3, found "
                f"{', '.join(group.conditioning)} of {recipe.model}; pickapic and simpletuner hold pictures alone"
            )
        embeds = group.conditioning["prompt_embeds"]
        made: Row = {
            "data_source": "gpo",
            "prompt": [{"role": "user", "content": pair.prompt}],
            "negative_prompt": [{"role": "user", "content": negative}],
        }
        for name, side in (("win", pair.better), ("lose", pair.worse)):
            extension, data = picture_of(sample, side.member)
            path = Path("images") / f"{pair.name}-{name}.{extension}"
            (out / path).write_bytes(data)
            made |= {f"img_{name}": str(path), f"img_{name}_latents": _saved(group.latents[side.member])}
            made |= {f"{name}_score": side.reward}
        return made | {
            "prompt_embeds": _saved(embeds),
            "prompt_embeds_mask": _saved(torch.ones(len(embeds), dtype=torch.int32)),
            "pooled_prompt_embeds": _saved(group.conditioning["pooled_prompt_embeds"]),
            "uid": pair.name,
            "reward_model": {"style": "model", "ground_truth": pair.prompt},
            "extra_info": {
                "split": "train",
                "index": index,
                "raw_prompt": pair.prompt,
                "raw_negative_prompt": negative,
                "win_seed": pair.better.seed,
                "lose_seed": pair.worse.seed,
            },
        }

    _parquet(out, (row(i, pair, sample) for i, (pair, sample) in enumerate(samples)))


def _simpletuner(recipe: Recipe, out: Path, samples: Iterator[tuple[Pair, Sample]]) -> None:
    folders = {"chosen": out / "chosen", "rejected": out / "rejected"}
    for folder in folders.values():
        folder.mkdir()
    lines = []
    for pair, sample in samples:
        for side, folder in zip((pair.better, pair.worse), folders.values(), strict=True):
            extension, data = picture_of(sample, side.member)
            (folder / f"{pair.name}.{extension}").write_bytes(data)
            (folder / f"{pair.name}.txt").write_text(pair.prompt, encoding="utf-8")
        both = {"chosen": vars(pair.better), "rejected": vars(pair.worse)}
        line = {"name": pair.name, "prompt": pair.prompt, "prompt_id": pair.prompt_id, "group_key": pair.key} | both
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_atomic(out / "pairs.jsonl", "".join(lines).encode())
    shared = {"type": "local", "caption_strategy": "textfile", "metadata_backend": "discovery", "crop": False}
    shared |= {"resolution": recipe.sampler.height, "resolution_type": "pixel"}
    backends = [
        {"id": "chosen", "dataset_type": "image", "conditioning_data": "rejected"},
        {"id": "rejected", "dataset_type": "conditioning", "conditioning_type": "reference_strict"},
    ]
    made: list[Row] = [
        one
        | shared
        | {"instance_data_dir": str(folders[one["id"]].resolve()), "cache_dir_vae": f"cache/vae/{one['id']}"}
        for one in backends
    ]
    made.append(
        {"id": "text", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/text"}
    )
    write_atomic(out / "multidatabackend.json", json.dumps(made, indent=2).encode())


KINDS: dict[str, Callable[[Recipe, Path, Iterator[tuple[Pair, Sample]]], None]] = {
    "pickapic": _pickapic,
    "verl-omni": _verl_omni,
    "simpletuner": _simpletuner,
}


def picture_of(sample: Sample, member: int) -> tuple[str, bytes]:
    """(extension, bytes) of a member's stored picture."""
    name = pictures_of(sample)[member]  # one that is ok has a picture: from_sample holds this, and so does verify
    return name.rpartition(".")[2], sample[name]


def _saved(tensor: torch.Tensor) -> bytes:
    """As torch.save writes it, and `torch.load(..., weights_only=True)` reads it."""
    buffer = io.BytesIO()
    torch.save(tensor.clone(), buffer)  # a view would be saved with all of its group
    return buffer.getvalue()


def _parquet(out: Path, rows: Iterator[Row]) -> None:
    """Files of FILE_ROWS pairs, one after the other in memory."""
    number, waiting = 0, list[Row]()
    for row in rows:
        waiting.append(row)
        if len(waiting) == FILE_ROWS:
            _write(out, number, waiting)
            number, waiting = number + 1, []
    if waiting:
        _write(out, number, waiting)


def _write(out: Path, number: int, rows: list[Row]) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, compression="zstd")
    write_atomic(out / f"pairs-{number:05d}.parquet", buffer.getvalue())
