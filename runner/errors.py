"""One tree for everything that can go wrong in a way a person should read.

    TunewatchError                 the root; never raised bare
    ├── UsageError            (2)  what was typed or configured is wrong
    ├── NotFoundError         (3)  what was named does not exist
    ├── RefusedError          (4)  read-only, not worth it, over the cap, a second trainer
    ├── UnreachableError      (5)  the link or the host does not answer; says nothing about the run
    ├── ProviderError         (6)  the provider answered, and not with what was asked for
    └── UnconfirmedError      (7)  it may still bill

Each error is one sentence (what was wrong, where), a hint (what to do), and what exists although it failed.
Foreign exceptions are translated at the one module that imports the library, with `raise ... from`.
Secrets never enter a message: modules pass names of variables, not values.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the command `tunewatch`; part of the command-line contract."""

    DONE = 0
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    UNREACHABLE = 5
    PROVIDER = 6
    UNCONFIRMED = 7


class RunExit(IntEnum):
    """Exit codes of a trainer under the supervisor; any other is a crash."""

    FINISHED = 0
    AUTO_STOPPED = 10
    STOPPED = 11
    """Stopped on request, with a checkpoint."""
    LIMIT = 12
    """Budget or deadline, or fenced by a newer epoch."""
    CUDA_OOM = 20
    DISK_FULL = 21
    ALREADY_RUNNING = 75


class TunewatchError(Exception):
    """Root of the tree: a sentence for the user, what to do about it, and what exists all the same."""

    exit_code: Exit = Exit.USAGE
    retry: bool = False
    """Whether doing the same again may help."""

    def __init__(self, message: str, *, hint: str = "", exists: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exists = exists
        """What is there although this failed: an instance id, a path. Empty when nothing is."""

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class UsageError(TunewatchError):
    """What was typed, or written in a file, cannot be used."""

    exit_code = Exit.USAGE


class NotFoundError(TunewatchError):
    """The file, run, offer or instance that was named does not exist."""

    exit_code = Exit.NOT_FOUND


class RefusedError(TunewatchError):
    """Possible, but not allowed now: read-only, over a cap, not worth it, already running."""

    exit_code = Exit.REFUSED


class UnreachableError(TunewatchError):
    """The host or the link did not answer in time. The run may be perfectly well."""

    exit_code = Exit.UNREACHABLE
    retry = True


class ProviderError(TunewatchError):
    """The provider answered, and not with what was asked for."""

    exit_code = Exit.PROVIDER


class UnconfirmedError(TunewatchError):
    """A deed was sent, its effect could not be proved: it may still bill."""

    exit_code = Exit.UNCONFIRMED
    retry = True
