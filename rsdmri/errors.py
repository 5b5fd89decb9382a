"""The one kind of error that a user can mend.

Commands print it in one paragraph and exit with its code; library calls raise it. Everything else that escapes is a
defect of the package and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something is wrong with a file, an option or a run: says what was found, what was expected and what to do."""

    exit_code = 1


class UsageError(UserError):
    """The command line or a configuration file is wrong; nothing was read or written."""

    exit_code = 2


class NotWritable(UserError):
    """An output could not be written: the disk is full, or the place is not for writing."""


class Elsewhere(UserError):
    """Another process of the same work failed, and says why."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
