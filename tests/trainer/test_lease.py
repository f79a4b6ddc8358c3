"""The record of who owns a run: what is written is read back, and damage is noticed."""

from __future__ import annotations

import pytest

from tests.checkpoints import (
    RUN,
)
from trainer.contract import Lease, manifest_key


def test_what_is_written_of_a_lease_is_read_back_and_every_changed_bit_is_noticed() -> None:
    body = Lease(attempt=3, owner="a machine", newest=manifest_key(RUN, 5, 3), best="b").to_json()
    assert Lease.from_json(body) == Lease(attempt=3, owner="a machine", newest=manifest_key(RUN, 5, 3), best="b")
    for bit in range(8 * len(body)):
        damaged = bytearray(body)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(
            ValueError, match=r"checksum|JSON|decode|delimiter|Expecting|Invalid|Extra data|control|Unterm"
        ):
            Lease.from_json(bytes(damaged))
