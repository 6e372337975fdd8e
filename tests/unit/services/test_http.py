"""The pages of a worker, asked over HTTP."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request

import pytest

from pipeline.errors import ConfigError
from pipeline.metrics import Metrics
from services.http import Pages


def ask(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_follows_the_worker_and_metrics_show_its_counters() -> None:
    state = {"live": True, "ready": False}
    metrics = Metrics("m", "1")
    metrics.error("odd")
    with Pages("127.0.0.1", 0, metrics.registry, lambda: state["live"], lambda: state["ready"]) as pages:
        assert ask(f"{pages.url}/health/live") == (200, "live\n")
        assert ask(f"{pages.url}/health/ready") == (503, "not ready\n")
        state.update(live=False, ready=True)
        assert ask(f"{pages.url}/health/live") == (503, "not live\n")
        assert ask(f"{pages.url}/health/ready") == (200, "ready\n")
        status, page = ask(f"{pages.url}/metrics")
        assert status == 200
        assert 'eddy_errors_total{kind="odd",model="m",version="1"} 1.0' in page
        assert ask(f"{pages.url}/nothing")[0] == 404
        assert "/metrics" in ask(f"{pages.url}/")[1]


def test_a_client_that_sends_nothing_keeps_nobody_waiting() -> None:
    with Pages("127.0.0.1", 0, Metrics("m", "1").registry, lambda: True, lambda: True) as pages:
        port = int(pages.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)):
            assert ask(f"{pages.url}/health/live")[0] == 200


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", None), ("127.0.0.1", 70_000), ("no.such.host.invalid", 0)])
def test_an_address_that_cannot_be_had_is_a_readable_error(host: str, port: int | None) -> None:
    registry = Metrics("m", "1").registry
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1] if port is None else port
        with pytest.raises(ConfigError, match=f"on {host} port {port}: .*; give another --http-port"):
            Pages(host, port, registry, lambda: True, lambda: True)
