"""What sound and video have in common: the library that decodes them, the model's own settings, and real time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from heapq import merge
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

from export.extras import install
from pipeline.contract import Contract
from pipeline.errors import ConfigError
from pipeline.model_file import find_model, load_graph, read_contract
from services.producing.send import Bar, Record

Timed: TypeAlias = tuple[float, Record]
"""When a record would be there in real time, seconds since the beginning, and the record."""


def need_av(what: str) -> ModuleType:
    """PyAV, which brings FFmpeg. Raises ConfigError that names the extra where it is not installed."""
    try:
        import av
    except ImportError:
        raise ConfigError(f"eddy produce {what} needs PyAV: {install('media')}") from None
    av.logging.set_level(av.logging.PANIC)  # what matters of its remarks comes as an exception, too
    module: ModuleType = av
    return module


def model_contract(model: str | None, kind: str) -> Contract | None:
    """The contract of the model that the records are for, if one is named. Raises ConfigError for another codec."""
    if model is None:
        return None
    contract = read_contract(load_graph(find_model(Path(model))), model)
    if contract.codec.kind != kind:
        raise ConfigError(f"--model {model}: its codec is {contract.codec.kind}, and this makes records for {kind}")
    return contract


def in_time(streams: Iterable[Iterator[Timed]], realtime: bool, bar: Bar) -> Iterator[list[Record]]:
    """The streams' records: in real time all together, else one stream after the other, as fast as they are taken."""
    began = time.monotonic()
    if not realtime:
        for stream in streams:
            for _, record in stream:
                bar.update(len(record[1] or b""))
                yield [record]
        return
    for due, record in merge(*streams, key=itemgetter(0)):
        time.sleep(max(0.0, began + due - time.monotonic()))
        bar.update(len(record[1] or b""))
        yield [record]
