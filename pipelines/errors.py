"""Errors that a person reads: each names the value it got and the fix."""


class SayagainError(Exception):
    """Something went wrong that the user can mend. Exit 1."""

    exit_code = 1


class UsageError(SayagainError):
    """The command line or the configuration is wrong. Exit 2."""

    exit_code = 2


class InputError(SayagainError):
    """A file or a schema is not what it claims to be."""


class NoInput(InputError):
    """No log file is there."""


class LakeError(SayagainError):
    """The lake is not there, of another format or key, or held by another run."""


class Refused(SayagainError):
    """A gate refused the release. Exit 3."""

    exit_code = 3
