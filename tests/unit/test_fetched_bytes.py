"""How long fetched bytes stay in memory: no longer than it takes to make columns of them."""

from __future__ import annotations

import gc
import weakref

import numpy as np
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from pipeline.columns import Records
from pipeline.transport.kafka.columns import ColumnRecords
from pipeline.transport.kafka.records import batches


def test_fetched_bytes_are_free_once_they_are_columns() -> None:
    """The queue's bound counts the columns alone; cycles would keep the bytes beside them until the collector comes."""
    [batch] = batches(Records([b"k"] * 3, [b"v0", b"v1", b"v2"], np.arange(3)))
    raw = MemoryRecords(batch.signed(1, 0, 0))
    gc.disable()
    try:
        plain = PartitionRecords(TopicPartition("t", 0), raw, None, 0, None, None, True, READ_COMMITTED)
        fetched = weakref.ref(plain)
        columns = ColumnRecords.of(plain)
        del plain
        assert fetched() is None
        taken = weakref.ref(columns)
        [segment] = columns
        del columns
        assert taken() is None
    finally:
        gc.enable()
    assert segment.values == [b"v0", b"v1", b"v2"]
