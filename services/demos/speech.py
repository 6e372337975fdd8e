"""``eddy demo speech``: voices at the pace they were spoken, and what is said so far.

The sound is that of Debian's package of telephone prompts, of those that the model did not learn from; it is brought
into the cache where it is not there yet.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.contract import Contract
from pipeline.errors import ContractError
from services.demos.base import Came, Demo, Sent
from services.screen import Screen

STREAMS = 6
SECONDS = (2.0, 6.0)
"""Prompts that last so long."""
CHUNK_S = 0.1
SILENCE_S = 1.5
"""Behind each prompt, so that its end is heard."""


@dataclass
class _Heard:
    """What was understood of a stream."""

    wanted: str
    final: list[str] = field(default_factory=list)


class SpeechDemo(Demo):
    """See the module."""

    name = "speech"
    about = "sound at its own pace in; what is said so far, with an end point after each utterance"
    model = "speech"
    head = "transcribe"
    topics = ("sounds", "transcripts")
    waits = "chunk of sound to the transcript it changed"

    def __init__(self) -> None:
        from export.data.prompts import RATE, load_prompts

        held_out = [p for p in load_prompts().held_out if SECONDS[0] <= p.seconds <= SECONDS[1]]
        self._prompts = {
            prompt.name.split("/")[-1]: prompt for prompt in held_out[:: len(held_out) // STREAMS][:STREAMS]
        }
        self._rate = RATE
        self._heard = {key: _Heard(prompt.text) for key, prompt in self._prompts.items()}

    def streams(self) -> Sequence[str]:
        return list(self._prompts)

    def records(self, contract: Contract) -> Sequence[Sent]:
        if contract.codec.kind != "audio" or contract.codec.settings.get("rate") != self._rate:
            raise ContractError(f"{contract.label}: this demo has sound at {self._rate} Hz")
        chunk = round(CHUNK_S * self._rate) * 2
        sent = []
        for key, prompt in self._prompts.items():
            sound = prompt.pcm.astype("<i2").tobytes() + bytes(round(SILENCE_S * self._rate) * 2)
            starts = range(0, len(sound), chunk)
            sent += [Sent(key, sound[at : at + chunk], at_s=CHUNK_S * number) for number, at in enumerate(starts)]
            sent.append(Sent(key, None, at_s=CHUNK_S * len(starts)))  # the stream's end
        return sorted(sent, key=lambda record: record.at_s)

    def show(self, came: Came, screen: Screen) -> bool:
        said = json.loads(came.value)
        heard = self._heard[came.key]
        if said["final"]:
            heard.final.append(said["text"])
            screen.line(came.key, said["text"], f"{said['start_s']:.1f}-{said['end_s']:.1f} s")
        else:
            screen.put(came.key, " ".join([*heard.final, said["text"]]))
        return False

    def summary(self) -> str:
        lines = [
            f"{key}\n  said   {heard.wanted}\n  heard  {' '.join(heard.final)}" for key, heard in self._heard.items()
        ]
        return "\n".join(lines)
