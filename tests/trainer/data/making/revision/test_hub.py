"""Data of a Hugging Face hub, which here is a server on 127.0.0.1: downloads, and refusals with their fix."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import PATIENCE, ROOT
from tests.hub import GRANTED, TOKEN, Hub
from tests.images import parquet_folder, rows, write_parquet

pytestmark = pytest.mark.slow


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    files = tmp_path / "hub"
    parquet_folder(files)
    write_parquet(files / "data" / "test-00000-of-00001.parquet", [{**row, "label": -1} for row in rows(2)], names=None)
    server = Hub(files)
    yield server
    server.close()


def prepare(
    data: str, tmp_path: Path, endpoint: str, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """`python -m trainer.prepare` in a process of its own: the hub's client reads its environment once, on import."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environ |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", **variables}
    command = [sys.executable, "-m", "trainer.prepare", "--data", data, "--store", str(tmp_path / "store"), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=PATIENCE)


def test_a_hub_id_is_downloaded_without_its_test_split_and_prepared(hub: Hub, tmp_path: Path) -> None:
    done = prepare("lab/photos", tmp_path, hub.endpoint)
    assert done.returncode == 0, done.stderr
    assert "photos: 12 train and 6 val images of 3 classes" in done.stderr
    assert not [path for path, _ in hub.requests if "test-0000" in path]
    asked = len(hub.requests)
    again = prepare("lab/photos", tmp_path, hub.endpoint)
    assert again.returncode == 0
    assert f"; commit {hub.commit[:12]} is the newest" in again.stderr
    assert "already prepared" in again.stderr
    assert [path for path, _ in hub.requests[asked:] if "lab" in path] == ["/api/datasets/lab/photos"]


@pytest.mark.parametrize(
    ("data", "token", "expected"),
    [
        ("lab/gated", "", "is gated and no token was found: accept the terms on .*HF_TOKEN=.*hf auth login"),
        ("lab/gated", TOKEN, "is gated and the hub refused this token: accept the terms on .*/datasets/lab/gated"),
        ("lab/nothing", "", "no folder of that name here, and no such dataset at .*check the spelling"),
    ],
)
def test_what_the_hub_refuses_is_told_with_the_fix(
    data: str, token: str, expected: str, hub: Hub, tmp_path: Path
) -> None:
    done = prepare(data, tmp_path, hub.endpoint, **({"HF_TOKEN": token} if token else {}))
    assert done.returncode == 78, done.stderr
    assert re.search(f"error: DATA={data}.*{expected}", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stdout + done.stderr


def test_the_token_of_the_secrets_folder_opens_gated_data_and_is_never_printed(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "hf_token").write_text(f"{GRANTED}\n")
    done = prepare("lab/gated", tmp_path, hub.endpoint, "--secrets-dir", str(tmp_path), HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert "gated: 12 train and 6 val images of 3 classes" in done.stderr
    assert GRANTED not in done.stdout + done.stderr


def test_a_hub_that_cannot_be_reached_is_told_with_the_fix(tmp_path: Path) -> None:
    done = prepare("lab/photos", tmp_path, "http://127.0.0.1:9")
    assert done.returncode == 78, done.stderr
    assert "the hub at http://127.0.0.1:9 cannot be reached: check the network" in done.stderr
    assert "Traceback" not in done.stderr
