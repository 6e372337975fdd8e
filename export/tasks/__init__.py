"""The applications: each is trained by `eddy train NAME`, exported, scored, and shown by `eddy demo NAME`.

A module here imports at its top only what starts at once (no torch, numpy or onnxruntime: those inside the methods), so
that `eddy --help` answers at once and scoring needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from export.tasks.base import Task
from export.tasks.language import LanguageTask
from export.tasks.sentiment import SentimentTask
from export.tasks.speech import SpeechTask
from export.tasks.text import TextTask
from export.tasks.video import VideoTask

TASKS: Mapping[str, Task] = MappingProxyType(
    {task.name: task for task in (TextTask(), LanguageTask(), SentimentTask(), SpeechTask(), VideoTask())}
)
"""Every task by its name."""
