"""How many bytes codec and head keep of a stream: asked of them, and written into the contract."""

from __future__ import annotations

from dataclasses import replace

from pipeline.beside import NOTHING_BESIDE, Beside
from pipeline.codecs import CODECS
from pipeline.contract import Contract
from pipeline.errors import ContractError
from pipeline.heads import HEADS


def fit_memory(contract: Contract, beside: Beside = NOTHING_BESIDE) -> Contract:
    """The contract with ``memory_bytes`` of its codec and its head as they need it.

    Raises ContractError for an unknown kind, and whatever they say about their settings and files beside the model.
    """
    codec, head = CODECS.get(contract.codec.kind), HEADS.get(contract.head.kind)
    if codec is None:
        raise ContractError(f"unknown codec {contract.codec.kind!r}: this Eddy has {', '.join(CODECS)}")
    if head is None:
        raise ContractError(f"unknown head {contract.head.kind!r}: this Eddy has {', '.join(HEADS)}")
    return replace(
        contract,
        codec=replace(contract.codec, memory_bytes=codec(contract, beside).memory_bytes),
        head=replace(contract.head, memory_bytes=head(contract, beside).memory_bytes),
    )
