"""The address that a machine tells the others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.trainer.process.test_nodes import ENV
from trainer.process.nodes import ELSEWHERE, address_for_others, address_towards, as_node


def test_a_name_that_leads_to_the_loopback_here_gives_no_address_of_it() -> None:
    name = "2130706689"  # 127.0.1.1, as /etc/hosts of Debian says of a machine's own name
    assert address_towards(name).startswith("127.")
    env = as_node(replace(ENV, rendezvous=f"{name}:29500", address=""))
    assert env.address == address_towards(ELSEWHERE)
    assert not env.address.startswith("127.")


@pytest.mark.parametrize("leader", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_a_rendezvous_of_the_loopback_itself_keeps_its_address(leader: str) -> None:
    assert address_for_others(leader) == address_towards(leader)
    assert address_for_others(leader).startswith("127.")
