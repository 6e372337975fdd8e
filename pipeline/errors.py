"""The tree of errors, by whose fault each is.

::

    EddyError
    ├── UserError                what was asked for cannot be done: one line, exit code 2, no traceback
    │   ├── ConfigError          a key or value of the configuration
    │   ├── ContractError        a model without a contract, or one that its graph does not keep
    │   ├── ModelError           a model file that cannot be read or exported
    │   ├── ProviderError        an execution provider that is missing or does not take the nodes
    │   ├── TopicError           a topic that is missing or has another number of partitions
    │   ├── IdentityTaken        a second process with the same worker id
    │   └── Unreachable          no broker answers at this address
    ├── RecordError              one record's fault: it goes to the dead letters, its stream goes on
    ├── CommitError              a transaction did not succeed
    │   ├── GroupRefused         the group no longer knows this membership; the transaction is aborted
    │   ├── OutcomeUnknown       settle the writer first, then ask the group
    │   ├── NotAuthorized        a permission is missing; the message says which to grant
    │   └── PartRefused          one partition's part can never be written as it is
    ├── TakeoverError            a partition cannot be made this worker's own (X10)
    ├── SlotsExhausted           more live streams than the arena has slots
    ├── TierFull                 streams without a slot fit neither in memory nor on disk
    ├── LocalCopyFailed          a local copy of a changelog cannot be kept; all goes on without it
    ├── EngineFailed             the model raised while running; names the partitions whose rows are torn
    ├── Stalled                  the worker gets nothing done; its supervisor is to start it again
    └── Broken                   an invariant of Eddy's own does not hold: a bug, please report
"""

from __future__ import annotations

from collections.abc import Iterable


class EddyError(Exception):
    """Whatever Eddy raises on purpose."""


class UserError(EddyError):
    """What was asked for cannot be done; the message says what, which value, and what to do about it."""


class ConfigError(UserError):
    """A key or value of the configuration."""


class ContractError(UserError):
    """A model without a contract, or one whose contract does not fit its graph."""


class ModelError(UserError):
    """A model file that cannot be read, exported or proven."""


class ProviderError(UserError):
    """An execution provider that is missing, or that does not take the model's nodes."""


class TopicError(UserError):
    """A topic that is missing, or has another number of partitions than it must."""


class IdentityTaken(UserError):
    """Another live process has this worker id."""


class Unreachable(UserError):
    """No broker answers at the address."""


class RecordError(EddyError):
    """A record that cannot be served: it becomes a dead letter, and its stream goes on.

    ``reason`` is a short kebab-case word for the metric's label; the message says the rest.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class CommitError(EddyError):
    """A transaction did not succeed."""


class GroupRefused(CommitError):
    """The group no longer knows the membership sent (22, 25, 27, 82); nothing of the transaction is visible."""


class OutcomeUnknown(CommitError):
    """Whether the transaction took place is not known: settle the writer, then ask the group (X11)."""


class NotAuthorized(CommitError):
    """The cluster forbids it, and the message says what to allow; nothing is visible once the writer is settled, and
    when it is allowed again all goes on."""


class PartRefused(CommitError):
    """One partition's part can never be written as it is (a record larger than the topic takes, say)."""

    def __init__(self, partition: int, message: str) -> None:
        super().__init__(message)
        self.partition = partition


class TakeoverError(EddyError):
    """A check of X10 failed: the partition cannot be made this worker's own."""

    def __init__(self, partition: int, message: str) -> None:
        super().__init__(f"partition {partition}: {message}")
        self.partition = partition


class SlotsExhausted(EddyError):
    """More live streams than the arena has slots; the message names the setting to raise."""


class TierFull(EddyError):
    """Streams without a slot fit neither in memory nor on disk; the message names the place and the settings."""


class LocalCopyFailed(EddyError):
    """A local copy of a changelog partition cannot be kept (a full disk); the worker goes on without it."""


class EngineFailed(EddyError):
    """The model raised while it ran; the rows of ``partitions`` can no longer be trusted."""

    def __init__(self, message: str, partitions: Iterable[int]) -> None:
        super().__init__(message)
        self.partitions = frozenset(partitions)


class Stalled(EddyError):
    """Nothing could be committed for ``max_stall``: the worker ends, so that its supervisor starts another."""


class Broken(EddyError):
    """An invariant of Eddy's own does not hold."""
