"""The split between what may be trained on and what is held out.

A prompt is held out by its *content key*, not by its sentence, so that the word
KITE is held out under every colour, and `4 blue circle` under every wording:

    text   key = the word, e.g. "KITE"
    count  key = "{n} {color} {shape}", e.g. "4 blue circle"

    held_out(key)  <=>  blake2b(key, 8 bytes) as a big-endian integer is 0 modulo 5

A pure function of the key: no list is stored, and about one key in five is held out.
"""

import hashlib

HELD_OUT_ONE_IN = 5


def held_out(key: str) -> bool:
    """True if `key` (see the module's docstring) must never be trained on."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0
