"""A long takeover says how far it is, and its gauge goes back to nothing however it ends."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from pipeline.columns import Changelog
from pipeline.metrics import Metrics
from pipeline.reading import SAY_S, Reading
from pipeline.streams.snapshots import HEADER, Newest

ROW = 4
WIDTH = HEADER + ROW


def stretch(first: int, n: int, end: int) -> Changelog:
    keys = [b"%d" % i for i in range(first, first + n)]
    return Changelog(keys, np.zeros((n, WIDTH), np.uint8), np.arange(first, first + n), first + n, end)


def shown(metrics: Metrics) -> tuple[float | None, float | None]:
    labels = {"model": "m", "version": "1"}
    names = ("eddy_restore_bytes_total", "eddy_restore_left_records")
    read, left = (metrics.registry.get_sample_value(name, labels) for name in names)
    return read, left


def test_what_is_read_is_counted_and_what_is_left_shown_over_all_takeovers() -> None:
    metrics = Metrics("m", "1")
    newest = Newest(ROW)
    with Reading(0, newest, metrics, lambda: 0.0) as one, Reading(1, Newest(ROW), metrics, lambda: 0.0) as other:
        one.add(stretch(0, 3, 10))
        other.add(stretch(0, 5, 20))
        assert shown(metrics) == (8 * WIDTH, 7 + 15)
        one.add(stretch(3, 7, 10))
        assert shown(metrics) == (15 * WIDTH, 15)
    assert len(newest) == 10
    assert shown(metrics) == (15 * WIDTH, 0)


def test_nothing_is_left_after_a_reading_that_failed() -> None:
    metrics = Metrics("m", "1")

    def fails() -> None:
        with Reading(0, Newest(ROW), metrics, lambda: 0.0) as reading:
            reading.add(stretch(0, 3, 10))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert shown(metrics) == (3 * WIDTH, 0)


def test_a_long_one_says_how_far_it_is_every_two_seconds(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    with caplog.at_level(logging.INFO), Reading(3, Newest(ROW), Metrics("m", "1"), lambda: now_s) as reading:
        for i in range(10):
            now_s += SAY_S / 4
            reading.add(stretch(i, 1, 100 if i < 5 else 0))
    assert [record.getMessage() for record in caplog.records] == [
        "partition 3: 4 streams, 0 MB, up to offset 4 of 100 of the changelog, after 2 s",
        "partition 3: 8 streams, 0 MB, up to offset 8 of the changelog, after 4 s",
    ]
