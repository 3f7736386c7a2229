"""What a sentence counts: `three small brown dogs and a kite` -> 3 dog, and 1 kite that no number says.

    number   digits (1,000), words (twenty-one, a hundred), a dozen, half a dozen, a couple of; a pair of scissors is
             one thing, a pair of dogs two. `3D`, `1920s`, `two-story`, 11:44, 24/7 and units (`5 years`) are no numbers
             of things.
    things   after it the first noun that a detector knows (classes.py) and that agrees: plural after two, singular
             after one; in between may stand what describes it, commas and `and` too. Where no noun is known, the first
             plural.
    article  `a bench`: one, if the noun is known and not in front of a place (`a train station`). It counts only in
             sentences without a number.

What always holds: a phrase is what stands in the sentence and not a guess; where a number may mean two things (`two or
three dogs`, `at least five`, `two groups of dogs`), or has no things of its own (`two red and three blue balls`, `three
of the five dogs`, `1,5 dogs`), ValueError says so. Numbers that name are passed over: years, `room 5, two dogs`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpo_data.tasks import classes


@dataclass(frozen=True)
class Phrase:
    """Args:
    count: how many.
    name: of one of them, a class of COCO where it is known.
    known: whether a detector is known to know it.
    numbered: a number says so, not an article.
    text: the words of the sentence.
    """

    count: int
    name: str
    known: bool
    numbered: bool
    text: str

    def __str__(self) -> str:
        return f"{self.count} {self.name}"


TOKEN = re.compile(
    r"\d{1,3}(?:,\d{3})+(?![\w,])|\d+(?:[./:]\d+)*(?!\w)|[\w]+(?:[-'’][\w]+)*(?:(?<=s)['’](?=\s\w))?|[^\w\s]"
)
OWNER = re.compile(r"(?:['’]s|s['’])$")  # of what is counted
# Words that end the phrase of the things counted.
AFTER = frozenset(
    """on in at with of near under over above below beside behind between by from to inside around against along across
    next that which who while is are was were be being been standing sitting lying running walking flying playing
    swimming floating parked hanging seen made arranged placed for the this these those into onto through during as than
    each every some many several""".split()  # noqa: SIM905 - easier to read
)
ARTICLES = ("a", "an")
UNITS = frozenset(
    """year month week day hour minute second meter metre centimeter centimetre millimeter kilometer kilometre mile inch
    foot yard degree percent dollar euro cent pound kilogram gram liter litre pixel time am pm px cm mm km kg mph
    story storey level century decade""".split()  # noqa: SIM905
)
COLLECTIVE = frozenset("group herd flock bunch pile stack row set box bag crowd swarm pack team kind type".split())  # noqa: SIM905
LOOSE = ("at least", "at most", "more than", "fewer than", "less than", "up to", "no more", "as many")
SEVERAL = {"dozen": 12, "couple": 2, "pair": 2, "hundred": 100, "thousand": 1000}
NOT_WHOLE = re.compile(r"\d+[./]\d+|\d*[¼-¾⅐-⅞]")
# A noun before one of these says which place it is, and is not in it: a train station, a bird house.
PLACES = frozenset("station stop house cage nest shop store".split())  # noqa: SIM905
PRONOUNS = frozenset("them which whom it us you".split())  # noqa: SIM905 - five dogs, one of them brown
OWNERS = frozenset("the these those my your his her its our their".split())  # noqa: SIM905
YEAR = re.compile(r"1[5-9]\d{2}|20\d{2}")
LONGEST = 3  # words of a class's name


def phrases(sentence: str) -> list[Phrase]:
    """In the order of the sentence. Raises ValueError where a number may mean two things."""
    tokens = [token.lower().replace("’", "'") for token in TOKEN.findall(sentence)]
    found: list[Phrase] = []
    at = 0
    while at < len(tokens):
        number = _number(tokens, at)
        if number is None:
            at += 1
            continue
        count, after, numbered, paired = number
        _refuse_loose(tokens, at, after, sentence)
        things = _things(tokens, after, count, numbered, paired)
        if things is None:
            if numbered:
                _refuse_bare(tokens, at, after, count, sentence)
            at = after
            continue
        end, count, name, known = things
        if numbered and (unit := tokens[end : end + 1]) == ["of"] and name in COLLECTIVE:
            raise ValueError(
                f"how many is not said: {' '.join(tokens[at : end + 2])!r} in {sentence!r} ({unit[0]} what?)"
            )
        text = " ".join(tokens[at:end])
        if name not in UNITS:
            found.append(Phrase(count, classes.canonical(name) if known else name, known, numbered, text))
        at = end
    return found


def _number(tokens: list[str], at: int) -> tuple[int, int, bool, bool] | None:
    """(number, index after it, whether it is one and no article, whether it counts pairs) of what begins here."""
    start, numbered, count = at, True, None
    if tokens[at] in ARTICLES:
        if tokens[at + 1 : at + 2] == ["single"]:
            return 1, at + 2, True, False
        count, numbered, at = 1, False, at + 1
    elif tokens[at] == "half" and (after := at + 1 + (tokens[at + 1 : at + 2] == ["a"])) < len(tokens):
        return (6, after + 1, True, False) if tokens[after] == "dozen" else None
    elif re.fullmatch(r"[\d,]+", tokens[at]) and tokens[at][0].isdigit():
        count, at = int(tokens[at].replace(",", "")), at + 1
    else:
        for end in range(min(len(tokens), at + 8), at, -1):
            words = " ".join(w for part in tokens[at:end] for w in part.split("-") if w != "and" or end == at + 1)
            if tokens[end - 1] != "and" and (n := classes.number_words().get(words)) is not None:
                count, at = n, end
                break
    if count is None and tokens[at] in ("dozen", "dozens"):
        return (12, at + 1, True, False) if tokens[at] == "dozen" else None
    if count is None:
        return None
    if start < at < len(tokens) and (word := tokens[at].removesuffix("s")) in SEVERAL and _is_amount(tokens, at):
        of = tokens[at + 1 : at + 2] == ["of"]
        return count * SEVERAL[word], at + 1 + of, True, word == "pair"
    return count, at, numbered, False


def _is_amount(tokens: list[str], at: int) -> bool:
    """`a pair of dogs`, `a dozen apples`, but a couple that walks is two people in nobody's list."""
    return tokens[at].removesuffix("s") not in ("pair", "couple") or tokens[at + 1 : at + 2] == ["of"]


def _refuse_loose(tokens: list[str], at: int, after: int, sentence: str) -> None:
    before = " ".join(tokens[max(0, at - 2) : at])
    if before in LOOSE:
        raise ValueError(f"no one number: {before} {' '.join(tokens[at:after])!r} in {sentence!r}")
    if at and NOT_WHOLE.fullmatch(tokens[at - 1]) and SEVERAL.keys() & {*tokens[at:after]}:
        raise ValueError(f"no whole number: {' '.join(tokens[at - 1 : after])!r} in {sentence!r}; write how many")
    if tokens[after : after + 1] in (["or"], ["to"], ["-"], ["–"]) and after + 1 < len(tokens):
        other = _number(tokens, after + 1)
        if other is not None and other[2] and tokens[at] not in ARTICLES:
            raise ValueError(f"two numbers: {' '.join(tokens[at : other[1]])!r} in {sentence!r}")


def _refuse_bare(tokens: list[str], at: int, after: int, count: int, sentence: str) -> None:
    """Of a number without things: where it is part of others, or shares the things of the next number."""
    if (at and tokens[at - 1] in ARTICLES) or YEAR.fullmatch(tokens[at]):  # a five star hotel, a blue 1977 Porsche
        return
    end = _part(tokens, after, count) or _shared(tokens, at, after)
    if end is not None:
        raise ValueError(
            f"no things after a number: {' '.join(tokens[at:end])!r} in {sentence!r}; say after each number what it "
            f"counts, as in two red balls and three blue balls"
        )


def _part(tokens: list[str], after: int, count: int) -> int | None:
    """Where `of the five` ends; None for `one of the best rooms`, which is no number of anything, and `two of them`."""
    start = after + (tokens[after : after + 1] == ["out"])
    if tokens[start : start + 1] != ["of"] or PRONOUNS & {*tokens[start + 1 : start + 2]}:
        return None
    start += 1 + (tokens[start + 1 : start + 2] != [] and tokens[start + 1] in OWNERS)
    whole = _number(tokens, start) if start < len(tokens) else None
    if whole is not None and whole[2]:
        return whole[1]
    return start if count != 1 else None


def _shared(tokens: list[str], at: int, after: int) -> int | None:
    """Where the next number ends, if things stand after that; None for a number that names."""
    end = _end(tokens, after)
    number = _number(tokens, end) if end < len(tokens) else None
    if number is None or _things(tokens, number[1], number[0], number[2], number[3]) is None:
        return None
    # Boeing 747 and two trucks; room 5, two dogs; but not 1,5 dogs
    alone = end == after or (tokens[after:end] == [","] and not tokens[end].isdecimal())
    before = tokens[at - 1] if at else ""
    named = tokens[at].isdecimal() and before.isalpha() and before not in AFTER and before not in ("and", "or")
    return None if alone and named else number[1]


def _things(
    tokens: list[str], start: int, count: int, numbered: bool, paired: bool
) -> tuple[int, int, str, bool] | None:
    """(index after the noun, how many, its singular, whether it is known) of what a number counts."""
    end = _end(tokens, start)
    one = count == 1 or (paired and count == 2)
    best: tuple[int, int, str, bool] | None = None
    at = start
    while at < end:
        if tokens[at] in (",", "and", "or") and best and best[2] not in COLORS:
            break
        if OWNER.search(tokens[at]):  # two dogs' bowls are two bowls
            at += 1
            continue
        for size in range(min(LONGEST, end - at), 0, -1):
            words = " ".join(tokens[at : at + size])
            name = _agreeing(words, count, paired)
            if name is not None and not (one and PLACES & {*tokens[at + size : min(at + size + 1, end)]}):
                pairs = paired and classes.canonical(name) in classes.PAIRED
                best = at + size, count // 2 if pairs else count, name, True
                at += size - 1
                break
        if best and not one:
            return best
        at += 1
    if best or not numbered:
        return best
    return _unknown(tokens, start, end, count, paired)


COLORS = ("orange",)  # nouns that are colours, too


def _agreeing(words: str, count: int, paired: bool) -> str | None:
    """The noun, if a detector knows it and it may stand after this number."""
    if words in classes.INVARIANT and words in classes.known_names():
        return words
    if count != 1 or paired:
        return classes.known_plurals().get(words)
    return words if words in classes.known_names() else None


def _unknown(tokens: list[str], start: int, end: int, count: int, paired: bool) -> tuple[int, int, str, bool] | None:
    """The first plural; after one the last word of the phrase."""
    words = [(i, tokens[i]) for i in range(start, end) if tokens[i][0].isalpha() and not OWNER.search(tokens[i])]
    if count == 1:
        stop = next((n for n, (_, word) in enumerate(words) if word in ("and", "or")), len(words))
        words = words[:stop]
        return (words[-1][0] + 1, 1, words[-1][1], False) if words else None
    for i, word in words:
        if word in classes.INVARIANT or classes.is_plural(word) or word in UNITS:
            return i + 1, count // 2 if paired and word in classes.PAIRED else count, classes.singular(word), False
    return None


def _end(tokens: list[str], start: int) -> int:
    """Where the phrase that begins here ends."""
    return next((at for at in range(start, len(tokens)) if _ends(tokens, at)), len(tokens))


def _ends(tokens: list[str], at: int) -> bool:
    """Whether the phrase ends before this word: at a mark, at what leads on, at another number or article."""
    token = tokens[at]
    if token == ",":
        return False
    if not (token[0].isalpha() or token[0].isdigit()) or token in AFTER:
        return True
    return _number(tokens, at) is not None
