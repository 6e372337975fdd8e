"""What the Kafka transport says while no broker answers."""

from __future__ import annotations

import pytest

from pipeline.config import Config
from pipeline.errors import CommitError
from pipeline.transport.kafka.transport import KafkaTransport, _Open


async def test_a_changelog_whose_broker_is_away_is_for_the_takeover_to_try_again():
    config = Config(
        input="in", output="out", group="g", worker_id="w", bootstrap_servers="127.0.0.1:1", request_timeout_ms=200
    )
    transport = KafkaTransport(config)
    transport._open = _Open.of(config, None)  # type: ignore[arg-type]  # never connected: nobody is told anything
    try:
        with pytest.raises(CommitError, match=r"g-in-changelog-3 cannot be read yet"):
            async for _ in transport.changelog(3):
                pass
    finally:
        await transport.stop()
