"""What a user must say about steps, as text: ``float32[64]``, ``int64``, ``frame:uint8[32,32,3]``."""

from __future__ import annotations

import re

from pipeline.contract import DTYPES, StepInput
from pipeline.errors import ConfigError

_SPEC = re.compile(r"(?:(?P<name>[A-Za-z_]\w*):)?(?P<dtype>[a-z]+\d*)(?:\[(?P<shape>[\d,\s]*)\])?")


def parse_step(text: str, default_name: str = "steps") -> StepInput:
    """``[NAME:]DTYPE[D,D,...]`` of one step, without time and batch axis; no brackets is a scalar.

    Raises ConfigError with the flag that takes it.
    """
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"--steps {text!r}: expected [NAME:]DTYPE[SHAPE] of one step, as in float32[64] or int64")
    dtype = match["dtype"]
    if dtype not in DTYPES:
        raise ConfigError(f"--steps {text!r}: dtype {dtype!r} is none of {', '.join(DTYPES)}")
    shape = tuple(int(d) for d in (match["shape"] or "").split(",") if d.strip())
    if any(d < 1 for d in shape):
        raise ConfigError(f"--steps {text!r}: every dimension of a step must be at least 1")
    return StepInput(match["name"] or default_name, dtype, shape)
