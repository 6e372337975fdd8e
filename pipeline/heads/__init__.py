"""Model outputs to output records. ``base.py`` is the interface; ``make_head`` turns a contract's head into one."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.beside import NOTHING_BESIDE, Beside
from pipeline.contract import Contract
from pipeline.errors import ContractError
from pipeline.heads.base import NOTHING, Answered, Finished, Head
from pipeline.heads.classify import ClassifyHead
from pipeline.heads.generate import GenerateHead
from pipeline.heads.tensor import TensorHead
from pipeline.heads.transcribe import TranscribeHead

__all__ = ["HEADS", "NOTHING", "Answered", "Finished", "Head", "make_head"]

HEADS: dict[str, Callable[[Contract, Beside], Head]] = {
    "tensor": TensorHead,
    "classify": ClassifyHead,
    "generate": GenerateHead,
    "transcribe": TranscribeHead,
}


def make_head(contract: Contract, beside: Beside = NOTHING_BESIDE) -> Head:
    """Raises ContractError for an unknown kind, a wrong setting or file beside it, or a memory size that differs."""
    kind = HEADS.get(contract.head.kind)
    if kind is None:
        raise ContractError(
            f"contract of {contract.label}: unknown head {contract.head.kind!r}; this Eddy has {', '.join(HEADS)}"
        )
    head = kind(contract, beside)
    if head.memory_bytes != contract.head.memory_bytes:
        raise ContractError(
            f"contract of {contract.label}: head {contract.head.kind} keeps {head.memory_bytes} bytes of a stream,"
            f" the contract says {contract.head.memory_bytes}"
        )
    return head
