"""A table of verbs, such as `gpo-data` and `gpo-train` are: VERB RECIPE [--key value ...].

    command = Command("gpo-data", __doc__)

    @command.verb(argument("--limit", type=int, default=4, help="how many"))
    def show(recipe: Recipe, options: Options) -> None:
        \"\"\"what the verb does, in the words of its help\"\"\"

Any key of the recipe can be overridden on the command line of any verb. A verb that runs evaluators takes `--trust`,
and without it no recipe that names code of its own (recipe/trust.py).

What went wrong is one line and an exit code: 1: a run failed; 2: the recipe or the command line is wrong; 130: stopped
by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import atexit
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from gpo_data import hardware
from gpo_data.errors import DISK, WRONG_PLACE, Interrupted, RunError, UsageError
from gpo_data.recipe import RENAMED, Recipe, key_names, load, split_overrides
from gpo_data.recipe.checks import MOST_INT
from gpo_data.recipe.files import did_you_mean
from gpo_data.recipe.parse import SHORT

Options = argparse.Namespace
Verb = Callable[[Any, Options], int | None]
Reader = Callable[[str, Sequence[str], bool], Any]  # (what the command line names, overrides, whether it is trusted)
Argument = tuple[tuple[str, ...], dict[str, Any]]
REWARD_KEYS = ("--reward", "--rewards", "--reward_weights")  # any of which is another reward than the stored one
TRUST = "run code that the recipe names: evaluators of its own, pickled weights of a detector"


def argument(*names: str, **options: Any) -> Argument:
    """As `argparse.ArgumentParser.add_argument` takes it."""
    return names, options


def never(options: Options) -> bool:
    """Of a verb that runs nothing that the recipe names."""
    return False


def at_least(lowest: int) -> Callable[[str], int]:
    """The type of an argument: a whole number."""

    def whole(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text[:20]) <= MOST_INT:
            raise argparse.ArgumentTypeError(f"expected a whole number, {lowest} or more, found {text:.200}")
        return int(text)

    return whole


def positive(text: str) -> float:
    """The type of an argument: a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text:.200}")
    return number


class Command:
    """`keys`: sections of the recipe that the help of a verb shows, unless it says otherwise; "" is the top level."""

    def __init__(self, name: str, description: str | None, keys: Sequence[str] = ()) -> None:
        style = argparse.RawDescriptionHelpFormatter
        self.parser = argparse.ArgumentParser(name, description=description, formatter_class=style, allow_abbrev=False)
        self._parsers = self.parser.add_subparsers(required=True, metavar="VERB", parser_class=_VerbParser)
        self._keys = keys
        self._verbs: dict[str, tuple[Verb, _VerbParser, Reader, Callable[[Options], bool]]] = {}

    def verb(
        self,
        *arguments: Argument,
        name: str = "",
        keys: Sequence[str] | None = None,
        runs: Callable[[Options], bool] = lambda options: True,
        reads: tuple[str, str, Reader] = ("recipe", "a name such as text-tiny, or a file", load),
    ) -> Callable[[Verb], Verb]:
        """Adds the function to the table, under its own name or `name`.

        Args:
            runs: whether it runs what the recipe names as evaluators, with these options.
            reads: what it is about: a word, its help, and what makes of it the function's first argument.
        """

        def add(function: Verb) -> Verb:
            named = name or function.__name__
            parser = self._parsers.add_parser(
                named, help=function.__doc__, description=f"{named}: {function.__doc__}", allow_abbrev=False
            )
            parser.add_argument("recipe", metavar=reads[0], help=reads[1])
            for names, options in arguments:
                parser.add_argument(*names, **options)
            if runs is not never:
                parser.add_argument("--trust", action="store_true", help=TRUST)
            parser.sections = self._keys if keys is None else keys
            self._verbs[named] = function, parser, reads[2], runs
            return function

        return add

    def run(self) -> NoReturn:
        """`main` as a process, which ends with its exit code."""
        hardware.collect_rarely()
        code = self.main()
        atexit.register(_leave, code)
        sys.exit(code)

    def main(self, argv: list[str] | None = None) -> int:
        """Run the verb; the exit code."""
        arguments = sys.argv[1:] if argv is None else argv
        if arguments[:1] == ["--"]:  # torchrun's own parser would take `--run` for one of its options
            arguments = arguments[1:]
        if not arguments or arguments[0] not in self._verbs:
            self.parser.parse_args(arguments)  # prints help, or which verbs there are, and exits
        hardware.wait_briefly()
        function, parser, read, runs = self._verbs[arguments[0]]
        # A recipe's keys come out first: their values would look like this verb's positional arguments.
        overrides, rest = split_overrides(arguments[1:], parser._option_string_actions)
        options, unknown = parser.parse_known_intermixed_args(rest)
        options.reward = any(o.split("=")[0] in REWARD_KEYS for o in overrides)
        try:
            _expect_understood(unknown, parser)
            trust = not runs(options) or options.trust
            return function(read(options.recipe, overrides, trust), options) or 0
        except (UsageError, RunError) as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        except (KeyboardInterrupt, Interrupted):
            print("stopped; the same command goes on from here", file=sys.stderr)
            return 130
        except BrokenPipeError:  # `gpo-data sql ... | head`
            with suppress(OSError, ValueError):  # what is left in the buffer goes nowhere
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if runs is never:
                return 0
            print("nobody reads the output any more; the same command goes on from here", file=sys.stderr)
            return 1
        except OSError as error:
            if error.errno not in (*DISK, *WRONG_PLACE):
                raise
            print(f"error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
            return 1 if error.errno in DISK else 2


def _expect_understood(unknown: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Raises UsageError for the first that is neither an option of the verb nor a key of a recipe."""
    if not unknown:
        return
    name = unknown[0].partition("=")[0]
    if (key := name.removeprefix("--")) in RENAMED:
        raise UsageError(f"{name}: the key is {RENAMED[key]!r} now")
    there = [*parser._option_string_actions, *(f"--{key}" for key in [*SHORT, *key_names(Recipe)])]
    raise UsageError(
        f"{unknown[0]:.200}: expected an option of {parser.prog!r}, or --key value with a key of the recipe"
        f"{did_you_mean(name, there)}"
    )


def _leave(code: int) -> None:
    """At the end of a process, after its threads: all that Python does then, but for taking the modules apart.

    Those are half a million objects after torch and diffusers, which takes 1.5 to 2 s of an AMD EPYC (Zen 3) and gives
    nothing to a process that is gone. What has something to finish has said so to `atexit`.
    """
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        return  # a profiler of CUDA's (nsys) hears of the end from C
    atexit.unregister(_leave)
    atexit._run_exitfuncs()
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except (OSError, ValueError):  # nobody reads it any more, or it is closed: Python knows what to do
        return
    os._exit(code)


class _VerbParser(argparse.ArgumentParser):
    """Its help ends with keys of the recipe, which are put together when help is asked for."""

    sections: Sequence[str] = ()

    def format_help(self) -> str:
        from gpo_data.recipe.reference import for_terminal

        return super().format_help() + (for_terminal(self.sections) if self.sections else "")
