"""Records of an event file, and the little of protocol buffers that they need.

A record is an `Event`, a message of TensorBoard's, with its length and two checksums. The package that writes all
kinds, tensorboardX, takes ten times as long, needs a folder, and imports torch, which the uploader must not.
"""

from __future__ import annotations

import math
import struct

from awscrt.checksums import crc32c


def file_name(written: float, name: str) -> str:
    """TensorBoard reads the files of a folder in the order of their names.

    The name has nothing of the machine: whoever makes a copy again replaces the first one.
    """
    return f"events.out.tfevents.{int(written)}.trainer.{name}"


def head(written: float, restart: int | None = None) -> bytes:
    """How each file begins. With `restart`, TensorBoard drops what it has of the folder from this step on."""
    version = field(3, b"brain.Event:2")
    records = [event_record(written, 0, version)]
    if restart is not None:
        session_starts = field(7, b"\x08\x01")
        records += [event_record(written, restart, what) for what in (version, session_starts)]
    return b"".join(records)


def value_record(wall_time: float, step: int, value: bytes) -> bytes:
    """The record of one `Summary.Value`."""
    return event_record(wall_time, step, field(5, field(1, value)))


def event_record(wall_time: float, step: int, what: bytes) -> bytes:
    """A record of one event: when, at which step, and what."""
    event = b"\x09" + struct.pack("<d", wall_time) + (b"\x10" + varint(step) if step else b"") + what
    length = struct.pack("<Q", len(event))
    return length + _checksum(length) + event + _checksum(event)


def float32(value: float) -> bytes:
    """Four bytes; infinite where the value is beyond their range, as tensorboardX writes it."""
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.inf if value > 0 else -math.inf)


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, text or a message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def whole_field(number: int, value: int) -> bytes:
    """A field of a number that is whole and not negative."""
    return varint(number << 3) + varint(value)


def double_field(number: int, value: float) -> bytes:
    return varint(number << 3 | 1) + struct.pack("<d", value)


def varint(number: int) -> bytes:
    """Seven bits in each byte, the lowest first; the eighth says that more follow."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _checksum(content: bytes) -> bytes:
    """CRC-32C, masked as the format of records wants it."""
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
