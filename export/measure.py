"""How far two results are apart, and how far they may be.

Floats: a tolerance times the largest number met (at least one). Whole numbers: not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = tuple[Array, ...]
TOLERANCE = 1e-4
HALF_TOLERANCE = 5e-3
"""Where anything is float16: its own steps are 1e-3 wide, and a recurrence adds them up."""


def tolerance_of(dtypes: Sequence[str], asked: float | None = None) -> float:
    """Relative tolerance for a model with these dtypes."""
    if asked is not None:
        return asked
    return HALF_TOLERANCE if "float16" in dtypes else TOLERANCE


def measure(a: Array, b: Array, tolerance: float) -> tuple[float, float]:
    """Largest absolute difference, and its ratio to what is allowed: inf where shapes, NaNs or whole numbers differ."""
    if a.shape != b.shape:
        return float("inf"), float("inf")
    if not a.size or np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
        return 0.0, 0.0
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y))
    largest = float(np.nan_to_num(gap, nan=np.inf).max())
    if a.dtype.kind != "f":
        return largest, float("inf")
    finite = np.abs(y[np.isfinite(y)])
    return largest, largest / (tolerance * max(1.0, float(finite.max()) if finite.size else 1.0))


def same(a: Tensor, b: Tensor, dtypes: Sequence[str]) -> bool:
    """Whether torch agrees with itself in a model of these dtypes, its own rounding aside."""
    x, y = a.detach().cpu().numpy(), b.detach().cpu().numpy()
    return measure(x, y, tolerance_of([*dtypes, str(x.dtype)]))[1] <= 1
