"""Log lines as people and as programs get them."""

from __future__ import annotations

import json
import logging

import pytest

from services import logs


def test_json_lines_carry_time_level_extras_and_exceptions(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("json", "info")
    log = logging.getLogger("pipeline.worker")
    log.debug("unseen")
    log.info("took over %d", 3, extra={"partition": 3})
    try:
        raise ValueError("of\ntwo lines")
    except ValueError:
        log.exception("odd")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first["message"] == "took over 3"
    assert first["level"] == "info"
    assert first["partition"] == 3
    assert first["logger"] == "pipeline.worker"
    assert first["time"].endswith("+00:00")
    assert "ValueError: of\ntwo lines" in second["exception"]


def test_only_debug_lets_the_client_library_speak(capsys: pytest.CaptureFixture[str]) -> None:
    for level, expected in (("info", False), ("debug", True)):
        logs.set_up("text", level)
        logging.getLogger("aiokafka.conn").error("Unable connect")
        assert ("Unable connect" in capsys.readouterr().err) is expected
