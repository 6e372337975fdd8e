"""Head ``classify``: a record's last step -> one JSON object ``{"label", "probability", "top": [[label, p], ...]}``.

Numbers are rounded to six digits, and equal outputs give equal bytes. A record without steps gets no answer.
"""

from __future__ import annotations

import json
import math

import numpy as np

from pipeline.beside import NOTHING_BESIDE, Beside
from pipeline.codecs.settings import Settings, is_text
from pipeline.columns import U8, AnyArray
from pipeline.contract import Contract
from pipeline.heads.base import NOTHING, Answered, Finished, Head
from pipeline.heads.output import only_output


class ClassifyHead(Head):
    """See the module. Settings: ``{"top": 3, "activation": "softmax"}``; "none" where the model gives probabilities.

    Raises ContractError for a wrong setting, or unless the output is one ``[C]`` of floats and there are C labels.
    """

    memory_bytes = 0
    keeps = "last"

    def __init__(self, contract: Contract, beside: Beside = NOTHING_BESIDE) -> None:
        settings = Settings(contract, "head", beside)
        self._top = settings.integer("top", 3, 1, 1000)
        activation = settings.take("activation", "softmax", "'softmax' or 'none'", lambda v: v in ("softmax", "none"))
        settings.finish()
        self._softmax = activation == "softmax"
        output = only_output(contract, settings)
        labels = contract.head.labels
        if len(labels) != output.shape[0]:
            raise settings.error(
                f"{len(labels)} labels for output {output.name!r} of {output.shape[0]} classes: they must be as many"
            )
        for label in labels:
            if not is_text(label):
                raise settings.error(f"label {label!r} is no text")
        self.reads = (output.name,)
        self._labels = [json.dumps(label, ensure_ascii=False) for label in labels]
        self._top = min(self._top, len(labels))

    def answer(self, finished: Finished, memory: U8) -> Answered:
        index = np.flatnonzero(finished.counts)
        if not len(index):
            return NOTHING
        scores = self._scores(finished.outputs[0][index])
        # Stable: of equal scores the first label is first.
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self._top]
        # Adding zero makes -0.0 a 0.0.
        numbers = np.round(np.take_along_axis(scores, best, axis=1), 6) + 0.0
        return Answered(index, [self._json(b, p) for b, p in zip(best.tolist(), numbers.tolist())])

    def _scores(self, outputs: AnyArray) -> AnyArray:
        """float64 ``[k, C]``."""
        scores = outputs.astype(np.float64, order="C")
        if not self._softmax:
            return scores
        with np.errstate(invalid="ignore"):  # of infinities: no number comes out, and that is what is written
            weights: AnyArray = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        return weights

    def _json(self, best: list[int], numbers: list[float]) -> bytes:
        shown = [repr(p) if math.isfinite(p) else "null" for p in numbers]
        labels = [self._labels[i] for i in best]
        top = ",".join(f"[{label},{p}]" for label, p in zip(labels, shown))
        return f'{{"label":{labels[0]},"probability":{shown[0]},"top":[{top}]}}'.encode()
