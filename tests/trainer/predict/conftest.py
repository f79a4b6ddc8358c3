from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images import encode, photo
from tests.trainer.predict.exported import Said, put_weights
from tests.trainer.predict.website import Web
from trainer.predict.__main__ import main


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    web = Web()
    yield web
    web.server.shutdown()
    web.thread.join()
    web.server.server_close()


@pytest.fixture(scope="package")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with exported weights and an empty store."""
    root = tmp_path_factory.mktemp("predict")
    (root / "store").mkdir()
    put_weights(root)
    return root


@pytest.fixture
def said(root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Said:
    """Runs the command: exit code, standard output, standard error."""
    monkeypatch.chdir(root)
    for name, value in (("STORE", "store"), ("SCRATCH_DIR", "scratch"), ("RUN_ID", "./made.safetensors")):
        monkeypatch.setenv(f"TRAINER_{name}", value)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(encode(photo(number)))
    return folder
