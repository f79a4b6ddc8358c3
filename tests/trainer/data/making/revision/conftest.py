"""What the tests of a source's content share: what was said, and which files were read."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from trainer.data.making.revision import hashes


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What was said on standard error since the last call."""
    return lambda: capfd.readouterr().err


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose content is read to know it. Clocks are exact here, so a file may be trusted at once."""
    found: list[str] = []
    hash_file = hashes.Reader._hash

    def spy(self: hashes.Reader, number: int, buffer: memoryview) -> bytes:
        found.append(os.fsdecode(self.paths[number]))
        return hash_file(self, number, buffer)

    monkeypatch.setattr(hashes.Reader, "_hash", spy)
    monkeypatch.setattr("trainer.data.making.revision.ledger.SETTLED_NS", 0)
    return found
