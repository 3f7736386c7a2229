"""The two errors a user can cause, and what ends work that was asked to stop.

`UsageError` (exit code 2): a recipe, option or missing file is wrong; nothing was done.
`RunError` (exit code 1): work was under way and cannot go on; what was committed stays committed.
Each message is what was expected, what was found and what to do, and is printed without a traceback.
"""

import errno
from collections.abc import Sequence

# What a disk or a file system that fails says, whatever was done with it.
FAILING = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE)  # where nothing is wrong with what was asked for
DISK = (*FAILING, errno.EROFS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EACCES)
WRONG_PLACE = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)  # a file where a folder is wanted, or the other way about
MOST = 10  # names in a list of a message


def few(names: Sequence[str], none: str = "none") -> str:
    """`a, b, c`, cut where there are many."""
    more = f", and {len(names) - MOST:,} more" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + more or none


def words(error: Exception, most: int = 300) -> str:
    """Its kind and what it says, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:most]


class UsageError(Exception):
    exit_code = 2


class RunError(Exception):
    exit_code = 1


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: what is staged, committed or in a checkpoint stays, and the same command goes on from there.

    Not a KeyboardInterrupt, which Lightning takes for itself.
    """


class StoreError(RunError):
    """An object store does not answer: it says nothing about what lies there."""
