"""What a scrape shows after the moments of the road."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from pipeline.errors import GroupRefused
from pipeline.metrics import LATENCY_S, ColumnHistogram, Metrics

LABELS = {"model": "m", "version": "1"}


def scrape(metrics: Metrics) -> dict[str, float]:
    """``name{labels}`` -> value, model and version left out."""
    out = {}
    for sample in (s for family in metrics.registry.collect() for s in family.samples):
        labels = ",".join(f'{k}="{v}"' for k, v in sample.labels.items() if k not in LABELS)
        out[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return out


def test_the_page_is_text_that_prometheus_reads() -> None:
    page = generate_latest(Metrics("m", "1").registry).decode()
    assert 'eddy_latency_seconds_bucket{le="0.001",model="m",version="1"} 0.0' in page.splitlines()
    assert "# TYPE eddy_latency_seconds histogram" in page.splitlines()


@given(st.lists(st.floats(-1.0, 400.0) | st.sampled_from(LATENCY_S), max_size=50))
def test_a_column_counts_as_prometheus_own_histogram_counts_value_by_value(values: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    column = ColumnHistogram("h", "help", LATENCY_S, LABELS, ours)
    one_by_one = Histogram("h", "help", tuple(LABELS), buckets=LATENCY_S, registry=theirs).labels(**LABELS)
    column.observe_many(np.array(values))
    for value in values:
        one_by_one.observe(value)

    def samples(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
        found = (s for family in registry.collect() for s in family.samples if not s.name.endswith("_created"))
        return {(s.name, s.labels.get("le", "")): s.value for s in found}

    expected = samples(theirs)
    assert samples(ours).keys() == expected.keys()
    for key, value in samples(ours).items():
        assert value == pytest.approx(expected[key]), key


def test_repeats_count_a_value_as_often_as_its_segment_has_records() -> None:
    column, plain = (ColumnHistogram("h", "help", (1.0, 2.0), LABELS) for _ in range(2))
    column.observe_many([0.5, 1.0, 9.0], repeats=[2, 0, 3])
    plain.observe_many([0.5, 0.5, 9.0, 9.0, 9.0])
    assert column.read()[0].tolist() == plain.read()[0].tolist() == [2, 0, 3]
    assert column.read()[1] == plain.read()[1] == 28.0


def test_one_bad_value_does_not_spoil_the_sum_for_good() -> None:
    column = ColumnHistogram("h", "help", (1.0,), LABELS)
    column.observe_many([np.nan, np.inf, 0.25])
    counts, total = column.read()
    assert counts.tolist() == [1, 0]
    assert total == 0.25


@pytest.mark.parametrize("bounds", [(), (1.0, 1.0), (2.0, 1.0)])
def test_bounds_that_do_not_ascend_are_refused(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must ascend"):
        ColumnHistogram("h", "help", bounds, LABELS)


def test_the_moments_of_the_road_reach_the_page() -> None:
    m = Metrics("m", "1")
    m.poll(300, 900, [0.004, 0.2], [100, 200], record_bytes=1200, media_s=27.0)
    m.engine(np.array([256, 44]), 0.003, generated=44)
    m.transaction(0.01)
    m.commit(
        parts=4,
        outputs=300,
        snapshots=300,
        snapshot_bytes=9000,
        latency_s=np.full(300, 0.012),
        records_s=np.full(310, 0.011),
    )
    m.dead_letters("utf-8", 2)
    m.takeover(0.4, 12)
    m.replay(skipped=3)
    m.commit_failed(GroupRefused("22"))
    m.error("fetch")
    m.partitions(owned=4, running=3, paused=1, waiting=1)
    m.streams(12, slots_used=12, slots=64)
    m.queued(77)
    page = scrape(m)
    assert page["eddy_records_total"] == 300
    assert page["eddy_steps_total"] == 900
    assert page["eddy_media_seconds_total"] == 27
    assert page["eddy_queue_seconds_count"] == 300
    assert page["eddy_queue_seconds_sum"] == pytest.approx(40.4)
    assert page["eddy_batches_total"] == page["eddy_batch_size_count"] == 2
    assert page["eddy_batch_size_sum"] == 300
    assert page['eddy_batch_size_bucket{le="64.0"}'] == 1
    assert page["eddy_generated_steps_total"] == 44
    assert page["eddy_latency_seconds_count"] == page["eddy_output_records_total"] == 300
    assert page["eddy_record_seconds_count"] == 310
    assert page["eddy_snapshot_bytes_total"] == 9000
    assert page['eddy_dead_letters_total{reason="utf-8"}'] == 2
    assert page["eddy_takeovers_total"] == page["eddy_takeover_seconds_count"] == 1
    assert page["eddy_restored_snapshots_total"] == 12
    assert page["eddy_skipped_records_total"] == 3
    assert page["eddy_replayed_records_total"] == 0
    assert page['eddy_commit_failures_total{kind="group-refused"}'] == 1
    assert page['eddy_commit_failures_total{kind="outcome-unknown"}'] == 0
    assert page['eddy_errors_total{kind="fetch"}'] == 1
    assert page["eddy_slots"] == 64
    assert page["eddy_waiting_partitions"] == 1
    assert page["eddy_queued_bytes"] == 77


def test_lag_has_no_series_for_partitions_that_left_or_are_unknown() -> None:
    m = Metrics("m", "1")
    m.lag({0: 5, 1: 7})
    m.lag({1: 0, 2: -1})
    lags = {name: value for name, value in scrape(m).items() if "lag" in name}
    assert lags == {'eddy_lag_records{partition="1"}': 0}


def test_two_workers_in_one_process_do_not_meet() -> None:
    first, second = Metrics("m", "1"), Metrics("m", "1")
    first.error("x")
    assert 'eddy_errors_total{kind="x"}' not in scrape(second)
