"""Requests that ask a cluster how its transactions and topics stand, which aiokafka lacks."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from io import BytesIO

from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

from pipeline.transport.kafka.wire import Exactly

_COMPACT, _TAGS = CompactString("utf-8"), ("tags", TaggedFields)

ONGOING = "Ongoing"
"""Begun, and its end was not yet asked for."""


class Uuid(AbstractType[uuid.UUID]):
    """Sixteen bytes; all zero where there is none."""

    @classmethod
    def encode(cls, value: uuid.UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> uuid.UUID:
        return uuid.UUID(bytes=data.read(16))


NO_ID = uuid.UUID(int=0)


class MetadataResponseV10(Response):
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(("node_id", Int32), ("host", _COMPACT), ("port", Int32), ("rack", _COMPACT), _TAGS),
        ),
        ("cluster_id", _COMPACT),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", _COMPACT),
                ("topic_id", Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        _TAGS,
                    ),
                ),
                ("authorized_operations", Int32),
                _TAGS,
            ),
        ),
        ("authorized_operations", Int32),
        _TAGS,
    )


class MetadataRequestV10(RequestStruct):
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = MetadataResponseV10
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", Uuid), ("topic", _COMPACT), _TAGS)),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_operations", Boolean),
        ("include_topic_operations", Boolean),
        _TAGS,
    )


class TopicIds(Exactly[MetadataRequestV10]):
    """The first version of Metadata that tells topics of one name apart: one was deleted, and another made."""

    API_KEY = 3

    def __init__(self, topics: Iterable[str]) -> None:
        super().__init__([(NO_ID, topic, {}) for topic in topics], False, False, False, {})


class ListTransactionsResponseV0(Response):
    API_KEY = 66
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("unknown_states", CompactArray(_COMPACT)),
        (
            "transactions",
            CompactArray(("transactional_id", _COMPACT), ("producer_id", Int64), ("state", _COMPACT), _TAGS),
        ),
        _TAGS,
    )


class ListTransactionsRequestV0(RequestStruct):
    API_KEY = 66
    API_VERSION = 0
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = ListTransactionsResponseV0
    SCHEMA = Schema(("states", CompactArray(_COMPACT)), ("producer_ids", CompactArray(Int64)), _TAGS)


class ListTransactions(Exactly[ListTransactionsRequestV0]):
    """The transactions that one broker coordinates, in some states (X9)."""

    API_KEY = 66


class DescribeTransactionsResponseV0(Response):
    API_KEY = 65
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "transactions",
            CompactArray(
                ("error_code", Int16),
                ("transactional_id", _COMPACT),
                ("state", _COMPACT),
                ("timeout_ms", Int32),
                ("start_ms", Int64),
                ("producer_id", Int64),
                ("producer_epoch", Int16),
                ("topics", CompactArray(("topic", _COMPACT), ("partitions", CompactArray(Int32)), _TAGS)),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class DescribeTransactionsRequestV0(RequestStruct):
    API_KEY = 65
    API_VERSION = 0
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = DescribeTransactionsResponseV0
    SCHEMA = Schema(("transactional_ids", CompactArray(_COMPACT)), _TAGS)


class DescribeTransactions(Exactly[DescribeTransactionsRequestV0]):
    """What a transaction holds, and since when; asked of its coordinator (X9)."""

    API_KEY = 65
