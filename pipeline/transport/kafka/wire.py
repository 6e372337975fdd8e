"""The requests that aiokafka lacks, and the protocol's error numbers by what they mean to us."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.produce import ProduceRequest_v7, ProduceResponse_v7
from aiokafka.protocol.types import (
    Array,
    Boolean,
    Bytes,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    String,
    TaggedFields,
)

from pipeline.errors import NotAuthorized
from pipeline.transport.kafka.rows import CompactRows, Numbers, OffsetRows, Rows

_TEXT, _COMPACT, _TAGS = String("utf-8"), CompactString("utf-8"), ("tags", TaggedFields)

# Of a coordinator: it loads, it is not there yet, it has moved, the last transaction's markers are still being written.
LOADING, NOT_AVAILABLE, NOT_COORDINATOR, CONCURRENT = 14, 15, 16, 51
COORDINATOR_RETRY = frozenset({LOADING, NOT_AVAILABLE, NOT_COORDINATOR, CONCURRENT})
COORDINATOR_MOVED = frozenset({NOT_AVAILABLE, NOT_COORDINATOR})
NOT_ATTEMPTED = 55
"""Beside another partition's error in one AddPartitionsToTxn."""

# Of a leader: unknown here (yet), none elected, moved, slow followers. The same sequence may be sent again (X3).
UNKNOWN_TOPIC, NO_LEADER, NOT_LEADER, TIMED_OUT, FEW_REPLICAS, FEW_REPLICAS_AFTER = 3, 5, 6, 7, 19, 20
LEADER_RETRY = frozenset({UNKNOWN_TOPIC, NO_LEADER, NOT_LEADER, TIMED_OUT, FEW_REPLICAS, FEW_REPLICAS_AFTER})
LEADER_MOVED = frozenset({UNKNOWN_TOPIC, NO_LEADER, NOT_LEADER})
DUPLICATE_SEQUENCE = 46
"""A batch that was sent again had arrived the first time."""

GROUP_REFUSALS = {
    22: "ILLEGAL_GENERATION",
    25: "UNKNOWN_MEMBER_ID",
    27: "REBALANCE_IN_PROGRESS",
    82: "FENCED_INSTANCE_ID",
}
"""The group no longer knows the membership (X1); if this is the only error, an answered abort is enough (X11)."""

MESSAGE_TOO_LARGE = 10
NEVER = {
    MESSAGE_TOO_LARGE: "MESSAGE_TOO_LARGE",
    12: "OFFSET_METADATA_TOO_LARGE",
    18: "RECORD_LIST_TOO_LARGE",
    32: "INVALID_TIMESTAMP",
    87: "INVALID_RECORD",
}
"""What can never be written as it is (X11)."""

NOT_AUTHORIZED = {29: "topic", 30: "group", 31: "cluster", 53: "transactional id"}
OFFSET_OUT_OF_RANGE = 1
TOPIC_ALREADY_EXISTS = 36
UNSTABLE_OFFSET_COMMIT = 88


def forbidden(codes: Iterable[int], *, topics: Iterable[str] = (), group: str = "", lane: str = "") -> NotAuthorized:
    """What these of NOT_AUTHORIZED mean: which permissions to grant. ``topics`` are written to."""
    grants = {
        29: f"Write on the topic {' and '.join(sorted(map(repr, topics)))}",
        30: f"Read on the group {group!r}" if group else "Read on the group",
        31: "IdempotentWrite on the cluster (a broker before 3.0 wants it)",
        53: f"Write on the transactional id {lane!r}",
    }
    return NotAuthorized(f"not authorized: allow {', and '.join(grants[code] for code in sorted({*codes}))}")


S = TypeVar("S", bound=RequestStruct)


class Exactly(Request[S]):
    """A request of one version, its fields in the schema's order; a broker that lacks the version is refused."""

    API_KEY = -1

    def __init__(self, *fields: Any) -> None:
        self._fields = fields

    def build(self, request_struct_class: type[S]) -> S:
        return request_struct_class(*self._fields)


class ProduceResponseV7(ProduceResponse_v7):
    API_KEY = 0
    API_VERSION = 7
    SCHEMA = Schema(
        (
            "topics",
            Array(
                ("topic", _TEXT),
                (
                    "partitions",
                    Rows(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("offset", Int64),
                        ("timestamp", Int64),
                        ("log_start_offset", Int64),
                    ),
                ),
            ),
        ),
        ("throttle_time_ms", Int32),
    )


class ProduceRequestV7(ProduceRequest_v7):
    """aiokafka's, whose encoding copies the batches once; its own copies them at every level of the structure."""

    API_KEY = 0
    API_VERSION = 7
    RESPONSE_TYPE = ProduceResponseV7
    SCHEMA = ProduceRequest_v7.SCHEMA

    def encode(self) -> bytes:
        fields = self.__dict__
        pieces = [_TEXT.encode(fields["transactional_id"]), Int16.encode(fields["required_acks"])]
        pieces += [Int32.encode(fields["timeout"]), Int32.encode(len(fields["topics"]))]
        for topic, partitions in fields["topics"]:
            pieces += [_TEXT.encode(topic), Int32.encode(len(partitions))]
            for partition, batch in partitions:
                pieces += [Int32.encode(partition), Int32.encode(len(batch)), batch]
        return b"".join(pieces)


class Produce(Exactly[ProduceRequestV7]):
    """Record batches for the partitions of one leader."""

    API_KEY = 0


class AddPartitionsToTxnResponseV0(Response):
    API_KEY = 24
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "errors",
            Array(("topic", _TEXT), ("partition_errors", Rows(("partition", Int32), ("error_code", Int16)))),
        ),
    )


class AddPartitionsToTxnRequestV0(RequestStruct):
    API_KEY = 24
    API_VERSION = 0
    RESPONSE_TYPE = AddPartitionsToTxnResponseV0
    SCHEMA = Schema(
        ("transactional_id", _TEXT),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("topics", Array(("topic", _TEXT), ("partitions", Numbers()))),
    )


class AddPartitionsToTxn(Exactly[AddPartitionsToTxnRequestV0]):
    """What the transaction is about to write to."""

    API_KEY = 24


class TxnOffsetCommitResponseV3(Response):
    API_KEY = 28
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("topic", _COMPACT),
                ("partitions", CompactRows(("partition", Int32), ("error_code", Int16))),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class TxnOffsetCommitRequestV3(RequestStruct):
    API_KEY = 28
    API_VERSION = 3
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = TxnOffsetCommitResponseV3
    SCHEMA = Schema(
        ("transactional_id", _COMPACT),
        ("group_id", _COMPACT),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("generation_id", Int32),
        ("member_id", _COMPACT),
        ("group_instance_id", _COMPACT),
        (
            "topics",
            CompactArray(
                ("topic", _COMPACT),
                (
                    "partitions",
                    OffsetRows(
                        ("partition", Int32), ("offset", Int64), ("leader_epoch", Int32), ("metadata", _COMPACT), _TAGS
                    ),
                ),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class TxnOffsetCommit(Exactly[TxnOffsetCommitRequestV3]):
    """Offsets with metadata inside a transaction, under a membership the broker compares (X1)."""

    API_KEY = 28


class OffsetFetchResponseV7(Response):
    API_KEY = 9
    API_VERSION = 7
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("topic", _COMPACT),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("offset", Int64),
                        ("leader_epoch", Int32),
                        ("metadata", _COMPACT),
                        ("error_code", Int16),
                        _TAGS,
                    ),
                ),
                _TAGS,
            ),
        ),
        ("error_code", Int16),
        _TAGS,
    )


class OffsetFetchRequestV7(RequestStruct):
    API_KEY = 9
    API_VERSION = 7
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = OffsetFetchResponseV7
    SCHEMA = Schema(
        ("group_id", _COMPACT),
        ("topics", CompactArray(("topic", _COMPACT), ("partitions", CompactArray(Int32)), _TAGS)),
        ("require_stable", Boolean),
        _TAGS,
    )


class OffsetFetch(Exactly[OffsetFetchRequestV7]):
    """Committed offsets with their metadata, refused while a transaction holds pending ones (X4, X8)."""

    API_KEY = 9


def fetched_codes(reply: Any) -> set[int]:
    """The error numbers of an OffsetFetch answer."""
    return {reply.error_code} | {row[4] for _, partitions, _ in reply.topics for row in partitions}


class LeaveGroupResponseV3(Response):
    API_KEY = 13
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("members", Array(("member_id", _TEXT), ("group_instance_id", _TEXT), ("error_code", Int16))),
    )


class LeaveGroupRequestV3(RequestStruct):
    API_KEY = 13
    API_VERSION = 3
    RESPONSE_TYPE = LeaveGroupResponseV3
    SCHEMA = Schema(("group", _TEXT), ("members", Array(("member_id", _TEXT), ("group_instance_id", _TEXT))))


class LeaveGroup(Exactly[LeaveGroupRequestV3]):
    """The first version in which a static member can leave."""

    API_KEY = 13


class DescribeGroupsResponseV4(Response):
    API_KEY = 15
    API_VERSION = 4
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "groups",
            Array(
                ("error_code", Int16),
                ("group", _TEXT),
                ("state", _TEXT),
                ("protocol_type", _TEXT),
                ("protocol", _TEXT),
                (
                    "members",
                    Array(
                        ("member_id", _TEXT),
                        ("group_instance_id", _TEXT),
                        ("client_id", _TEXT),
                        ("client_host", _TEXT),
                        ("metadata", Bytes),
                        ("assignment", Bytes),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
    )


class DescribeGroupsRequestV4(RequestStruct):
    API_KEY = 15
    API_VERSION = 4
    RESPONSE_TYPE = DescribeGroupsResponseV4
    SCHEMA = Schema(("groups", Array(_TEXT)), ("include_authorized_operations", Boolean))


class DescribeGroups(Exactly[DescribeGroupsRequestV4]):
    """The first version that names each member's group instance id."""

    API_KEY = 15
