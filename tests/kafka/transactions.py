"""What a cluster says of open transactions, asked fast enough to aim at one: ListTransactions over a bare socket."""

from __future__ import annotations

import signal
import socket
import struct
import time
from types import TracebackType

from tests.kafka.harness import Worker

LIST_TRANSACTIONS = 66
STILL_OPEN_S = 0.03
"""What a dead process had sent is read and decided by the broker well within this."""


class Transactions:
    """Of a cluster of one broker; a context manager."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), 10)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Transactions:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._socket.close()

    def ongoing(self) -> dict[str, int]:
        """Transactional id -> producer id of every transaction that has begun and whose end was not yet asked for."""
        header = struct.pack(">hhih", LIST_TRANSACTIONS, 0, 0, -1) + b"\0"
        body = b"\x02" + _text("Ongoing") + b"\x01\x00"  # one state, no producer ids, no tags
        self._socket.sendall(struct.pack(">i", len(header + body)) + header + body)
        (size,) = struct.unpack(">i", self._file.read(4))
        reply = _Reply(self._file.read(size)[5:])  # after correlation id and tags
        reply.take(">i")  # throttled, ms
        error = reply.take(">h")
        assert error == 0, f"ListTransactions: error {error}"
        for _ in range(reply.length()):
            reply.text()  # states unknown to the broker
        found = {}
        for _ in range(reply.length()):
            transactional_id, producer_id = reply.text(), reply.take(">q")
            reply.text()
            reply.at += 1
            found[transactional_id] = producer_id
        return found

    def await_open(self, lane: str, timeout_s: float) -> bool:
        """Returns as soon as ``lane`` has one open; False if it had none for so long."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if lane in self.ongoing():
                return True
        return False

    def stays_open(self, lane: str) -> bool:
        """Whether the transaction of ``lane``, whose process is dead, is open and nobody decides it any more."""
        end = time.monotonic() + STILL_OPEN_S
        while time.monotonic() < end:
            if lane not in self.ongoing():
                return False
        return True


def stop_at(worker: Worker, transactions: Transactions, inside: bool) -> None:
    """SIGSTOP, either when its transaction is open and its end was not asked for, or when none is."""
    for _ in range(200):
        assert transactions.await_open(worker.lane, 10), f"{worker.worker_id} has nothing to commit"
        worker.process.send_signal(signal.SIGSTOP)
        if transactions.stays_open(worker.lane) == inside and (worker.lane in transactions.ongoing()) == inside:
            return
        worker.process.send_signal(signal.SIGCONT)
    raise AssertionError(f"{worker.worker_id} could not be stopped there")


class _Reply:
    def __init__(self, raw: bytes) -> None:
        self._raw, self.at = raw, 0

    def take(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self._raw, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def length(self) -> int:
        """Of a compact array or string."""
        value = shift = 0
        while True:
            byte = self._raw[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value - 1

    def text(self) -> str:
        n = self.length()
        self.at += n
        return self._raw[self.at - n : self.at].decode()


def _text(word: str) -> bytes:
    return bytes([len(word) + 1]) + word.encode()
