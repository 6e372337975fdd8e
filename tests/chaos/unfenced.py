"""``python -m tests.chaos.unfenced run ...``: ``eddy run``, broken on purpose, for the tests to find out.

Its offset commits carry no membership, as those of version 0 cannot, and the broker takes such ones unchecked.
"""

from __future__ import annotations

import sys
from typing import Any

from pipeline.transport.kafka import wire
from services.cli import main


class Unfenced(wire.TxnOffsetCommit):
    """Of nobody, at no generation."""

    def __init__(self, lane: str, group: str, producer_id: int, epoch: int, *membership_topics_tags: Any) -> None:
        _, _, _, topics, tags = membership_topics_tags
        super().__init__(lane, group, producer_id, epoch, -1, "", None, topics, tags)


if __name__ == "__main__":
    wire.TxnOffsetCommit = Unfenced  # type: ignore[misc]
    sys.exit(main())
