"""The two errors a user can cause.

`UsageError` (exit code 2): a recipe, option or missing file is wrong; nothing was done.
`RunError` (exit code 1): work was under way and cannot go on; what was committed stays committed.
Each message is what was expected, what was found and what to do, and is printed without a traceback.
"""


class UsageError(Exception):
    exit_code = 2


class RunError(Exception):
    exit_code = 1
