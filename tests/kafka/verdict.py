"""Exactly once, in order and right: a topic's outputs held against its inputs, both as a plain client reads them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.kafka.harness import Topics
from tests.kafka.reading import Record, read_all
from tests.models import rolling_hash_reference

Stream = tuple[int, bytes]
Answers = Callable[[Sequence[NDArray[Any]]], Sequence[NDArray[Any]]]
"""The steps of a stream's records, one array a record -> the right output for each, from the initial state on."""


@dataclass
class Verdict:
    """What was found. ``clean`` is all zero, however many records there were."""

    inputs: int = 0
    outputs: int = 0
    streams: int = 0
    lost: int = 0
    repeated: int = 0
    out_of_order: int = 0
    strange: int = 0
    """Outputs of no input: another partition, key or source."""
    wrong: int = 0
    """Outputs whose value is not the one it should be."""
    largest_difference: float = 0.0
    first: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.repeated or self.out_of_order or self.strange or self.wrong)

    def __str__(self) -> str:
        return (
            f"{self.inputs} inputs, {self.outputs} outputs, {self.streams} streams: lost {self.lost}, repeated"
            f" {self.repeated}, out of order {self.out_of_order}, strange {self.strange}, wrong {self.wrong}, largest"
            f" difference {self.largest_difference:g}" + "".join(f"\n  {line}" for line in self.first)
        )


def judge(
    inputs: Sequence[Record],
    outputs: Sequence[Record],
    answers: Answers,
    *,
    step: NDArray[Any],
    answer: NDArray[Any],
    tolerance: float = 0.0,
    skipped: frozenset[tuple[int, int]] = frozenset(),
) -> Verdict:
    """``step`` and ``answer``: arrays of one step's and one output's dtype and shape. Without null values.

    ``skipped``: partition and offset of inputs that must have no output and leave no trace (dead letters).
    """
    verdict = Verdict(len(inputs), len(outputs))
    sent: dict[Stream, list[Record]] = defaultdict(list)
    for record in inputs:
        if (record.partition, record.offset) not in skipped:
            assert record.key is not None
            sent[record.partition, record.key].append(record)
    verdict.streams = len(sent)
    got: dict[Stream, list[Record]] = defaultdict(list)
    for record in outputs:
        stream = (record.partition, record.key or b"")
        if stream in sent and record.source[0] == record.partition:
            got[stream].append(record)
        else:
            verdict.strange += 1
            verdict.first.append(f"strange: {record}")
    for stream, records in sent.items():
        steps = [np.frombuffer(r.value or b"", step.dtype).reshape(-1, *step.shape) for r in records]
        right = dict(zip((r.offset for r in records), answers(steps)))
        _judge_stream(verdict, stream, right, got[stream], answer, tolerance)
    verdict.first = verdict.first[:10]
    return verdict


def _judge_stream(
    verdict: Verdict,
    stream: Stream,
    right: dict[int, NDArray[Any]],
    outputs: Sequence[Record],
    answer: NDArray[Any],
    tolerance: float,
) -> None:
    """``outputs`` in the order of their topic; ``right`` by the input's offset."""
    sources = [r.source[1] for r in outputs]
    known = set(sources) & right.keys()
    wheres: defaultdict[int, list[int]] = defaultdict(list)
    for record, source in zip(outputs, sources):
        wheres[source].append(record.offset)
    for name, count, which in (
        ("lost", len(right) - len(known), sorted(right.keys() - known)),
        ("repeated", len(sources) - len(wheres), {s: at for s, at in wheres.items() if len(at) > 1}),
        ("out_of_order", sum(a > b for a, b in pairwise(sources)), [(a, b) for a, b in pairwise(sources) if a > b]),
        ("strange", len(wheres) - len(known), sorted(wheres.keys() - known)),
    ):
        if count:
            setattr(verdict, name, getattr(verdict, name) + count)
            verdict.first.append(f"{name}: {count} of {stream}, inputs {list(right)[:40]}: {str(which)[:400]}")
    for record, source in zip(outputs, sources):
        if source not in right:
            continue
        found = np.frombuffer(record.value or b"", answer.dtype).reshape(-1, *answer.shape)
        same = found.shape == right[source].shape
        difference = float(np.abs(found - right[source]).max(initial=0)) if same else float("inf")
        verdict.largest_difference = max(verdict.largest_difference, difference)
        if not difference <= tolerance:
            verdict.wrong += 1
            verdict.first.append(f"wrong: {stream} offset {source}: {found[:3]}, should be {right[source][:3]}")


def hash_answers(steps: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
    """The rolling hash, which never forgets a step, an order or a repetition."""
    whole = rolling_hash_reference(np.concatenate(steps))
    return np.split(whole, np.cumsum([len(s) for s in steps])[:-1])


def judge_hash(topics: Topics, *, skipped: frozenset[tuple[int, int]] = frozenset()) -> Verdict:
    """Reads both topics and judges them; steps and outputs are int64."""
    number = np.empty((), np.int64)
    inputs, outputs = (read_all(topics.address, topic) for topic in (topics.input, topics.output))
    return judge(inputs, outputs, hash_answers, step=number, answer=number, skipped=skipped)
