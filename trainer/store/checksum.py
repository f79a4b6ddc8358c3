"""CRC64NVME: the checksum that S3 keeps of a whole object, whether it came in one piece or in parts; and SHA-256.

The CRC finds accidents, on the way and in the store. A forger can give other bytes the same CRC, but not the same
SHA-256 (1.9 GB/s per core).

A CRC is written as 16 hex digits, as in `ae8b14860a799888` (of b"123456789"). S3's headers have the same number
as base64 of its 8 bytes, the highest first: `rosUhgp5mIg=`. Computing it copies nothing, reads about 25 GB/s per core,
and releases the interpreter lock.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from awscrt.checksums import combine_crc64nvme, crc64nvme

from trainer.values import SHA256, as_text, as_whole, check_known, show

CRC64 = r"[0-9a-f]{16}"
PART_BYTES = 32 << 20  # of an upload; S3 takes at most 10,000 parts, so objects of up to 335 GB


@dataclass(frozen=True)
class Checksums:
    """The checksums of a body in parts of `part_bytes`. The last part may be smaller; an empty body has no parts."""

    bytes: int
    part_bytes: int
    parts: tuple[str, ...]
    whole: str
    sha256: str = ""  # of the whole, in 64 hex digits; older versions did not compute it

    @classmethod
    def of(cls, view: memoryview, part_bytes: int = PART_BYTES) -> Checksums:
        """Compute them in one pass: the CRC of the whole follows from those of the parts."""
        view = view.cast("B")
        parts, whole, sha256 = [], 0, hashlib.sha256()
        for start in range(0, len(view), part_bytes):
            part = view[start : start + part_bytes]
            crc = crc64nvme(part)
            whole = combine_crc64nvme(whole, crc, len(part))
            parts.append(_digits(crc))
            sha256.update(part)
        return cls(len(view), part_bytes, tuple(parts), _digits(whole), sha256.hexdigest())

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Checksums:
        """The reverse of `to_json`. Other names are ignored. Raises ValueError for what that never gives."""
        size, each = (as_whole(name, check_known(found, name)) for name in ("bytes", "part_bytes"))
        parts = check_known(found, "parts")
        if not isinstance(parts, list | tuple) or not each or len(parts) != -(-size // each):
            raise ValueError(f"{size} bytes in parts of {each} have {show(parts)} as their checksums")
        digits = [as_text("a checksum", one, CRC64) for one in (*parts, check_known(found, "crc64nvme"))]
        sha256 = as_text("sha256", found.get("sha256", ""), f"|{SHA256}")
        return cls(size, each, tuple(digits[:-1]), digits[-1], sha256)

    def to_json(self) -> dict[str, Any]:
        sums = {"bytes": self.bytes, "crc64nvme": self.whole, "part_bytes": self.part_bytes, "parts": [*self.parts]}
        return sums | ({"sha256": self.sha256} if self.sha256 else {})

    def has_crcs_of(self, view: memoryview) -> bool:
        """Whether its CRCs are of these bytes. SHA-256, which takes ten times as long, is not computed."""
        parts, whole = [], 0
        for start in range(0, len(view), self.part_bytes):
            part = view[start : start + self.part_bytes]
            parts.append(crc := crc64nvme(part))
            whole = combine_crc64nvme(whole, crc, len(part))
        return (len(view), tuple(map(_digits, parts)), _digits(whole)) == (self.bytes, self.parts, self.whole)

    def is_same(self, other: Checksums) -> bool:
        """Whether both are of the same bytes. One of an older version has no SHA-256."""
        known = {self.sha256, other.sha256} - {""}
        return len(known) < 2 and replace(self, sha256="") == replace(other, sha256="")


def crc64(view: memoryview) -> str:
    """The checksum of some bytes, as 16 hex digits."""
    return _digits(crc64nvme(view))


def base64_of(digits: str) -> str:
    """The form that S3's headers use."""
    return base64.b64encode(bytes.fromhex(digits)).decode()


def _digits(crc: int) -> str:
    return f"{crc:016x}"
