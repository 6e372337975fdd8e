"""Disks of the simulated machines: real files, which outlive the processes that wrote them and may suffer."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from unittest import mock

import pipeline.copies
from pipeline.streams import local_copy
from tests.simulation.loop import Process, current


class Disks:
    """Below ``root``, a directory for each machine. What a process has locked is free when the process is dead."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self._root, self._rng = root, rng
        self._locked: defaultdict[Process | None, list[FileIO]] = defaultdict(list)

    def of(self, machine: str) -> str:
        """A worker's state_directory there."""
        return str(self._root / machine)

    @contextmanager
    def spinning(self) -> Iterator[None]:
        """Upkeep is done as often as a run of seconds needs it."""
        plain = local_copy._locked

        def locked(path: Path) -> FileIO | None:
            file = plain(path)
            if file is not None:
                self._locked[current()].append(file)
            return file

        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(local_copy, "_locked", locked))
            stack.enter_context(mock.patch.object(local_copy, "SLACK_BYTES", 600))
            stack.enter_context(mock.patch.object(local_copy, "NOTE_MS", 200))
            stack.enter_context(mock.patch.object(pipeline.copies, "TEND_S", 0.5))
            yield

    def died(self, process: Process) -> None:
        """The operating system closes its files."""
        for file in self._locked.pop(process, []):
            file.close()

    def damage(self, machine: str) -> bool:
        """What was not written yet is lost with the power, or a bit turns over, of a file that nobody has open. Whether
        there was one."""
        in_use = {
            os.fstat(file.fileno()).st_ino for files in self._locked.values() for file in files if not file.closed
        }
        left = [path for path in sorted(Path(self.of(machine)).glob("*.copy")) if path.stat().st_ino not in in_use]
        if not left or not (size := (path := self._rng.choice(left)).stat().st_size):
            return False
        whole = bytearray(path.read_bytes())
        at = self._rng.randrange(size)
        how = self._rng.randrange(3)
        if how == 0:
            del whole[at:]
        elif how == 1:
            whole[at:] = bytes(size - at)
        else:
            whole[at] ^= 1 << self._rng.randrange(8)
        written = path.stat().st_mtime_ns
        path.write_bytes(whole)
        os.utime(path, ns=(written, written))
        return True
