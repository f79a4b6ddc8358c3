"""Releases that tests share, since making one takes a while. Who changes a folder takes a copy."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.checkpoints import RUN
from tests.model_hub import WRITER, ModelHub
from tests.trainer.release.finished import SMALL, STEP, make_store, put_evaluation
from trainer.contract import Exit, run_key
from trainer.release.__main__ import main
from trainer.scoring.members import open_member
from trainer.store import ObjectStore


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ObjectStore:
    """Of a run of which the store knows all that it can."""
    store = make_store(tmp_path_factory.mktemp("store"))
    store.put(run_key(RUN, "spend.json"), json.dumps({"usd": 3.456, "machines": []}).encode())
    card = open_member(RUN, store).card
    model = {"step": STEP, "weights": "ema", "checkpoint_sha256": card.checkpoint_sha256}
    put_evaluation(store, "tiny-imagenet", model, {"val/top1": 0.81, "val/top5": 0.98, "val/ece": 0.045, "val/loss": 1})
    put_evaluation(store, "imagenet-c", model, {"imagenet-c/top1": 0.4, "imagenet-c/mce": 0.767})
    flips = {"val_tta/top1": 0.82, "val_tta/top5": 0.99}
    put_evaluation(store, "tiny-imagenet-flip", model, flips, views="flip")
    put_evaluation(store, "tiny-imagenet-resize-40", model | {"val_resize": 40, "val_crop": 32}, {"val/top1": 0.7})
    put_evaluation(store, "older", model | {"step": 4}, {"val/top1": 0.123})
    return store


@pytest.fixture(scope="session")
def folder(store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(store, tmp_path_factory.mktemp("releases") / "tiny", "--license", "apache-2.0")


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> ObjectStore:
    return make_store(tmp_path_factory.mktemp("small"), SMALL)


@pytest.fixture(scope="session")
def small_folder(small_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(small_store, tmp_path_factory.mktemp("releases") / "tiny")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    """A hub. Its client reads its environment once, so in this process its constants are changed."""
    hub = ModelHub()
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    yield hub
    hub.close()


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What was printed so far. The token never is."""
    texts: list[str] = []

    def read() -> str:
        texts.append("".join(capfd.readouterr()))
        return texts[-1]

    yield read
    assert WRITER not in "".join([*texts, read()])


@pytest.fixture
def copy(small_folder: Path, tmp_path: Path) -> Path:
    """A release that is there, to be changed."""
    return Path(shutil.copytree(small_folder, tmp_path / "tiny"))


def made(store: ObjectStore, folder: Path, *arguments: str) -> Path:
    assert main([RUN, "--store", store.uri, "--to", str(folder), "--forms", "torchvision", *arguments]) == Exit.FINISHED
    return folder
