"""The brokers: requests in, answers out. Logs, transactions and groups live in rooms of their own.

What is written survives (acks=all, no unclean election); a node that is down takes its connections along, and what it
led or coordinated moves to another one, or waits for it.
"""

from __future__ import annotations

import random
import uuid
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka.protocol.coordination import FindCoordinatorResponse_v1

from tests.simulation.groups import Groups, Joined, Synced
from tests.simulation.log import Log, Place
from tests.simulation.loop import EPOCH_S, SimLoop
from tests.simulation.transactions import Transactions

UNKNOWN_TOPIC, NO_LEADER, NOT_LEADER, LOADING, NOT_AVAILABLE, NOT_COORDINATOR = 3, 5, 6, 14, 15, 16
FEW_REPLICAS, TOPIC_EXISTS, INVALID_EPOCH, UNKNOWN_TRANSACTION = 19, 36, 47, 105
COMMITTED = 1
DEFAULTS = {"delete.retention.ms": "86400000", "retention.ms": "604800000", "cleanup.policy": "delete"}
NO_ID = uuid.UUID(int=0)
EARLIEST = -2
HOST = "sim"

Answer = Callable[[Any], None]


@dataclass(slots=True)
class Node:
    number: int
    up: bool = True
    since_s: float = 0.0
    """When it came up, or went down."""
    connections: set[Any] = field(default_factory=set)


@dataclass(slots=True)
class Fetch:
    """A fetch that waits for data."""

    request: Any
    answer: Answer
    done: bool = False


class Cluster:
    """See the module. ``marker_s`` draws how long each marker takes; ``verify_share`` of first records and offsets of a
    transaction are answered as "not yet verified"; ``roll_share`` of batches begin a segment."""

    def __init__(
        self,
        loop: SimLoop,
        rng: random.Random,
        nodes: int = 1,
        *,
        check_s: float = 1.0,
        marker_s: Callable[[], float] = lambda: 0.002,
        verify_share: float = 0.0,
        roll_share: float = 0.0,
        election_s: float = 0.3,
        loading_s: float = 0.1,
    ) -> None:
        self.loop, self.rng = loop, rng
        self.nodes = {n: Node(n) for n in range(1, nodes + 1)}
        self.logs: dict[Place, Log] = {}
        self.partitions: dict[str, int] = {}
        self.ids: dict[str, uuid.UUID] = {}
        self.settings: dict[str, dict[str, str]] = {}
        self.defaults = dict(DEFAULTS)
        self._ids = random.Random(rng.random())
        self.transaction_timeout_max_ms = 900_000
        self.election_s, self.loading_s = election_s, loading_s
        self._verify_share, self._roll_share = verify_share, roll_share
        self._verified: set[tuple[str, int, int, Any]] = set()
        self._homes: dict[tuple[str, Any], tuple[int, float]] = {}
        """What was led or coordinated where, and since when."""
        self.transactions = Transactions(self, rng, check_s, marker_s)
        self.groups = Groups(self, rng)
        self.requests: dict[int, int] = {}
        """How many of each kind."""

    def _rolls(self) -> bool:
        return self.rng.random() < self._roll_share

    def now_ms(self) -> int:
        return int((EPOCH_S + self.loop.time()) * 1000)

    # ---- topics

    def create(self, topic: str, partitions: int, settings: Mapping[str, str] | None = None) -> int:
        if topic in self.partitions:
            return TOPIC_EXISTS
        settings = settings or {}
        self.partitions[topic] = partitions
        self.ids[topic] = uuid.UUID(int=self._ids.getrandbits(128))
        self.settings[topic] = dict(settings)
        for p in range(partitions):
            size = int(settings.get("max.message.bytes", 1_048_588))
            compacted = settings.get("cleanup.policy") == "compact"
            self.logs[topic, p] = Log((topic, p), size, compacted=compacted, rolls=self._rolls)
        return 0

    def delete(self, topic: str) -> None:
        """With the groups' offsets of it; those in open transactions may outlive it."""
        for p in range(self.partitions.pop(topic)):
            log = self.logs.pop((topic, p))
            log._tell()
            for group in self.groups.all.values():
                group.forget((topic, p), pending=self.rng.random() < 0.5)

    # ---- who is where

    def _home(self, kind: str, key: Any) -> int | None:
        """The node that leads or coordinates, None while nobody does. Moves when its node has been down long enough."""
        names = sorted(self.nodes)
        wanted = names[zlib.crc32(repr((kind, key)).encode()) % len(names)]
        home, _ = self._homes.setdefault((kind, key), (wanted, -1e9))
        node = self.nodes[home]
        now = self.loop.time()
        if node.up:
            return home
        if now - node.since_s < self.election_s:
            return None
        others = [n for n in names if self.nodes[n].up]
        if not others:
            return None
        self._homes[kind, key] = (others[0], now)
        if kind == "group" and key in self.groups.all:
            self.groups.all[key].loaded()
        return others[0]

    def leads(self, place: Place) -> bool:
        return self._home("log", place) is not None

    def coordinates(self, kind: str, key: str) -> bool:
        return self._home(kind, key) is not None

    def _coordinator_error(self, node: int, kind: str, key: str) -> int:
        home = self._home(kind, key)
        if home is None:
            return NOT_AVAILABLE
        if home != node:
            return NOT_COORDINATOR
        since = max(self._homes[kind, key][1], self.nodes[home].since_s if self.nodes[home].since_s else -1e9)
        return LOADING if self.loop.time() - since < self.loading_s else 0

    def leader_error(self, node: int, place: Place) -> int:
        if place not in self.logs:
            return UNKNOWN_TOPIC
        home = self._home("log", place)
        return 0 if home == node else NOT_LEADER

    def crash(self, number: int) -> None:
        node = self.nodes[number]
        if node.up:
            node.up, node.since_s = False, self.loop.time()
            for connection in list(node.connections):
                connection.broken()
            node.connections.clear()

    def restart(self, number: int) -> None:
        node = self.nodes[number]
        if not node.up:
            node.up, node.since_s = True, self.loop.time()
            for (kind, key), (home, _) in list(self._homes.items()):
                if home == number and kind == "group" and key in self.groups.all:
                    self.groups.all[key].loaded()

    # ---- requests

    def handle(self, node: int, request: Any, answer: Answer) -> None:
        """Calls ``answer`` with the response, now or later."""
        self.requests[request.API_KEY] = self.requests.get(request.API_KEY, 0) + 1
        HANDLERS[request.API_KEY](self, node, request, answer)

    def _metadata(self, node: int, request: Any, answer: Answer) -> None:
        if request.API_VERSION >= 10:  # asked for topic ids alone
            rows = []
            for _, name, _ in request.topics:
                known = name in self.partitions
                rows.append((0 if known else UNKNOWN_TOPIC, name, self.ids.get(name, NO_ID), False, [], 0, {}))
            answer(request.RESPONSE_TYPE(0, [], "sim", min(self.nodes), rows, 0, {}))
            return
        # No rack: the hash of None differs by process before Python 3.12, and aiokafka keeps brokers in a set.
        brokers = [(n.number, HOST, n.number, "") for n in self.nodes.values() if n.up]
        names = sorted(self.partitions) if request.topics is None else request.topics
        topics = []
        for name in names:
            rows = []
            for p in range(self.partitions.get(name, 0)):
                home = self._home("log", (name, p))
                rows.append((0 if home else NO_LEADER, p, home if home else -1, [1], [1], []))
            topics.append((0 if rows else UNKNOWN_TOPIC, name, False, rows))
        answer(request.RESPONSE_TYPE(0, brokers, "sim", min(self.nodes), topics))

    def _find_coordinator(self, node: int, request: Any, answer: Answer) -> None:
        kind = "txn" if request.coordinator_type else "group"
        home = self._home(kind, request.coordinator_key)
        if home is None:
            answer(FindCoordinatorResponse_v1(0, NOT_AVAILABLE, "", -1, "", -1))
        else:
            answer(FindCoordinatorResponse_v1(0, 0, "", home, HOST, home))

    def _create_topics(self, node: int, request: Any, answer: Answer) -> None:
        errors = []
        for name, partitions, _replication, _assignment, settings in request.create_topic_requests:
            errors.append((name, self.create(name, partitions, dict(settings)), None))
        answer(
            request.RESPONSE_TYPE(*([0] if "throttle_time_ms" in request.RESPONSE_TYPE.SCHEMA.names else []), errors)
        )

    def _describe_configs(self, node: int, request: Any, answer: Answer) -> None:
        out = []
        for kind, name, wanted in request.resources:
            known = self.settings.get(name)
            values = {**self.defaults, **(known or {})}
            rows = [(w, values.get(w, ""), False, 5, False, []) for w in wanted or values]
            out.append((0 if known is not None else UNKNOWN_TOPIC, None, kind, name, rows if known is not None else []))
        answer(request.RESPONSE_TYPE(0, out))

    def _list_offsets(self, node: int, request: Any, answer: Answer) -> None:
        topics = []
        for topic, partitions in request.topics:
            rows = []
            for p, which in partitions:
                error, offset = self.leader_error(node, (topic, p)), -1
                if not error:
                    log = self.logs[topic, p]
                    if which == EARLIEST:
                        offset = log.start
                    else:
                        offset = log.stable if request.isolation_level == COMMITTED else log.end
                rows.append((p, error, -1, offset))
            topics.append((topic, rows))
        answer(request.RESPONSE_TYPE(0, topics))

    def _fetch(self, node: int, request: Any, answer: Answer) -> None:
        wait = Fetch(request, answer)
        asked = [((topic, row[0]), row[2]) for topic, rows in request.topics for row in rows]
        committed = request.isolation_level == COMMITTED

        def ready() -> bool:
            return any(
                self.leader_error(node, place) or self.logs[place].has(offset, committed) for place, offset in asked
            )

        def finish() -> None:
            if not wait.done:
                wait.done = True
                answer(self._fetched(node, request))

        def look() -> None:
            if wait.done:
                return
            if ready():
                finish()
            else:
                watch()

        def watch() -> None:
            for place, _ in asked:
                self.logs[place].changed.append(look)

        if ready():
            finish()
        else:
            watch()
            self.loop.call_later(request.max_wait_time / 1e3, finish)

    def _fetched(self, node: int, request: Any) -> Any:
        topics = []
        left = request.max_bytes
        for topic, rows in request.topics:
            out = []
            for row in rows:
                p, offset, most = row[0], row[2], row[4]
                error = self.leader_error(node, (topic, p))
                if error:
                    out.append((p, error, -1, -1, -1, [], -1, b""))
                    continue
                got = self.logs[topic, p].fetch(offset, request.isolation_level == COMMITTED, min(most, max(left, 1)))
                left -= len(got.data)
                out.append((p, got.error, got.highwater, got.stable, got.start, got.aborted, -1, got.data))
            topics.append((topic, out))
        return request.RESPONSE_TYPE(0, 0, 0, topics)

    def _produce(self, node: int, request: Any, answer: Answer) -> None:
        topics = []
        for topic, partitions in request.topics:
            rows = []
            for p, data in partitions:
                error, offset = self.leader_error(node, (topic, p)), -1
                if not error and request.transactional_id is not None:
                    producer = int.from_bytes(data[43:51], "big", signed=True)
                    epoch = int.from_bytes(data[51:53], "big", signed=True)
                    known = self.logs[topic, p].producers.get(producer)
                    if known is not None and epoch < known.epoch:
                        error = INVALID_EPOCH
                    elif producer not in self.logs[topic, p].open:
                        error = self._verify(request.transactional_id, producer, epoch, (topic, p))
                if not error:
                    error, offset = self.logs[topic, p].append(data)
                rows.append((p, error, offset, -1, 0))
            topics.append((topic, rows))
        answer(request.RESPONSE_TYPE(topics, 0))

    def _verify(self, id: str, producer: int, epoch: int, place: Place) -> int:
        """KIP-890: what was never added to the transaction is refused; the question may take longer than the answer."""
        t = self.transactions.all.get(id)
        number = t.number if t is not None else -1
        once = (id, producer, number, place)
        if once not in self._verified and self.rng.random() < self._verify_share:
            self._verified.add(once)
            return FEW_REPLICAS
        return self.transactions.verify_place(id, producer, epoch, place)

    # ---- transactions

    def _init_producer(self, node: int, request: Any, answer: Answer) -> None:
        id = request.transactional_id
        if id is None:  # idempotent, in no transaction
            answer(request.RESPONSE_TYPE(0, 0, self.transactions.next_producer(), 0))
            return
        error = self._coordinator_error(node, "txn", id)
        producer, epoch = -1, -1
        if not error:
            error, producer, epoch = self.transactions.init(id, request.transaction_timeout_ms)
        answer(request.RESPONSE_TYPE(0, error, producer, epoch))

    def _add_partitions(self, node: int, request: Any, answer: Answer) -> None:
        places = [(topic, p) for topic, partitions in request.topics for p in partitions]
        error = self._coordinator_error(node, "txn", request.transactional_id)
        if error:
            errors = dict.fromkeys(places, error)
        else:
            errors = self.transactions.add_places(
                request.transactional_id, request.producer_id, request.producer_epoch, places
            )
        rows = [(topic, [(p, errors[topic, p]) for p in partitions]) for topic, partitions in request.topics]
        answer(request.RESPONSE_TYPE(0, rows))

    def _add_offsets(self, node: int, request: Any, answer: Answer) -> None:
        error = self._coordinator_error(node, "txn", request.transactional_id) or self.transactions.add_group(
            request.transactional_id, request.producer_id, request.producer_epoch, request.group_id
        )
        answer(request.RESPONSE_TYPE(0, error))

    def _end(self, node: int, request: Any, answer: Answer) -> None:
        error = self._coordinator_error(node, "txn", request.transactional_id) or self.transactions.end(
            request.transactional_id, request.producer_id, request.producer_epoch, request.transaction_result
        )
        answer(request.RESPONSE_TYPE(0, error))

    def _txn_offsets(self, node: int, request: Any, answer: Answer) -> None:
        places = [((topic, row[0]), row[1], row[3] or "") for topic, rows, _ in request.topics for row in rows]
        id, producer, epoch = request.transactional_id, request.producer_id, request.producer_epoch
        error = self._coordinator_error(node, "group", request.group_id)
        if not error:
            t = self.transactions.all.get(id)
            once = (id, producer, t.number if t is not None else -1, request.group_id)
            if once not in self._verified and self.rng.random() < self._verify_share:
                self._verified.add(once)
                error = LOADING
        if not error and any(topic not in self.partitions for (topic, _), _, _ in places):
            error = UNKNOWN_TOPIC
        if not error:
            error = self.transactions.verify_group(id, producer, epoch, request.group_id)
        if error:
            errors = {place: error for place, _, _ in places}
        else:
            errors = self.groups.group(request.group_id).commit_in_transaction(
                producer,
                epoch,
                (id, request.generation_id, request.member_id),
                request.group_instance_id,
                places,
            )
        rows = [(topic, [(row[0], errors[topic, row[0]], {}) for row in rows], {}) for topic, rows, _ in request.topics]
        answer(request.RESPONSE_TYPE(0, rows, {}))

    def _list_transactions(self, node: int, request: Any, answer: Answer) -> None:
        rows = [
            (t.id, t.producer, t.state.value, {})
            for t in self.transactions.all.values()
            if t.state.value in request.states and self._home("txn", t.id) == node
        ]
        answer(request.RESPONSE_TYPE(0, 0, [], rows, {}))

    def _describe_transactions(self, node: int, request: Any, answer: Answer) -> None:
        rows = []
        for id in request.transactional_ids:
            error, t = self._coordinator_error(node, "txn", id), self.transactions.all.get(id)
            if error or t is None:
                rows.append((error or UNKNOWN_TRANSACTION, id, "", 0, 0, -1, -1, [], {}))
                continue
            topics: dict[str, list[int]] = {}
            for topic, p in sorted(t.places | {("__consumer_offsets", zlib.crc32(g.encode()) % 50) for g in t.groups}):
                topics.setdefault(topic, []).append(p)
            began_ms = int((EPOCH_S + t.began_s) * 1000)
            places = [(topic, ps, {}) for topic, ps in topics.items()]
            rows.append((0, id, t.state.value, int(t.timeout_s * 1e3), began_ms, t.producer, t.epoch, places, {}))
        answer(request.RESPONSE_TYPE(0, rows, {}))

    # ---- groups

    def _offset_fetch(self, node: int, request: Any, answer: Answer) -> None:
        if request.API_VERSION < 7:  # aiokafka's own; nobody reads its answer
            name = request.consumer_group
            error = self._coordinator_error(node, "group", name)
            old = []
            for topic, partitions in request.topics:
                found = [(p, *self.groups.group(name).fetch((topic, p), stable=False)) for p in partitions]
                old.append((topic, [(p, offset, metadata, error or code) for p, code, offset, metadata in found]))
            answer(request.RESPONSE_TYPE(0, old, error))
            return
        error = self._coordinator_error(node, "group", request.group_id)
        topics = []
        for topic, partitions, _ in request.topics:
            rows = []
            for p in partitions:
                code, offset, metadata = error, -1, ""
                if not error:
                    group = self.groups.group(request.group_id)
                    code, offset, metadata = group.fetch((topic, p), request.require_stable)
                rows.append((p, offset, -1, metadata, code, {}))
            topics.append((topic, rows, {}))
        answer(request.RESPONSE_TYPE(0, topics, error, {}))

    def _offset_commit(self, node: int, request: Any, answer: Answer) -> None:
        error = self._coordinator_error(node, "group", request.consumer_group)
        offsets = [((topic, p), offset, metadata) for topic, rows in request.topics for p, offset, metadata in rows]
        errors = {place: error for place, _, _ in offsets}
        if not error:
            errors = self.groups.group(request.consumer_group).commit(
                request.consumer_group_generation_id, request.consumer_id, offsets
            )
        rows = [(topic, [(row[0], errors[topic, row[0]]) for row in rows]) for topic, rows in request.topics]
        head = [0] if "throttle_time_ms" in request.RESPONSE_TYPE.SCHEMA.names else []
        answer(request.RESPONSE_TYPE(*head, rows))

    def _join(self, node: int, request: Any, answer: Answer) -> None:
        def joined(j: Joined) -> None:
            answer(request.RESPONSE_TYPE(0, j.error, j.generation, j.protocol, j.leader, j.member, list(j.members)))

        error = self._coordinator_error(node, "group", request.group)
        if error:
            joined(Joined(error))
            return
        self.groups.group(request.group).join(
            request.member_id,
            request.group_instance_id,
            request.session_timeout / 1e3,
            request.rebalance_timeout / 1e3,
            list(request.group_protocols),
            joined,
        )

    def _sync(self, node: int, request: Any, answer: Answer) -> None:
        def synced(s: Synced) -> None:
            answer(request.RESPONSE_TYPE(0, s.error, s.assignment))

        error = self._coordinator_error(node, "group", request.group)
        if error:
            synced(Synced(error))
            return
        self.groups.group(request.group).sync(
            request.generation_id,
            request.member_id,
            request.group_instance_id,
            list(request.group_assignment),
            synced,
        )

    def _heartbeat(self, node: int, request: Any, answer: Answer) -> None:
        error = self._coordinator_error(node, "group", request.group)
        if not error:
            error = self.groups.group(request.group).heartbeat(request.generation_id, request.member_id)
        answer(request.RESPONSE_TYPE(0, error))

    def _leave(self, node: int, request: Any, answer: Answer) -> None:
        error = self._coordinator_error(node, "group", request.group)
        if "members" not in request.SCHEMA.names:
            answer(request.RESPONSE_TYPE(0, error or self.groups.group(request.group).leave(request.member_id, None)))
            return
        members = []
        for member_id, instance in request.members:
            members.append((member_id, instance, error or self.groups.group(request.group).leave(member_id, instance)))
        answer(request.RESPONSE_TYPE(0, error, members))

    def _describe_groups(self, node: int, request: Any, answer: Answer) -> None:
        out = []
        for name in request.groups:
            error = self._coordinator_error(node, "group", name)
            group = self.groups.group(name)
            members = [(m.id, m.instance, "", "", b"", m.assignment) for m in group.members.values()]
            out.append((error, name, group.state.value, "consumer", group.protocol, [] if error else members, 0))
        answer(request.RESPONSE_TYPE(0, out))


HANDLERS: dict[int, Callable[[Cluster, int, Any, Answer], None]] = {
    0: Cluster._produce,
    1: Cluster._fetch,
    2: Cluster._list_offsets,
    3: Cluster._metadata,
    8: Cluster._offset_commit,
    9: Cluster._offset_fetch,
    10: Cluster._find_coordinator,
    11: Cluster._join,
    12: Cluster._heartbeat,
    13: Cluster._leave,
    14: Cluster._sync,
    15: Cluster._describe_groups,
    19: Cluster._create_topics,
    22: Cluster._init_producer,
    24: Cluster._add_partitions,
    25: Cluster._add_offsets,
    26: Cluster._end,
    28: Cluster._txn_offsets,
    32: Cluster._describe_configs,
    65: Cluster._describe_transactions,
    66: Cluster._list_transactions,
}
