"""A speech model as a worker runs it, by onnxruntime alone: its codec, its graph, its head; and how wrong it was."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from export.memory import fit_memory
from pipeline.beside import Beside
from pipeline.codecs import CODECS
from pipeline.contract import Contract
from pipeline.heads import HEADS
from pipeline.heads.base import Finished
from pipeline.model_file import load_graph, read_contract


@dataclass(frozen=True, slots=True)
class Said:
    """One utterance of a transcript, times in seconds of the stream."""

    text: str
    start_s: float
    end_s: float


class Listener:
    """A model folder. One thread computes."""

    def __init__(self, folder: Path) -> None:
        """Raises what reading the model and its contract raise."""
        file = folder / "model.onnx"
        self.contract = read_contract(load_graph(file), str(file))
        self._beside = Beside(folder)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._names = [*(o.name for o in self.contract.outputs), *(s.output for s in self.contract.states)]

    @property
    def step_s(self) -> float:
        return CODECS[self.contract.codec.kind](self.contract, self._beside).step_s

    def steps(self, pcm: NDArray[np.int16]) -> NDArray[Any]:
        """int16 ``[n]`` -> ``[T, 1, hop]``, as the codec makes them; silence fills the last hop."""
        contract = self.contract
        codec = CODECS[contract.codec.kind](contract, self._beside)
        hop = contract.steps[0].nbytes // np.dtype(contract.steps[0].dtype).itemsize
        whole = np.pad(pcm, (0, -len(pcm) % hop)).astype("<i2")
        memory = np.zeros((1, codec.memory_bytes), np.uint8)
        decoded = codec.decode([whole.tobytes()], np.zeros(1, np.int64), memory)
        values: NDArray[Any] = decoded.values[0][:, None]
        return values

    def run(
        self, steps: NDArray[Any], states: Mapping[str, NDArray[Any]] | None = None
    ) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        """``[T, 1, hop]`` -> logits ``[T, C]``, and the states after them; None: a new stream's before them."""
        given = states or {s.input: np.zeros(s.shape, s.dtype) for s in self.contract.states}
        logits, *after = self._session.run(self._names, {self.contract.steps[0].name: steps, **given})
        return logits[:, 0], {s.input: a for s, a in zip(self.contract.states, after)}

    def logits(self, pcm: NDArray[np.int16]) -> NDArray[Any]:
        return self.run(self.steps(pcm))[0]

    def greedy(self) -> Contract:
        """Its contract with a head that takes the likeliest label of each step."""
        settings = {k: v for k, v in self.contract.head.settings.items() if k not in _OF_A_BEAM}
        return fit_memory(replace(self.contract, head=replace(self.contract.head, settings=settings)), self._beside)

    def transcribe(self, logits: Sequence[NDArray[Any]], contract: Contract | None = None) -> list[list[Said]]:
        """What the head says of each stream, all of its steps being one record and the stream ending after it."""
        contract = contract or self.contract
        head = HEADS[contract.head.kind](contract, self._beside)
        n = len(logits)
        memory = np.zeros((n, head.memory_bytes), np.uint8)
        said: list[list[Said]] = [[] for _ in range(n)]
        for ended in (False, True):
            steps = [0 if ended else len(one) for one in logits]
            finished = Finished(
                slots=np.arange(n),
                counts=np.array(steps, np.int64),
                keys=[str(i).encode() for i in range(n)],
                offsets=np.full(n, int(ended), np.int64),
                timestamps=np.zeros(n, np.int64),
                headers=None,
                outputs=(np.concatenate(logits)[: sum(steps)],),
                ended=np.full(n, ended),
            )
            answered = head.answer(finished, memory)
            for i, value in zip(answered.index.tolist(), answered.values):
                answer = json.loads(value or b"{}")
                if answer.get("final"):
                    said[i].append(Said(answer["text"], answer["start_s"], answer["end_s"]))
        return said


_OF_A_BEAM = ("beam", "language_model", "lm_weight", "insertion_bonus", "certain")


def text_of(said: Sequence[Said]) -> str:
    """Its utterances, one space between words."""
    return " ".join(" ".join(one.text for one in said).split())


def choose(logits: NDArray[Any], texts: Sequence[str], labels: Sequence[str]) -> int:
    """Which of the texts was most likely said, all else being excluded: the first one of the greatest likelihood."""
    log = logits.astype(np.float64)
    log -= log.max(axis=1, keepdims=True)
    log -= np.log(np.exp(log).sum(axis=1, keepdims=True))
    number = {label: i for i, label in enumerate(labels)}
    return int(np.argmax([likelihood(log, [number[c] for c in text], number[""]) for text in texts]))


def likelihood(log: NDArray[np.float64], labels: Sequence[int], blank: int) -> float:
    """Natural logarithm of p(labels | steps): the sum over all ways to say them (Graves et al., 2006, eq. 6-8).

    ``log``: ``[T, C]``, normalised.
    """
    states = [blank]
    for label in labels:
        states += [label, blank]
    size = len(states)
    leaps = np.array([s >= 2 and states[s] != blank and states[s] != states[s - 2] for s in range(size)])
    forward = np.full(size, -np.inf)
    forward[:2] = log[0, states[:2]]
    for row in log[1:]:
        one = np.concatenate([[-np.inf], forward[:-1]])
        two = np.where(leaps, np.concatenate([[-np.inf, -np.inf], forward[:-2]])[:size], -np.inf)
        forward = np.logaddexp(np.logaddexp(forward, one), two) + row[states]
    return float(np.logaddexp(forward[-1], forward[-2]) if size > 1 else forward[-1])


@dataclass(frozen=True, slots=True)
class Speed:
    """On this machine, one thread."""

    real_time_factor: float
    """Seconds of computing for a second of sound, step after step of one stream."""
    step_ms: float
    """Median of a call with one step."""
    step_ms_p99: float


def speed(listener: Listener, pcm: NDArray[np.int16]) -> Speed:
    """Of the graph alone, given one step at a time."""
    steps = listener.steps(pcm)
    states: dict[str, NDArray[Any]] | None = None
    taken = []
    for step in steps:
        begun = time.perf_counter()
        _, states = listener.run(step[None], states)
        taken.append(time.perf_counter() - begun)
    middle, slow = np.percentile(taken, [50, 99])
    return Speed(sum(taken) / (len(steps) * listener.step_s), float(middle) * 1e3, float(slow) * 1e3)


@dataclass(frozen=True, slots=True)
class Ends:
    """End points in one stream of many recordings with a second of silence behind each."""

    found: float
    """Share of the recordings in whose pause an utterance ended."""
    inside: float
    """End points a recording, that lay inside of one: in its own pauses."""
    late_s: float
    """Median of how much later than the last sound the utterance is said to end."""


def ends(listener: Listener, sounds: Sequence[NDArray[np.int16]], rate: int) -> Ends:
    """``sounds``: int16 ``[n]`` each, at ``rate``; the last sample above 1% of the loudest is where one ends."""
    pause = np.zeros(rate, np.int16)
    stream = np.concatenate([part for sound in sounds for part in (sound, pause)])
    (said,) = listener.transcribe([listener.logits(stream)])
    at, late, inside = 0.0, [], 0
    for sound in sounds:
        loud = np.flatnonzero(np.abs(sound.astype(np.int32)) > np.abs(sound.astype(np.int32)).max() / 100)
        last, after = at + (loud[-1] + 1) / rate, at + len(sound) / rate + 1.0
        here = [s.end_s for s in said if at < s.end_s <= after]
        inside += max(0, len(here) - 1)
        if here:
            late.append(here[-1] - last)
        at = after
    return Ends(len(late) / len(sounds), inside / len(sounds), float(np.median(late)) if late else math.nan)
