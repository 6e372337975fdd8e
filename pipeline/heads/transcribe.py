"""Head ``transcribe``: the outputs of a CTC model, one frame a step, to transcripts with times.

Each output record is one JSON object ``{"text", "final", "start_s", "end_s"}``; times are seconds from the stream's
start. A *final* transcript is an utterance that an end point closed: so much silence after speech, the longest time or
the longest text that an utterance may have, or the stream's end. A record is answered by the final transcripts of the
end points among its steps, in order, and then by a partial one, if it changed the text of the utterance that goes on.

A stream's row is a function of its steps alone, wherever its bytes were cut. Nothing is kept of what was shown: the
record before left the text shown as the row has it. A transcript is a choice all the same (X7): steps that are run
again beside other streams may differ in their last digits, and with them the likelier of two characters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pipeline.beside import NOTHING_BESIDE, Beside
from pipeline.codecs.settings import Settings
from pipeline.columns import U8
from pipeline.contract import Contract
from pipeline.errors import ContractError
from pipeline.heads.base import NOTHING, Answered, Finished, Head
from pipeline.heads.beam import Beam
from pipeline.heads.frames import ROW, frames_of
from pipeline.heads.greedy import Greedy
from pipeline.heads.hypotheses import Search
from pipeline.heads.language_model import LanguageModel, Tables
from pipeline.heads.output import only_output
from pipeline.heads.transcript import BYTES_MAX, BYTES_MIN, HOUR_S, Answers, Labels, Limits, real, seconds

WIDTH_MAX = 64
TAIL = 32
"""Labels that a hypothesis may differ in from the others; a choice between two texts is made within so many."""


@dataclass(frozen=True, slots=True)
class _BeamSettings:
    language_model: bytes | None
    weight: float
    bonus: float
    certain: float

    @staticmethod
    def of(settings: Settings) -> _BeamSettings:
        """Raises ContractError."""

        def number(name: str, default: float, low: float, high: float) -> float:
            return real(settings, name, default, f"a number from {low:g} to {high:g}", lambda v: low <= v <= high)

        return _BeamSettings(
            settings.file("language_model"),
            number("lm_weight", 0.5, 0.0, 10.0),
            number("insertion_bonus", 0.0, -10.0, 10.0),
            real(settings, "certain", 0.99, "a number above 0.5, at most 1", lambda v: 0.5 < v <= 1),
        )

    def tables(self, labels: Labels, settings: Settings) -> Tables:
        """What is added for each character. Raises ContractError."""
        if self.language_model is None:
            size = len(labels.texts)
            return Tables(np.full((1, size), self.bonus, np.float32), np.zeros((1, size), np.int32), 0, 0)
        try:
            tables = LanguageModel.from_bytes(self.language_model).tables(labels.texts)
        except ContractError as error:
            raise settings.error(f"setting 'language_model': {error}") from None
        return replace(tables, log=tables.log * np.float32(self.weight) + np.float32(self.bonus))


class TranscribeHead(Head):
    """See the module. Settings: ``step_s``, seconds from one step of the model to the next, which is required, and
    ``{"silence_s": 0.6, "longest_s": 30.0, "max_bytes": 400, "partial": true, "confidence": false, "beam": 1}``.

    With ``confidence`` an answer has that too: the geometric mean of the probabilities of the likeliest characters. A
    ``beam`` of more than one is a search among so many texts, with ``{"language_model": null, "lm_weight": 0.5,
    "insertion_bonus": 0.0, "certain": 0.99}``: a file beside the model (``export/language_model.py``), how much its
    natural logarithms count, what is added to them for every character, and the blank's probability from which on a
    step is not searched.

    Raises ContractError for a wrong setting, or unless the output is one ``[C]`` of floats, logits or logarithms of
    probabilities, and there are C labels, of which exactly one is the empty text: the blank.
    """

    keeps = "all"
    choices = "outputs"

    def __init__(self, contract: Contract, beside: Beside = NOTHING_BESIDE) -> None:
        settings = Settings(contract, "head", beside)
        self._step_s = seconds(settings, "step_s", None, 0.0001, 60.0)
        silence_s = seconds(settings, "silence_s", 0.6, 0.0, HOUR_S)
        longest_s = seconds(settings, "longest_s", 30.0, 0.1, HOUR_S)
        max_bytes = settings.integer("max_bytes", 400, BYTES_MIN, BYTES_MAX)
        partial = settings.take("partial", True, "true or false", lambda v: isinstance(v, bool))
        confidence = settings.take("confidence", False, "true or false", lambda v: isinstance(v, bool))
        width = settings.integer("beam", 1, 1, WIDTH_MAX)
        search = _BeamSettings.of(settings) if width > 1 else None
        settings.finish()
        output = only_output(contract, settings)
        self._labels = labels = Labels.of(contract, output.shape[0], settings)
        if labels.bytes_max > max_bytes // 2:
            raise settings.error(
                f"a label has {labels.bytes_max} bytes, more than half of max_bytes, {max_bytes}: raise that"
            )
        limits = Limits(max(1, round(silence_s / self._step_s)), max(1, round(longest_s / self._step_s)), max_bytes)
        self._decoder: Greedy | Beam
        if search is None:
            self._decoder = Greedy(labels, limits, partial=partial, confidence=confidence)
        else:
            beams = Search(labels, search.tables(labels, settings), width=width, tail=TAIL, text=max_bytes)
            self._decoder = Beam(labels, limits, beams, certain=search.certain, partial=partial, confidence=confidence)
        self.reads = (output.name,)
        self.memory_bytes = self._decoder.memory_bytes

    def answer(self, finished: Finished, memory: U8) -> Answered:
        """A record may be answered several times."""
        frames = frames_of(finished, memory, self._labels)
        if frames is None:
            return NOTHING
        answers = Answers(self._step_s)
        self._decoder.decode(frames, finished.outputs[0], memory, answers)
        memory[frames.slots, : ROW.itemsize] = frames.rows.view(np.uint8).reshape(len(frames.slots), -1)
        return Answered(*answers.in_order())
