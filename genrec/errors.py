"""The exceptions that genrec raises on purpose.

GenrecError
├── ConfigError    a config, an override or an option that cannot be used          (exit code 2)
├── DataError      a log, a prepared data set or an export that cannot be used     (exit code 2)
├── ProtocolError  runs whose numbers were made in different ways                  (exit code 2)
└── RunError       a run that failed or cannot be continued                        (exit code 1)
    ├── RewindError     goes back to its last checkpoint; the launcher starts the workers again
    ├── StorageError    the storage of the checkpoints failed, perhaps for a moment; Ray starts the workers again
    └── PreemptedError  was told to leave and has saved a checkpoint               (exit code 130 or 143)

A message says the rule, the values, and the way out, in one sentence that a user can act on. The command line
prints it without a stack trace; a library caller catches `GenrecError`.
"""

import errno
import os
import signal


class GenrecError(Exception):
    """Root of every error that genrec raises on purpose."""

    exit_code = 1


class ConfigError(GenrecError):
    """A config, an override or a command-line option breaks a rule."""

    exit_code = 2


class DataError(GenrecError):
    """A log, a prepared data set or an export is missing, damaged or unusable."""

    exit_code = 2


class ProtocolError(GenrecError):
    """Runs whose numbers were made in different ways cannot be compared."""

    exit_code = 2


class RunError(GenrecError):
    """A run failed, or cannot be started or continued where it is."""

    exit_code = 1


class RewindError(RunError):
    """A run goes back to its last checkpoint: the launcher starts its workers again."""


class StorageError(RunError):
    """The storage of the checkpoints did not take or give something; trying again may help."""


class PreemptedError(RunError):
    """A run was told to leave its machine and has saved where it was; the same command goes on from there."""

    def __init__(self, message: str, signal_number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def full_disk(error: OSError) -> RunError | None:
    """The sentence for a write that failed for want of space; None when `error` is something else."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    where = f" to {error.filename}" if error.filename else ""
    return RunError(f"No space is left to write{where} ({error.strerror}): free some and run the same command again.")


_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR)
_MAX_SHOWN = 200
"""Characters of a path in a sentence; one that is too long for the system would fill the terminal."""


def unusable_path(error: OSError) -> ConfigError | None:
    """The sentence for a path that the system does not let us use; None when `error` is something else."""
    if error.filename is None or error.errno not in _UNUSABLE:
        return None
    path = os.fsdecode(error.filename) if isinstance(error.filename, bytes | os.PathLike) else str(error.filename)
    shown = path if len(path) <= _MAX_SHOWN else f"{path[:_MAX_SHOWN]}..."
    return ConfigError(f"{shown} cannot be used ({error.strerror}); mend its permissions, or name another place.")
