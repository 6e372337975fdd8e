"""``eddy demo sentiment``: conversations, a message a record, and how each message sounds."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pipeline.contract import Contract
from services.demos.base import Came, Demo, Sent, percent
from services.screen import Screen

CONVERSATIONS = {
    "ann": (
        ("good morning, is my flight on time", "neutral"),
        ("thank you so much, that was really fast and helpful", "positive"),
        ("oh no, now it is cancelled and nobody answers the phone", "negative"),
        ("this is the worst service i have ever had", "negative"),
    ),
    "ben": (
        ("i love this new phone, the camera is amazing", "positive"),
        ("but the battery is terrible, i am so disappointed", "negative"),
        ("what time does the store open tomorrow", "neutral"),
        ("great, they gave me a new one, best support ever", "positive"),
    ),
    "cleo": (
        ("i hate mondays, everything goes wrong", "negative"),
        ("just had the best coffee in town", "positive"),
        ("the meeting is at three in room five", "neutral"),
        ("so happy with how it went, thanks everyone", "positive"),
    ),
}
"""Stream -> its messages, and how a person would hear each."""
PACE_S = 0.4


class SentimentDemo(Demo):
    """See the module."""

    name = "sentiment"
    about = "messages of conversations in; label and probability after each"
    model = "sentiment"
    head = "classify"
    topics = ("messages", "sentiments")
    waits = "message to its label"

    def __init__(self) -> None:
        self._heard = dict.fromkeys(CONVERSATIONS, 0)
        self._right = 0

    def streams(self) -> Sequence[str]:
        return list(CONVERSATIONS)

    def records(self, contract: Contract) -> Sequence[Sent]:
        sent = [
            # A message ends with a line feed: after it the model answers.
            Sent(key, f"{text}\n".encode(), at_s=PACE_S * number)
            for key, messages in CONVERSATIONS.items()
            for number, (text, _) in enumerate(messages)
        ]
        return sorted(sent, key=lambda record: record.at_s)

    def show(self, came: Came, screen: Screen) -> bool:
        said = json.loads(came.value)
        text, wanted = CONVERSATIONS[came.key][self._heard[came.key]]
        self._heard[came.key] += 1
        self._right += said["label"] == wanted
        screen.line(came.key, text, f"{said['label']} {percent(said['probability'])}")
        return False

    def summary(self) -> str:
        messages = sum(map(len, CONVERSATIONS.values()))
        return f"{self._right} of {messages} messages labelled as a person would"
