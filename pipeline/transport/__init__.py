"""Where records come from and go to: one protocol (``base.py``), two roads (``memory.py``, ``kafka/``)."""

from __future__ import annotations

from pipeline.config import Config
from pipeline.transport.base import Transport
from pipeline.transport.memory import MemoryBroker, MemoryTransport

MEMORY = "memory"
"""Bootstrap servers that need no broker."""


def connect(config: Config, memory: MemoryBroker | None = None) -> Transport:
    """The transport that ``bootstrap_servers`` names, not yet started.

    ``memory`` is what transports of one process share; by default each has one to itself, which holds no topics.
    Raises ConfigError for a name left empty.
    """
    if config.bootstrap_servers == MEMORY:
        return MemoryTransport(memory or MemoryBroker(), config)
    # aiokafka takes a moment to import.
    from pipeline.transport.kafka.transport import KafkaTransport

    return KafkaTransport(config)
