"""The Grafana dashboard as code: ``python deploy/grafana/dashboard.py`` writes ``dashboards/eddy.json``.

A panel is a line here: title, unit, what is drawn. A test holds the file against this one, and every expression
against a worker under load.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "dashboards" / "eddy.json"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
OF = 'model=~"$model",version=~"$version"'
WIDTH, HEIGHT, COLUMNS = 8, 7, 24


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    drawn: Sequence[tuple[str, str]]
    """PromQL and legend."""
    about: str = ""


def rate(metric: str, by: str = "model") -> str:
    return f"sum by ({by}) (rate({metric}{{{OF}}}[$__rate_interval]))"


def quantiles(histogram: str, *of: float) -> list[tuple[str, str]]:
    return [
        (f"histogram_quantile({q}, {rate(f'{histogram}_bucket', 'model, le')})", f"{{{{model}}}} p{q * 100:g}")
        for q in of
    ]


def ratio(above: str, below: str, by: str = "model") -> str:
    return f"{rate(above, by)} / {rate(below, by)}"


def total(gauge: str, by: str = "model") -> str:
    return f"sum by ({by}) ({gauge}{{{OF}}})"


def process(expression: str) -> str:
    return expression.replace("{}", '{job="eddy"}')


MODEL = "{{model}}"
ROWS: dict[str, list[Panel]] = {
    "Traffic": [
        Panel("Records in", "cps", [(rate("eddy_records_total"), MODEL)], "Input records taken into a poll."),
        Panel(
            "Steps",
            "cps",
            [
                (rate("eddy_steps_total"), f"{MODEL} from records"),
                (rate("eddy_generated_steps_total"), f"{MODEL} generated"),
            ],
            "One step is one input of the model: a token, an audio hop, a frame.",
        ),
        Panel("Outputs made visible", "cps", [(rate("eddy_output_records_total"), MODEL)]),
        Panel("Bytes in", "Bps", [(rate("eddy_record_bytes_total"), MODEL)]),
        Panel(
            "Lag",
            "short",
            [(total("eddy_lag_records", "model, partition"), "{{model}} {{partition}}")],
            "Records between the position and the log's end.",
        ),
        Panel(
            "Queued",
            "bytes",
            [(total("eddy_queued_bytes", "instance"), "{{instance}}")],
            "Fetched and not yet committed.",
        ),
    ],
    "Latency": [
        Panel(
            "Input to visible output",
            "s",
            quantiles("eddy_latency_seconds", 0.5, 0.95, 0.99),
            "Timestamp of the record to the commit that shows its output.",
        ),
        Panel("Waiting for a poll", "s", quantiles("eddy_queue_seconds", 0.5, 0.99)),
        Panel("Engine, one poll", "s", quantiles("eddy_engine_seconds", 0.5, 0.99)),
        Panel("Transaction", "s", quantiles("eddy_commit_seconds", 0.5, 0.99)),
        Panel(
            "Streams in a call",
            "short",
            [(ratio("eddy_batch_size_sum", "eddy_batch_size_count"), MODEL)],
            "Mean realised batch.",
        ),
        Panel(
            "Engine busy",
            "percentunit",
            [(rate("eddy_engine_seconds_sum", "instance"), "{{instance}}")],
            "Above engine_threads it cannot go.",
        ),
    ],
    "Applications: audio and video": [
        Panel(
            "Chunk latency",
            "s",
            quantiles("eddy_record_seconds", 0.5, 0.95, 0.99),
            "Timestamp of every record, whether or not it is answered, to the commit that makes it done.",
        ),
        Panel(
            "Real-time factor",
            "short",
            [(ratio("eddy_engine_seconds_sum", "eddy_media_seconds_total"), MODEL)],
            "Seconds of engine for a second of media; above 1 it falls behind.",
        ),
        Panel(
            "Streams in real time",
            "short",
            [(rate("eddy_media_seconds_total"), MODEL)],
            "Seconds of media taken in a second: so many live streams.",
        ),
    ],
    "Streams and state": [
        Panel("Streams with state", "short", [(total("eddy_active_streams", "instance"), "{{instance}}")]),
        Panel(
            "Slots used",
            "percentunit",
            [(f"{total('eddy_slots_used', 'instance')} / {total('eddy_slots', 'instance')}", "{{instance}}")],
        ),
        Panel("Snapshots", "Bps", [(rate("eddy_snapshot_bytes_total"), MODEL)], "What the changelog grows by."),
        Panel("Snapshots a part", "short", [(ratio("eddy_snapshots_total", "eddy_parts_total"), MODEL)]),
        Panel(
            "Partitions",
            "short",
            [
                (total(f"eddy_{kind}_partitions", "instance"), f"{{{{instance}}}} {kind}")
                for kind in ("owned", "running", "paused", "waiting")
            ],
        ),
        Panel(
            "Polls",
            "cps",
            [(rate("eddy_polls_total"), MODEL), (rate("eddy_batches_total"), f"{MODEL} calls of the engine")],
        ),
    ],
    "Durability": [
        Panel(
            "Oldest unsaved record",
            "s",
            [(total("eddy_replay_age_seconds", "instance"), "{{instance}}")],
            "Far above the snapshot interval: snapshot_bytes_per_second is too small for what changes.",
        ),
        Panel(
            "To be replayed",
            "short",
            [(total("eddy_replay_records", "instance"), "{{instance}}")],
            "Offsets that a takeover of all its partitions would go through again.",
        ),
        Panel("Replayed", "cps", [(rate("eddy_replayed_records_total"), MODEL)], "Applied again, outputs hidden."),
        Panel("Streams without a slot", "short", [(total("eddy_host_streams", "instance"), "{{instance}}")]),
        Panel(
            "Streams leaving the arena",
            "cps",
            [(rate("eddy_evicted_streams_total"), MODEL)],
            "For room: many a second mean that slots are too few.",
        ),
        Panel(
            "Partitions held by a stream",
            "short",
            [(total("eddy_held_partitions", "instance"), "{{instance}}")],
            "The committed offset stands still for max_stall_s; the log names the stream.",
        ),
    ],
    "Trouble": [
        Panel("Dead letters", "cps", [(rate("eddy_dead_letters_total", "model, reason"), "{{model}} {{reason}}")]),
        Panel(
            "Failed transactions", "cps", [(rate("eddy_commit_failures_total", "model, kind"), "{{model}} {{kind}}")]
        ),
        Panel("Errors", "cps", [(rate("eddy_errors_total", "model, kind"), "{{model}} {{kind}}")]),
        Panel("Takeovers", "cps", [(rate("eddy_takeovers_total", "instance"), "{{instance}}")]),
        Panel("Takeover time", "s", quantiles("eddy_takeover_seconds", 0.5, 0.99), "From assigned to running."),
        Panel("Read by takeovers", "Bps", [(rate("eddy_restore_bytes_total"), MODEL)], "From the changelog."),
        Panel("Snapshots restored", "cps", [(rate("eddy_restored_snapshots_total"), MODEL)], "Read back by takeovers."),
    ],
    "Processes": [
        Panel(
            "Processors", "short", [(process("rate(process_cpu_seconds_total{}[$__rate_interval])"), "{{instance}}")]
        ),
        Panel("Resident memory", "bytes", [(process("process_resident_memory_bytes{}"), "{{instance}}")]),
        Panel("Open files", "short", [(process("process_open_fds{}"), "{{instance}}")]),
    ],
}


def dashboard() -> dict[str, Any]:
    """The whole dashboard, as Grafana imports it."""
    return {
        "uid": "eddy",
        "title": "Eddy",
        "tags": ["eddy"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_variable("model", "eddy_slots"), _variable("version", 'eddy_slots{model=~"$model"}')]},
        "panels": list(_panels()),
    }


def _variable(label: str, series: str) -> dict[str, Any]:
    query = f"label_values({series}, {label})"
    return {
        "name": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "variable"},
        "definition": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panels() -> Iterator[dict[str, Any]]:
    y = number = 0
    for title, panels in ROWS.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        }
        y += 1
        for i, panel in enumerate(panels):
            number += 1
            column = i * WIDTH % COLUMNS
            yield _panel(panel, number, {"x": column, "y": y, "w": WIDTH, "h": HEIGHT})
            if column + WIDTH == COLUMNS or i == len(panels) - 1:
                y += HEIGHT


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for i, (expression, legend) in enumerate(panel.drawn)
        ],
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
