"""The quoted strings of a sentence: what a prompt of task `text` asks to be drawn.

    "Open"  “Open”  „Open“  ”Open”  «Open»  ‹Open›  「Open」  『Open』  ＂Open＂  double quotes of all kinds
    'Open'  ‘Open’  ‚Open‘  `Open'                      single ones, where a word begins and ends
    ""Open""  \\"Open\\"                                  as CSV and JSON write a quote

A straight mark after a digit that opens nothing is an inch or a second (`a 27" monitor`), and a single one inside a
word, after a plural or before a decade an apostrophe (`don't`, `the dogs' bowl`, `the '90s`). Single quotes inside
double ones are of the text.

What always holds: all strings in their order, each not empty, or a ValueError that shows what was understood. A
sentence with text in single and in double quotes, side by side, may mean either and is refused.
"""

from __future__ import annotations

import re

# A mark that opens: those that close it. Straight ones are told apart by what stands beside them.
PAIRS = {
    "“": '”“"',
    "„": '“”"',
    "”": "”",
    "«": "»",
    "»": "«",
    "‹": "›",
    "「": "」",
    "『": "』",
    "＂": "＂",
    "〝": "〞〟",
}
SINGLE = {"'": "'’", "‘": "’'", "‚": "‘’", "`": "'`"}
SPACE_BEFORE = re.compile(r"(^|[\s(\[{,:;=/\-–—])$")
# What an apostrophe stands before.
ELISION = re.compile(r"(\d\ds?|tis|twas|til|n|em|cause|bout|round)\b", re.IGNORECASE)
END_AFTER = re.compile(r"^($|[\s)\]},.:;!?/\-–—…\"”])")


def quoted(sentence: str) -> list[str]:
    """The strings in quotes, in order; [] where there are none. Raises ValueError where that is not clear."""
    plain = re.sub(r'\\+(["\'])', r"\1", sentence)
    plain = re.sub(r'(?<!")""(?!")(?=\S)|(?<=[^\s"])""(?!")', '"', plain) if plain.count('""') > 1 else plain
    double, rest = _double(plain)
    single = _single(rest)
    if double and single:
        raise ValueError(
            f"two kinds of quotes: expected all texts to draw in double quotes, found {_shown(double)} in double and "
            f"{_shown(single)} in single ones: {sentence!r}"
        )
    return double or single


def _double(text: str) -> tuple[list[str], str]:
    """(strings, the sentence without them)."""
    found, rest, at = list[str](), "", 0
    while at < len(text):
        mark = text[at]
        closing = PAIRS.get(mark, "")
        if mark == '"':
            closing = "" if _is_unit(text, at) else '"”“'
        if not closing:
            rest += mark
            at += 1
            continue
        end = next((i for i in range(at + 1, len(text)) if text[i] in closing), -1)
        inside = text[at + 1 : end].strip() if end > 0 else ""
        if not inside:
            what = "an empty quote" if end > 0 else f"a quote that does not end, {text[at : at + 40]!r}"
            known = f", after {_shown(found)}" if found else ""
            raise ValueError(f'{what}{known}: expected the words to draw in quotes, as in a sign that reads "Open"')
        found.append(inside)
        rest += " "
        at = end + 1
    return found, rest


def _is_unit(text: str, at: int) -> bool:
    """A mark that opens stands before a word; after a digit and before a space or a comma it is an inch or a second."""
    return bool(re.search(r"\d$", text[:at])) and bool(re.match(r"($|[\s,.;:)\-x×])", text[at + 1 :]))


def _single(text: str) -> list[str]:
    found, at = list[str](), 0
    while at < len(text):
        if not _opens(text, at):
            at += 1
            continue
        closing = SINGLE[text[at]]
        ends = [i for i in range(at + 2, len(text)) if text[i] in closing and END_AFTER.match(text[i + 1 :])]
        if not ends:  # 'tis
            at += 1
            continue
        inside = text[at + 1 : ends[0]].strip()
        opened = [i for i in range(at + 1, ends[0]) if _opens(text, i)]
        if opened and ELISION.match(text[at + 1 :]):  # the '90s that reads 'Rave'
            at += 1
            continue
        if opened:
            both = f"{inside!r} or {text[opened[0] + 1 : ends[0]]!r}"
            raise ValueError(f"a quote that begins twice: {both}; put the words to draw in double quotes")
        # A plural's apostrophe ends a word just as a quote does: 'The dogs' bowl' has two ends.
        between = range(ends[0] + 1, ends[1]) if len(ends) > 1 and inside[-1:] == "s" else range(0)
        if between and not any(text[i] in SINGLE and SPACE_BEFORE.search(text[:i]) for i in between):
            both = f"{inside!r} or {text[at + 1 : ends[1]]!r}"
            raise ValueError(f"a quote that ends twice: {both}; put the words to draw in double quotes")
        if inside and inside.lower() != "n":  # rock 'n' roll
            found.append(inside)
        at = ends[0] + 1
    return found


def _opens(text: str, at: int) -> bool:
    """Whether a single mark stands where a text begins."""
    return text[at] in SINGLE and bool(SPACE_BEFORE.search(text[:at])) and bool(re.match(r"\S", text[at + 1 :]))


def _shown(found: list[str]) -> str:
    return ", ".join(repr(one) for one in found)
