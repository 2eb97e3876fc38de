"""Errors that a user can cause. `cli.main` turns each of these into one line on stderr and exit code 2."""

from __future__ import annotations

import re


class MlpLmError(Exception):
    """An error that the user can fix; its text says where, what was found, what was expected and what to do."""


class SettingsError(MlpLmError):
    """Settings, flags or configuration files that are unknown, out of range or at odds with each other."""


class DataError(MlpLmError):
    """A corpus that is missing, cannot be fetched, cannot be read or is too small."""


class TrainingError(MlpLmError):
    """A run that has to end, such as one whose loss is NaN."""


class LostProcessError(TrainingError):
    """One of several processes that work together ended, or no longer answers."""


class CheckpointError(MlpLmError):
    """A checkpoint that is missing, damaged, of another program or format, or of other data."""


class Interrupted(MlpLmError):  # noqa: N818 - nothing went wrong
    """A run that a signal ended, with everything saved."""

    def __init__(self, message: str, exit_code: int) -> None:
        """`exit_code`: what shells report for the signal."""
        super().__init__(message)
        self.exit_code = exit_code


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory is used up; torch has no class of its own for it on the CPU."""
    if isinstance(error, RuntimeError):
        return re.search("(allocate|out of|not enough) memory", str(error)) is not None
    return isinstance(error, MemoryError)
