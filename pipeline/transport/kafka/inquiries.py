"""Requests that ask a cluster how its transactions and topics stand, which aiokafka lacks."""

from __future__ import annotations

from aiokafka.protocol.api import RequestStruct, Response
from aiokafka.protocol.types import (
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
