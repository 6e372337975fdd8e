"""A worker's stable name. It is group instance id and lane at once, so two live processes must never share one.

On one machine a lock file decides, held for the life of the process and released by the kernel however it ends. Between
machines the broker does: the default name begins with the host's.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import stat
import tempfile
from pathlib import Path
from types import TracebackType

from pipeline.errors import ConfigError, IdentityTaken

MOST_PER_HOST = 1000


class Identity:
    """A name that is ours until ``release``; a context manager."""

    def __init__(self, worker_id: str, lock: int) -> None:
        self.worker_id = worker_id
        self._lock = lock

    def release(self) -> None:
        """The file stays: unlinking it would let a third process lock a file that a second one still waits for."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Identity:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def take_identity(worker_id: str, group: str, bootstrap_servers: str, folder: Path | None = None) -> Identity:
    """``worker_id``, or for "" the host's name and the first free number, within one group of one cluster.

    Raises IdentityTaken if a live process of this machine has that name, ConfigError if no lock can be made.
    """
    folder = folder if folder is not None else runtime_folder()
    if worker_id:
        lock, holder = _try_lock(folder, worker_id, group, bootstrap_servers)
        if lock is None:
            raise IdentityTaken(
                f"worker id {worker_id!r} of group {group!r} is taken by process {holder} of this machine;"
                " give another --worker-id, or none for the first free one"
            )
        return Identity(worker_id, lock)
    host = socket.gethostname() or "localhost"
    for number in range(1, MOST_PER_HOST + 1):
        candidate = f"{host}-{number}"
        lock, _ = _try_lock(folder, candidate, group, bootstrap_servers)
        if lock is not None:
            return Identity(candidate, lock)
    raise IdentityTaken(f"{host}-1 to {host}-{MOST_PER_HOST} of group {group!r} are all taken; give --worker-id")


def runtime_folder() -> Path:
    """A folder of this user alone, gone at the latest with the machine's next start."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(base) / "eddy" if base else Path(tempfile.gettempdir()) / f"eddy-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder of lock files {folder}: {error.strerror}") from None
    found = folder.lstat()
    # In a shared /tmp anyone may have made it first: a link or another's folder would let them hold our names.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigError(f"the folder of lock files {folder} is not this user's own; set XDG_RUNTIME_DIR")
    return folder


def _try_lock(folder: Path, worker_id: str, group: str, bootstrap_servers: str) -> tuple[int | None, str]:
    """An open, locked file, or None and who holds it. Not inherited by child processes (PEP 446)."""
    cluster = ",".join(sorted(bootstrap_servers.replace("localhost", "127.0.0.1").split(",")))
    name = hashlib.sha256("\n".join((cluster, group, worker_id)).encode()).hexdigest()[:24]
    file = folder / f"worker-{name}.lock"
    try:
        lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot open the lock file {file}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        os.close(lock)
        return None, holder or "?"
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock, ""
