"""What the tests of commands begin with."""

from __future__ import annotations

import pytest

from services.broker import Broker


@pytest.fixture
def cluster(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Broker:
    """Where the commands go by default."""
    monkeypatch.setenv("EDDY_BOOTSTRAP_SERVERS", broker.address)
    return broker
