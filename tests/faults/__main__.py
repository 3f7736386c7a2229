"""Campaigns: `python -m tests.faults [--kills 1000] [--calls] [--errors EIO] [--only online] [--json FILE]`.

A series runs a command again and again, killing it, until it ends by itself, and compares what is there with a series
that nothing killed. `--calls` kills it before every single change of the file system instead. `--errors EIO` has each
of these changes, and writes to each file, fail once; `--errors ENOSPC` has all fail from there on that need space.

    tries    kills; errors
    stuck    series whose command failed, or did not end, though nothing killed it
    changed  series that ended with other weights, tars or facts; lost and doubled groups are among them
    left     series that left temporary files behind
    passed   errors that did not stop the command, which ended as if there had been none
    alone    kills of one rank of two
    unclear  errors, and losses of the other rank, told otherwise than in one line, or with another exit code than 1
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

from tests.faults.cases import CASES, RECIPE, Case, content, leftovers, main
from tests.faults.child import Ended, Fault, run


def prepared(case: Case, model: Path, folder: Path) -> None:
    """The folder in which the case's command is run, as it is before it."""
    folder.mkdir()
    (folder / "r.yaml").write_text(RECIPE.format(model=model, reward=case.reward))
    os.chdir(folder)
    for arguments in case.before:
        ended = run(lambda arguments=arguments: main(list(arguments)), folder / "log.txt")  # type: ignore[misc]
        if ended.code:
            sys.exit(f"{case.name}: {arguments} failed:\n{ended.output}")


def series(case: Case, start: Path, folder: Path, kills: Iterator[dict], found: dict) -> tuple[Ended, list[str]]:
    """How the command ended in a copy of `start`, and what was wrong before that."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(start, folder)
    os.chdir(folder)
    wrong = []
    while True:
        ended = run(case.command(), folder / "log.txt", ranks=case.ranks, **next(kills, {}))
        if ended.alone is not None:
            found["alone"] += 1
            if ended.alone and not clear(ended.alone, ended.output):
                found["unclear"] += 1
                wrong.append(f"unclear: exit {ended.alone}: {ended.output.strip()[-1500:]}")
        if ended.code is not None:
            return ended, wrong
        found["tries"] += 1


def random_kills(case: Case, seconds: float, rng: random.Random) -> Iterator[dict]:
    for _ in range(rng.randint(1, 4)):
        kill: dict = {"after": rng.uniform(0, seconds)}
        if case.ranks > 1 and rng.random() < 0.5:
            kill["victim"] = rng.randrange(case.ranks)
        yield kill


def clear(code: int, output: str) -> bool:
    """Whether a failure was told in one line."""
    said = [line for line in output.splitlines() if line.startswith("error: ")]
    return code == 1 and len(said) == 1 and "Traceback" not in output


def campaign(
    case: Case,
    model: Path,
    root: Path,
    options: argparse.Namespace,
    wanted: int,
    rng: random.Random,
    note: Callable[[dict], object],
) -> dict:
    """The case's row of the table, which `note` gets after each series too: a campaign may be stopped."""
    start, folder = root / "start", root / "series"
    error = getattr(errno, options.errors) if options.errors else None
    every_call = options.calls or error is not None
    prepared(case, model, start)
    found = dict.fromkeys(("tries", "series", "alone", "stuck", "changed", "left", "passed", "unclear"), 0)
    whole, _ = series(case, start, folder, iter([{"fault": Fault(0, error)}]), found)
    if whole.code:
        sys.exit(f"{case.name}: failed without a fault:\n{whole.output}")
    expected = content(folder)
    found = {"case": case.name, **found, "seconds": round(whole.seconds, 1), "calls": whole.calls}
    number = options.first - 1
    while found["tries"] < wanted and (not every_call or number < whole.calls):
        number += 1
        wrong = []
        if error is not None:
            wrong += failing(case, start, folder, Fault(number, error), found)
            ended = run(case.command(), folder / "log.txt")
        else:
            kills = random_kills(case, whole.seconds, rng)
            kills = iter([{"fault": Fault(number)}]) if options.calls else kills
            ended, wrong = series(case, start, folder, kills, found)
        found["series"] += 1
        if ended.code:
            found["stuck"] += 1
            wrong.append(f"stuck: exit {ended.code}: {ended.output.strip()[-600:]}")
        elif (got := content(folder)) != expected:
            found["changed"] += 1
            differing = [k for k in sorted(got.keys() | expected.keys()) if got.get(k) != expected.get(k)]
            wrong.append(f"changed: {differing[:6]}")
        if left := leftovers(folder):
            found["left"] += 1
            wrong.append(f"left: {left[:4]}")
        if wrong:
            print(f"  {case.name}, series {number}: {'; '.join(wrong)}", flush=True)
            shutil.copytree(folder, root.parent / f"wrong-{case.name.replace(' ', '_')}-{number}", dirs_exist_ok=True)
        note(found)
    shutil.rmtree(start)
    return found


def failing(case: Case, start: Path, folder: Path, fault: Fault, found: dict) -> list[str]:
    """Run the command in a copy of `start` with the fault; what was wrong with how it ended."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(start, folder)
    os.chdir(folder)
    ended = run(case.command(), folder / "log.txt", fault=fault)
    found["tries"] += 1
    if ended.code == 0:
        found["passed"] += 1
        return []
    if clear(ended.code or 0, ended.output):
        return []
    found["unclear"] += 1
    return [f"unclear: exit {ended.code}: {ended.output.strip()[-1500:]}"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("tests.faults", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="over all cases")
    parser.add_argument("--calls", action="store_true", help="before every change of the file system, all of them")
    parser.add_argument("--errors", choices=("EIO", "ENOSPC"), help="at every change of the file system")
    parser.add_argument("--first", type=int, default=1, help="with --calls and --errors: the first change")
    parser.add_argument("--only", default="", help="cases whose name contains it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("runs/faults.json"))
    return parser.parse_args()


def make_model(folder: Path) -> Path:
    from tests import conftest

    class Factory:
        def mktemp(self, name: str) -> Path:
            (folder / name).mkdir()
            return folder / name

    made = conftest.random_sd3
    return getattr(made, "__wrapped__", None)(Factory())  # type: ignore[misc]


def all_imports() -> None:
    """What a command would import, once."""
    import diffusers
    import lightning

    import gpo_train.fit  # noqa: F401
    from gpo_data.evaluators.color import ColorEvaluator  # noqa: F401

    assert diffusers.StableDiffusion3Pipeline and lightning.Trainer


if __name__ == "__main__":
    options, began = parse(), time.monotonic()
    out = options.json.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    all_imports()
    chosen = [case for case in CASES if options.only in case.name and not (options.errors and case.ranks > 1)]
    table: list[dict] = []

    def note(row: dict) -> None:
        out.write_text(json.dumps([*table, row], indent=2))

    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        model = make_model(Path(temporary))
        for index, case in enumerate(chosen):
            wanted = 10**9 if options.calls or options.errors else -(-options.kills // len(chosen))
            root = Path(temporary) / f"case-{index}"
            root.mkdir()
            row = campaign(case, model, root, options, wanted, random.Random(options.seed * 1000 + index), note)
            table.append(row)
            print("  ".join(f"{k} {v}" for k, v in row.items()), f" {time.monotonic() - began:.0f} s", flush=True)
            out.write_text(json.dumps(table, indent=2))
            os.chdir(temporary)
            shutil.rmtree(root)
        for wrong in Path(temporary).glob("wrong-*"):
            shutil.copytree(wrong, out.parent / wrong.name, dirs_exist_ok=True)
    sys.exit(any(row[k] for row in table for k in ("stuck", "changed", "left", "unclear")))
