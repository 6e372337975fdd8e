"""Where records come from and go to: one protocol (``base.py``), two roads (``memory.py``, ``kafka/``)."""

from __future__ import annotations

from pipeline.config import Config
from pipeline.transport.base import Transport


def connect(config: Config) -> Transport:
    """The transport that ``bootstrap_servers`` names, not yet started. Raises ConfigError for a name left empty."""
    from pipeline.transport.kafka.transport import KafkaTransport

    return KafkaTransport(config)
