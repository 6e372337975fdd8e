"""One thread for torch: on a busy machine its threads wait for each other longer than these small nets take."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("torch") is not None:
    import torch

    torch.set_num_threads(1)
