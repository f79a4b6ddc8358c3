"""Surroundings that are not as usual: outputs that are closed, full or of few letters, long paths, no hard links."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import ROOT
from tests.runs import Run
from trainer.contract import Exit, UserError
from trainer.process.channel import Channel, leave_exit, listen, read_json

SPEAK = """
import os, sys
from trainer.text import forgive_output
forgive_output()
print("x" * 100_000, "…✓", flush=True)
print("x" * 100_000, "…✓", file=sys.stderr, flush=True)
with open(sys.argv[1], "w") as file:
    file.write(str(file.fileno()))
"""


@pytest.mark.parametrize("output", ["closed", "/dev/full", "no reader"])
def test_an_output_that_takes_nothing_ends_no_process_and_gets_no_other_file(tmp_path: Path, output: str) -> None:
    with Path("/dev/full" if output == "/dev/full" else os.devnull).open("wb") as to:
        read, write = os.pipe()
        os.close(read)
        taken = write if output == "no reader" else to
        ended = subprocess.run(
            [sys.executable, "-c", SPEAK, str(tmp_path / "file")], cwd=ROOT, stdout=taken, stderr=taken,
            preexec_fn=(lambda: os.closerange(0, 3)) if output == "closed" else None, check=False,
            env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        )  # fmt: skip
        os.close(write)
    assert ended.returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


def test_help_is_printed_whatever_letters_the_terminal_knows() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "trainer.process.supervise", "digits", "--help"],
        cwd=ROOT, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "latin-1"}, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert b"--optim.peak-lr" in ended.stdout
    assert ended.stderr == b""


def test_a_run_whose_outputs_are_closed_ends_with_its_own_reason(new_run: Callable[..., Run], tmp_path: Path) -> None:
    run = new_run()
    ended = subprocess.run(
        [sys.executable, "-m", "trainer.process.supervise", "digits"], cwd=ROOT, check=False,
        env=run.environ | {"TRAINER_DATA": str(tmp_path / "nowhere")}, preexec_fn=lambda: os.closerange(0, 3),
    )  # fmt: skip
    assert ended.returncode == Exit.USER
    assert "nowhere" in run.json("failed.json")["message"]


def test_a_temporary_folder_with_a_long_path_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (deep := tmp_path / ("d" * 100)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    server, path = listen()
    with server:
        channel = Channel.connect(path)
        other = Channel(server.accept()[0])
        channel.send({"seq": 1})
        assert other.receive(timeout=5)[0] == {"seq": 1}
        channel.close()
        other.close()
    Path(path).unlink()
    Path(path).parent.rmdir()
    assert list(deep.iterdir()) == []


def test_where_no_socket_can_be_made_the_reason_and_the_fix_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(UserError, match=r"no socket can be made .*Read-only file system.*TMPDIR=/tmp"):
        listen()


def test_without_any_usual_temporary_folder_shared_memory_takes_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tempfile.mkdtemp

    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    def make(prefix: str, dir: str) -> str:
        if dir == "/tmp":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), dir)
        return made(prefix=prefix, dir=tmp_path if dir == "/dev/shm" else dir)

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setattr(tempfile, "mkdtemp", make)
    server, path = listen()
    server.close()
    assert Path(path).parent.parent == tmp_path


def test_without_hard_links_the_first_reason_to_end_still_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    leave_exit(tmp_path, 78, "the first")
    leave_exit(tmp_path, 1, "the second")
    assert (read_json(tmp_path / "exit.json") or {})["message"] == "the first"
    assert [path.name for path in tmp_path.iterdir()] == ["exit.json"]
    assert json.loads((tmp_path / "exit.json").read_text())["code"] == 78
