"""The fixtures of what is recorded of GPUs: a driver's library that is not NVIDIA's, and two cards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.telemetry.nvml import StandInNvml, build_nvml
from trainer.telemetry import gpu
from trainer.telemetry.gpu import Gpus


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build_nvml(tmp_path_factory.mktemp("nvml"))
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def nvml(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandInNvml:
    monkeypatch.setattr(gpu, "DEVICE_FILES", tmp_path)
    return StandInNvml(library, tmp_path / "nvml.txt", monkeypatch)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def gpus(nvml: StandInNvml, said: list[str]) -> Iterator[Gpus]:
    """Two healthy cards."""
    opened = Gpus.open(said.append)
    assert opened is not None
    yield opened
    opened.close()
