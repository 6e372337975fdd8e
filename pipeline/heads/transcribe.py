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

import numpy as np

from pipeline.beside import NOTHING_BESIDE, Beside
from pipeline.codecs.settings import Settings
from pipeline.columns import U8
from pipeline.contract import Contract
from pipeline.heads.base import NOTHING, Answered, Finished, Head
from pipeline.heads.frames import ROW, frames_of
from pipeline.heads.greedy import Greedy
from pipeline.heads.output import only_output
from pipeline.heads.transcript import BYTES_MAX, BYTES_MIN, HOUR_S, Answers, Labels, Limits, seconds


class TranscribeHead(Head):
    """See the module. Settings: ``step_s``, seconds from one step of the model to the next, which is required, and
    ``{"silence_s": 0.6, "longest_s": 30.0, "max_bytes": 400, "partial": true, "confidence": false}``.

    With ``confidence`` an answer has that too: the geometric mean of the probabilities of the likeliest characters.

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
        settings.finish()
        output = only_output(contract, settings)
        self._labels = Labels.of(contract, output.shape[0], settings)
        if self._labels.bytes_max > max_bytes // 2:
            raise settings.error(
                f"a label has {self._labels.bytes_max} bytes, more than half of max_bytes, {max_bytes}: raise that"
            )
        limits = Limits(max(1, round(silence_s / self._step_s)), max(1, round(longest_s / self._step_s)), max_bytes)
        self._decoder = Greedy(self._labels, limits, partial=partial, confidence=confidence)
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
