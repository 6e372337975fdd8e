"""``eddy demo language``: documents that come a few characters at a time, and what language each is in so far."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pipeline.contract import Contract
from services.demos.base import Came, Demo, Sent, percent
from services.screen import Screen

TEXTS = {
    "cs": "Proud je řada záznamů se stejným klíčem, které přicházejí jeden po druhém.",
    "da": "Hver gang der kommer en ny linje, ved modellen lidt mere om teksten end før.",
    "de": "Der Zustand eines Stroms bleibt erhalten, auch wenn der Rechner zwischendurch ausfällt.",
    "en": "What the network has read before is all in its state, and nothing else is kept.",
    "es": "Cada mensaje que llega cambia un poco lo que la red sabe de la conversación.",
    "fi": "Verkko lukee tekstiä merkki kerrallaan ja muistaa sen, mitä on jo nähnyt.",
    "fr": "Le réseau lit le texte caractère par caractère et se souvient de ce qu'il a déjà vu.",
    "it": "Ogni parola che arriva rende la rete un poco più sicura della sua risposta.",
    "ja": "ネットワークは文字を一つずつ読み、それまでに見たものを覚えている。",
    "nl": "Na elke paar letters weet het netwerk beter in welke taal de tekst geschreven is.",
    "pl": "Każdy nowy znak zmienia stan sieci, a odpowiedź staje się coraz pewniejsza.",
    "pt": "O estado de cada fluxo não se perde, mesmo quando o processo termina de repente.",
    "ru": "Сеть читает текст по одной букве и помнит всё, что уже прочитала.",
    "sv": "När nästa bokstav kommer vet nätverket redan mycket om det som står i texten.",
    "tr": "Ağ metni harf harf okur ve daha önce gördüklerini aklında tutar.",
    "uk": "Мережа читає текст по одній літері та пам'ятає все, що вже прочитала.",
}
"""Language code -> a document in it."""
CUT = 6
"""Characters a record."""
PACE_S = 0.15


class LanguageDemo(Demo):
    """See the module."""

    name = "language"
    about = "documents in, a few characters at a time; the language so far after every record"
    model = "language"
    head = "classify"
    topics = ("documents", "languages")

    def __init__(self) -> None:
        self._pieces = {key: [text[i : i + CUT] for i in range(0, len(text), CUT)] for key, text in TEXTS.items()}
        self._answers: dict[str, list[str]] = {key: [] for key in TEXTS}

    def streams(self) -> Sequence[str]:
        return list(TEXTS)

    def records(self, contract: Contract) -> Sequence[Sent]:
        sent = [
            Sent(key, piece.encode(), at_s=PACE_S * number)
            for key, pieces in self._pieces.items()
            for number, piece in enumerate(pieces)
        ]
        return sorted(sent, key=lambda record: record.at_s)

    def sent(self, record: Sent, screen: Screen) -> None:
        screen.grow([(record.key, (record.value or b"").decode())])

    def show(self, came: Came, screen: Screen) -> bool:
        said = json.loads(came.value)
        answers = self._answers[came.key]
        answers.append(said["label"])
        screen.mark(came.key, f"{said['label']} {percent(said['probability'])}")
        if len(answers) == len(self._pieces[came.key]):
            screen.end(came.key)
        return False

    def summary(self) -> str:
        known = [key for key, answers in self._answers.items() if answers and answers[-1] == key]
        first = [_settled(self._answers[key]) for key in known]
        settled = sorted(first)[len(first) // 2] if first else 0
        return (
            f"{len(known)} of {len(TEXTS)} documents in the right language at their end; the answer was final after"
            f" {CUT * (settled + 1)} characters (median)"
        )


def _settled(answers: Sequence[str]) -> int:
    """The first answer from which on they stay as they are."""
    return next(i for i in range(len(answers)) if len(set(answers[i:])) == 1)
