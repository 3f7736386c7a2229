"""The split: what may be trained on, what settings are chosen with, and what is reported.

A prompt's part is decided by its *content key*, not by its sentence, so that the word KITE is held out under every
colour, and `4 blue circle` under every wording:

    text   key = the word, e.g. "KITE"
    count  key = "{n} {color} {shape}", e.g. "4 blue circle"

    h = blake2b(key, 8 bytes) as a big-endian integer

    train        h mod 5 > 0                        4 keys in 5: training
    validation   h mod 5 = 0, (h div 5) mod 3 = 2   1 in 15: choosing settings, stopping
    heldout      h mod 5 = 0, all other             2 in 15: reporting, once everything is chosen

A pure function of the key: no list is stored. Validation was carved from what had been held out, so what was ever
trained on still is, and what never was still is not. Of the tiny world's 144 counting keys 118 are for training, 9 for
validation and 17 held out; each of the numbers one to six is in all three parts.
"""

import hashlib
from typing import Literal

Part = Literal["train", "validation", "heldout"]

NOT_TRAINED_ONE_IN = 5
VALIDATION_ONE_IN, VALIDATION = 3, 2  # of those


def part_of(key: str) -> Part:
    """The part that the prompts of `key` (see the module's docstring) are in."""
    number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
    if number % NOT_TRAINED_ONE_IN:
        return "train"
    return "validation" if number // NOT_TRAINED_ONE_IN % VALIDATION_ONE_IN == VALIDATION else "heldout"


def held_out(key: str) -> bool:
    """True if `key` must never be trained on: it is for validation or held out."""
    return part_of(key) != "train"
