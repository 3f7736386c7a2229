"""What of a recipe runs somebody's code, or sends something away. A recipe is data that people share: such a part waits
for the user's word. Of evaluators and watchers:

    [module:function]                        imports the module
    http.urls, vlm.url: not this machine     sends pictures, prompts and a variable of the environment there
    yolo.weights: a file                     pickled objects, which run what they like when they are opened
    sampler.attention_backend: ..._hub       fetches compiled code

The word is `--trust` on the command line and `load(..., trust=True)` in Python. A Recipe that is made in Python is its
caller's own. Without it work what ships with the package (`tiny`) and, by their bare names, the weights that the user
put into ultralytics' own folder.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from gpo_data.errors import UsageError
from gpo_data.recipe.recipe import DETECTING, OWN_EVALUATOR, Recipe

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def expect_no_code(recipe: Recipe) -> None:
    """Raise UsageError, which says what the recipe would run."""
    if found := code_of(recipe):
        raise UsageError(
            f"{'; '.join(found)}: nothing was run; if you trust who wrote it, `--trust` allows it (in Python: "
            f"load(..., trust=True))"
        )


def code_of(recipe: Recipe) -> list[str]:
    """What of the recipe runs code that is not this package's."""
    named = {*recipe.evaluators, *recipe.watchers}
    own = sorted(name for name in named if OWN_EVALUATOR.fullmatch(name))
    found = [f"evaluators: {name} imports and runs the Python module {name.partition(':')[0]}" for name in own]
    weights = recipe.yolo.weights
    if named & {*DETECTING} and weights != "tiny" and _is_path(weights):
        found.append(f"yolo.weights: {weights} is opened as pickled objects, which may run any code")
    backend = recipe.sampler.attention_backend
    if backend is not None and backend.endswith("_hub"):
        found.append(f"sampler.attention_backend: {backend} fetches and runs compiled code")
    judges = [(name, url, recipe.http.token_variable) for name, url in recipe.http.urls.items() if name in named]
    judges += [("vlm", recipe.vlm.url, recipe.vlm.token_variable)] if "vlm" in named else []
    for name, url, variable in judges:
        if urlsplit(url).hostname not in LOOPBACK:
            found.append(f"evaluators: {name} sends pictures, prompts and what {variable} holds to {url}")
    return found


def _is_path(weights: str) -> bool:
    """Whether it is not the bare name of a file in ultralytics' own folder."""
    return "/" in weights or "\\" in weights or Path(weights).exists()
