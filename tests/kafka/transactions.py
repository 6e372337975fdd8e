"""What a broker says of open transactions, asked fast enough to aim at one: requests over a bare socket."""

from __future__ import annotations

import signal
import socket
import struct
import time
from collections.abc import Iterable, Mapping, Sized
from types import TracebackType
from typing import NamedTuple

from tests.kafka.harness import Worker

DESCRIBE_PRODUCERS, LIST_TRANSACTIONS = 61, 66
LOADING, LOADING_S = 14, 30.0
"""A broker that has just started reads what it knew of transactions."""
STILL_OPEN_S = 0.03
"""What a dead process had sent is read and decided by the broker well within this."""


class Open(NamedTuple):
    """A transaction whose process stands still inside it."""

    producer_id: int
    written: bool
    """Records or offsets of it have reached the broker: what reads committed waits for its end."""


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
        return self.in_state("Ongoing")

    def in_state(self, *states: str) -> dict[str, int]:
        """Transactional id -> producer id, of these states (``PrepareCommit``: decided, markers not yet written)."""
        body = _length(states) + b"".join(map(_text, states)) + b"\x01\x00"
        end = time.monotonic() + LOADING_S
        while True:
            reply = self._ask(LIST_TRANSACTIONS, body)
            reply.take(">i")  # throttled, ms
            error = reply.take(">h")
            if error != LOADING or time.monotonic() > end:
                break
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

    def written(self, producer_id: int, places: Mapping[str, Iterable[int]]) -> set[tuple[str, int]]:
        """Those of some topics' partitions that hold records of this producer's open transaction."""
        topics = [(topic, list(partitions)) for topic, partitions in places.items()]
        body = b"".join(
            _text(topic) + _length(partitions) + struct.pack(f">{len(partitions)}i", *partitions) + b"\0"
            for topic, partitions in topics
        )
        reply = self._ask(DESCRIBE_PRODUCERS, _length(topics) + body + b"\0")
        reply.take(">i")  # throttled, ms
        found = set()
        for _ in range(reply.length()):
            topic = reply.text()
            for _ in range(reply.length()):
                partition, error = reply.take(">i"), reply.take(">h")
                assert error == 0, f"DescribeProducers of {topic}-{partition}: error {error}"
                reply.text()
                for _ in range(reply.length()):
                    producer, _, _, _, _, start = (reply.take(form) for form in (">q", ">i", ">i", ">q", ">i", ">q"))
                    reply.at += 1
                    if producer == producer_id and start >= 0:
                        found.add((topic, partition))
                reply.at += 1
            reply.at += 1
        return found

    def _ask(self, api: int, body: bytes) -> _Reply:
        request = struct.pack(">hhih", api, 0, 0, -1) + b"\0" + body  # version 0, without a client's name and tags
        self._socket.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", self._file.read(4))
        return _Reply(self._file.read(size)[5:])  # after correlation id and tags

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


def stop_inside(
    worker: Worker,
    transactions: Transactions,
    places: Mapping[str, Iterable[int]],
    *,
    before_records: bool,
    timeout_s: float,
) -> Open | None:
    """SIGSTOP with a transaction open; ``before_records``: when nothing has reached ``places`` yet, so that nobody has
    to wait for it. None, and it runs on, if that could not be had in this time."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if not transactions.await_open(worker.lane, 0.2):
            continue
        worker.process.send_signal(signal.SIGSTOP)
        producer_id = transactions.ongoing().get(worker.lane) if transactions.stays_open(worker.lane) else None
        if producer_id is not None:
            written = bool(transactions.written(producer_id, places))
            if not (written and before_records):
                return Open(producer_id, written)
        worker.process.send_signal(signal.SIGCONT)
    return None


def offsets_partition(group: str, partitions: int = 8) -> int:
    """Where in ``__consumer_offsets`` a group's offsets stand: Java's hash of a string."""
    value = 0
    for letter in group:
        value = (31 * value + ord(letter)) & 0xFFFF_FFFF
    return (value & 0x7FFF_FFFF) % partitions


class _Reply:
    def __init__(self, raw: bytes) -> None:
        self._raw, self.at = raw, 0

    def take(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self._raw, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def length(self) -> int:
        """Of a compact array or string; -1 for null."""
        value = shift = 0
        while True:
            byte = self._raw[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value - 1

    def text(self) -> str:
        n = max(0, self.length())
        self.at += n
        return self._raw[self.at - n : self.at].decode()


def _length(of: Sized) -> bytes:
    """Of a compact array or string."""
    value, out = len(of) + 1, bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _text(word: str) -> bytes:
    raw = word.encode()
    return _length(raw) + raw
