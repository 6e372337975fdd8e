"""Record bytes to steps. ``base.py`` is the interface; ``make_codec`` turns a contract's codec into one."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.beside import NOTHING_BESIDE, Beside
from pipeline.codecs.audio import AudioCodec
from pipeline.codecs.base import AheadCodec, Codec, Steps
from pipeline.codecs.tensor import TensorCodec
from pipeline.codecs.text import TextCodec
from pipeline.codecs.tokens import TokenCodec
from pipeline.codecs.video import video_codec
from pipeline.contract import Contract
from pipeline.errors import ContractError

__all__ = ["CODECS", "AheadCodec", "Codec", "Steps", "make_codec"]


def _text(contract: Contract, beside: Beside) -> Codec:
    by_tokens = contract.codec.settings.get("unit") == "tokens"
    return TokenCodec(contract, beside) if by_tokens else TextCodec(contract, beside)


CODECS: dict[str, Callable[[Contract, Beside], Codec]] = {
    "tensor": TensorCodec,
    "text": _text,
    "audio": AudioCodec,
    "video": video_codec,
}


def make_codec(contract: Contract, beside: Beside = NOTHING_BESIDE) -> Codec:
    """Raises ContractError for an unknown kind, a wrong setting or file beside it, or a memory size that differs."""
    kind = CODECS.get(contract.codec.kind)
    if kind is None:
        raise ContractError(
            f"contract of {contract.label}: unknown codec {contract.codec.kind!r}; this Eddy has {', '.join(CODECS)}"
        )
    codec = kind(contract, beside)
    if codec.memory_bytes != contract.codec.memory_bytes:
        raise ContractError(
            f"contract of {contract.label}: codec {contract.codec.kind} keeps {codec.memory_bytes} bytes of a stream,"
            f" the contract says {contract.codec.memory_bytes}"
        )
    return codec
