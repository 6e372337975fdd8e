"""One typed schema of everything that can be set: flags over ``EDDY_*`` environment over a YAML file.

Every field is a flag (``--commit-interval-ms``), an environment variable (``EDDY_COMMIT_INTERVAL_MS``) and a YAML key
(``commit_interval_ms``). Kafka's settings have Kafka's own words. ``services/`` adds where to listen and how to log.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml

from pipeline.errors import ConfigError


def setting(default: Any, doc: str, *, choices: tuple[str, ...] = (), low: float | None = None) -> Any:
    """A field with its one-line explanation, its allowed words and its least value."""
    meta = {"doc": doc, "choices": choices, "low": low}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=meta)
    return field(default=default, metadata=meta)


@dataclass(frozen=True, kw_only=True)
class Config:
    """See the module. Frozen: a worker's configuration does not change while it runs."""

    model: str = setting("", "folder or file of the model (NAME, NAME/VERSION or model.onnx)")
    input: str = setting("", "topic that streams come from")
    output: str = setting("", "topic that results go to; as many partitions as the input")
    bootstrap_servers: str = setting("127.0.0.1:9092", "host:port[,host:port] of the brokers; 'memory' needs none")
    group: str = setting("", "consumer group; default eddy-MODEL")
    worker_id: str = setting("", "this process's stable name; default host name and the first free number")
    auto_offset_reset: str = setting(
        "earliest", "where a group without an offset begins", choices=("earliest", "latest")
    )

    slots: int = setting(4096, "streams resident in the arena", low=1)
    max_batch: int = setting(256, "streams in one call of the engine", low=1)
    max_steps: int = setting(32768, "steps in one poll", low=1)
    max_call_steps: int = setting(2048, "steps in one call of the engine (T times B)", low=1)
    max_delay_ms: float = setting(0.0, "how long a poll may wait to become larger, milliseconds", low=0)
    engine_threads: int = setting(1, "threads that run the model", low=1)
    decode_threads: int = setting(3, "threads that decode images and long texts; one partition has all but one", low=1)
    intra_op_threads: int = setting(1, "onnxruntime's threads within one call", low=1)
    providers: list[str] = setting(["CPUExecutionProvider"], "execution providers, most wanted first")
    provider_options: dict[str, dict[str, str]] = setting({}, "options by provider (YAML only)")
    provider_policy: str = setting(
        "require",
        "a missing provider, or one that does not take the nodes: an error, or a loud fall-back",
        choices=("require", "prefer"),
    )

    max_record_bytes: int = setting(1_048_576, "larger input records are dead letters, bytes", low=1)
    queue_bytes: int = setting(67_108_864, "fetched but not yet committed, of all partitions, bytes", low=65_536)
    fetch_max_bytes: int = setting(16_777_216, "one fetch from one broker, bytes", low=1024)
    max_partition_fetch_bytes: int = setting(2_097_152, "one fetch of one partition, bytes", low=1024)
    processing_guarantee: str = setting(
        "exactly_once",
        "at_least_once shows outputs sooner, and may show some of them twice after a failure",
        choices=("exactly_once", "at_least_once"),
    )
    snapshot_interval_ms: float = setting(
        10_000.0, "a stream's state is saved so long after it changed; 0: with every commit, milliseconds", low=0
    )
    snapshot_bytes_per_second: float = setting(
        20_000_000.0, "saved at most, of states that need not be saved at once; wins over the interval", low=1
    )
    snapshot_compression: str = setting("lz4", "of snapshots", choices=("none", "gzip", "snappy", "lz4", "zstd"))
    bad_snapshot: str = setting(
        "fail",
        "a snapshot that is damaged or of another model: its partition stops, or its stream begins anew",
        choices=("fail", "reset"),
    )
    generate_flush_ms: float = setting(
        20.0, "pieces of generations that go on are committed so far apart, at the least, milliseconds", low=0
    )
    on_input: str = setting(
        "wait",
        "a record for a stream that generates: waits, or cuts the generation short",
        choices=("wait", "interrupt"),
    )
    host_bytes: int = setting(1_073_741_824, "memory for streams that have no slot just now, bytes", low=1024)
    state_directory: str = setting(
        "", "where streams go that fit in neither, and local copies of changelogs, for quick restarts; empty: nowhere"
    )
    standbys: int = setting(0, "workers that may die at once, and others have a local copy of what was theirs", low=0)
    state_ttl_s: float = setting(0.0, "a stream without records for so long is forgotten; 0: never, seconds", low=0)
    max_stall_s: float = setting(
        120.0,
        "a worker that gets nothing committed for so long ends; a stream that holds its partition is named",
        low=1,
    )
    commit_interval_ms: float = setting(0.0, "least time between two commits, milliseconds", low=0)
    transaction_timeout_ms: int = setting(10_000, "after this the broker aborts a dead worker's transaction", low=1000)
    request_timeout_ms: int = setting(10_000, "one request to a broker", low=100)
    session_timeout_ms: int = setting(6_000, "after this without heartbeats a worker is out of the group", low=1000)
    heartbeat_interval_ms: int = setting(1_000, "between two heartbeats", low=100)
    replication_factor: int = setting(-1, "of topics that Eddy makes; -1 is the broker's default")
    compression: str = setting("none", "of output records", choices=("none", "gzip", "snappy", "lz4", "zstd"))
    header_model: bool = setting(True, "write the header eddy-model")
    header_source: bool = setting(True, "write the header eddy-source")
    drain_timeout_s: float = setting(20.0, "SIGTERM: in-flight work has this long to be committed, seconds", low=0)

    @property
    def changelog(self) -> str:
        """Topic of the snapshots."""
        return f"{self.group}-{self.input}-changelog"

    @property
    def dead_letters(self) -> str:
        """Topic of what could not be served."""
        return f"{self.input}.dlq"

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            choices, low = f.metadata["choices"], f.metadata["low"]
            if choices and value not in choices:
                raise ConfigError(f"{f.name} is {value!r}: expected one of {', '.join(choices)}")
            if low is not None and value < low:
                raise ConfigError(f"{f.name} is {value!r}: must be at least {low:g}")

        if self.standbys and not self.state_directory:
            raise ConfigError(
                f"standbys is {self.standbys}: they keep local copies, so give --state-directory, EDDY_STATE_DIRECTORY"
                " or state_directory: in the file"
            )

    def require(self, *names: str) -> None:
        """Raises ConfigError for a setting that was left empty."""
        for name in names:
            if not getattr(self, name):
                flag = name.replace("_", "-")
                raise ConfigError(f"{name} is not set: give --{flag}, EDDY_{name.upper()} or {name}: in the file")


Schema = TypeVar("Schema", bound=Config)


def load(cls: type[Schema], flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None) -> Schema:
    """Flags (None: not given) over environment over file. ``cls`` may extend Config.

    Raises ConfigError naming source, key and value for an unknown key or a value that is not of the field's type.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    if file is not None:
        for key, value in _read_yaml(file).items():
            if key not in known:
                raise ConfigError(f"{file}: unknown key {key!r}{_nearest(str(key), known)}")
            values[key] = _convert(hints[key], value, f"{file}: {key}")
    for name in known:
        variable = f"EDDY_{name.upper()}"
        if variable in environment:
            values[name] = _convert(hints[name], environment[variable], variable)
    for name, value in flags.items():
        if value is not None:
            if name not in known:
                raise ConfigError(f"unknown setting {name!r}{_nearest(name, known)}")
            values[name] = _convert(hints[name], value, f"--{name.replace('_', '-')}")
    return cls(**values)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {file}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not YAML ({' '.join(str(error).split())})") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: expected keys and values, found {type(raw).__name__}")
    return raw


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _convert(kind: Any, value: Any, where: str) -> Any:
    """A value of YAML, environment or flag as the field's type."""
    wrong = ConfigError(f"{where} is {value!r}: expected {_describe(kind)}")
    if get_origin(kind) in (typing.Union, types.UnionType):
        inner = [a for a in get_args(kind) if a is not type(None)]
        return None if value in (None, "") else _convert(inner[0], value, where)
    if get_origin(kind) is list:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list):
            raise wrong
        return [_convert(get_args(kind)[0], i.strip() if isinstance(i, str) else i, where) for i in items]
    if get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise wrong
        return {str(k): _convert(get_args(kind)[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is bool:
        if isinstance(value, bool):
            return value
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if str(value).lower() not in words:
            raise wrong
        return words[str(value).lower()]
    if kind in (int, float):
        if isinstance(value, bool):
            raise wrong
        try:
            return kind(value)
        except (TypeError, ValueError):
            raise wrong from None
    if isinstance(value, (dict, list, bool)) or value is None:
        raise wrong
    return str(value)


def _describe(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
    if get_origin(kind) is list:
        return "a list"
    return names.get(kind, "keys and values")
