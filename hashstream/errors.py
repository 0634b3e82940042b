"""Errors that a user can act on.

Each message says what was found and where (file, array, rows), what was expected, and the remedy. The command line
turns the class into the exit code and prints the message alone; any other exception is a defect of HashStream.
"""

from __future__ import annotations


class HashStreamError(Exception):
    """Base of every error that HashStream raises on purpose; exit code 1."""

    exit_code = 1


class InputError(HashStreamError):
    """The input (atlas, hasher, run or file) is missing, damaged, or not what the stage needs; exit code 1."""


class UnreachableError(InputError):
    """An input on the network cannot be read now: no answer, no access; exit code 1."""


class StoredByGenesError(InputError):
    """Counts are there, but cannot be streamed by cells."""


class SettingsError(HashStreamError):
    """The settings contradict each other or the input; exit code 2."""

    exit_code = 2


class TargetExistsError(SettingsError):
    """The target is already there and was not to be replaced; exit code 2."""


class BudgetError(SettingsError):
    """The memory budget cannot be met; the message names one that would do; exit code 2."""


class MissingDependencyError(HashStreamError):
    """An optional package is needed for this stage; the message says what to install; exit code 1."""


class PartialRunError(HashStreamError):
    """The run is incomplete but what is done is kept and can be resumed; exit code 3."""

    exit_code = 3


class TrainingError(HashStreamError):
    """Training failed, such as by a loss that is not a number; the message names the step and settings; exit code 1."""
