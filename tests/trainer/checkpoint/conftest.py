"""A channel, for the tests of either end."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from trainer.process.channel import Channel


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    """The trainer's and the uploader's end."""
    ours, theirs = (Channel(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    yield ours, theirs
    ours.close()
    theirs.close()
