"""Stream keys between people and Kafka: text where it is text, hexadecimal on demand, and where a key lies."""

from __future__ import annotations

from aiokafka.partitioner import murmur2

from pipeline.errors import ConfigError


def parse_key(text: str, in_hex: bool) -> bytes:
    """Raises ConfigError for what is not hexadecimal, or empty."""
    try:
        key = bytes.fromhex(text) if in_hex else text.encode("utf-8", "surrogateescape")
    except ValueError:
        raise ConfigError(f"key {text!r} is not hexadecimal: give pairs of 0-9a-f, or leave --hex out") from None
    if not key:
        raise ConfigError("a key is empty: every stream has one of at least a byte")
    return key


def show_key(key: bytes | None) -> str:
    """For people and JSON; bytes that are no text are escaped."""
    return "(no key)" if key is None else key.decode("utf-8", "backslashreplace")


def partition_of(key: bytes, partitions: int) -> int:
    """Where Kafka's own partitioner puts it, and `eddy produce` with it (murmur2)."""
    return (int(murmur2(key)) & 0x7FFFFFFF) % partitions
