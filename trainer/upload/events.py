"""TensorBoard's copy of a segment of metrics: the same numbers as an event file.

An event file is a sequence of records. Each is an `Event`, a message of TensorBoard's protocol buffers, with its length
and two checksums. Three kinds of events are needed, so they are written here. The package that writes all kinds,
tensorboardX, takes ten times as long, needs a folder, and imports torch, which the uploader must not.
"""

from __future__ import annotations

import json
import math
import socket
import struct

from awscrt.checksums import crc32c


def event_file(segment: bytes, name: str) -> tuple[str, bytes]:
    """Name and content of the event file of a segment, whose JSON lines have "step", "time" and metrics.

    A resumed attempt purges the steps that the attempt before it did in vain. Raises ValueError, LookupError,
    TypeError or struct.error for what is no segment.
    """
    rows = [json.loads(line) for line in segment.splitlines()]
    written = rows[-1]["time"]
    version = _field(3, b"brain.Event:2")
    events = [_event(written, 0, version)]
    if rows[0].get("event") == "start" and rows[0]["step"] > 0:
        session_starts = _field(7, b"\x08\x01")  # TensorBoard drops what it has from this step on
        events += [_event(written, rows[0]["step"] + 1, what) for what in (version, session_starts)]
    for row in rows:
        for metric in row:
            if "/" in metric:
                value = _field(1, metric.encode()) + b"\x15" + _float32(row[metric])
                events.append(_event(row["time"], row["step"], _field(5, _field(1, value))))
    return f"events.out.tfevents.{int(written)}.{socket.gethostname()}.{name}", b"".join(events)


def _event(wall_time: float, step: int, what: bytes) -> bytes:
    """A record of one event: when, at which step, and what."""
    event = b"\x09" + struct.pack("<d", wall_time) + (b"\x10" + _varint(step) if step else b"") + what
    length = struct.pack("<Q", len(event))
    return length + _checksum(length) + event + _checksum(event)


def _float32(value: float) -> bytes:
    """Four bytes; infinite where the value is beyond their range, as tensorboardX writes it."""
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.inf if value > 0 else -math.inf)


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes, text or a message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
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
