"""The fixture of the loop's laboratory, and that of small networks.

The process that starts the workers reads tests/conftest.py, but not this file. So it does not import torch for seconds.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.trainer.lab import Lab


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For layers so small that torch's threads spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Iterator[Lab]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    handlers = [signal.getsignal(number) for number in numbers]
    precision = torch.get_float32_matmul_precision()
    yield Lab(tmp_path, monkeypatch)
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(False)
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)
