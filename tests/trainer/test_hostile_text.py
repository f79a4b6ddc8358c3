"""What others wrote into a store, a file or a name reaches the terminal escaped and cut, from each command."""

from __future__ import annotations

import io
import os
import re
import runpy
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import RUN, commit, owning, state
from tests.images import image_folder
from trainer import checkpoints, prepare
from trainer.contract import Exit
from trainer.data.progress import Track
from trainer.report.summary import summarise, summary_text
from trainer.store import open_store
from trainer.telemetry.console import Console
from trainer.text import filter_tracebacks, say, tell

EVIL = "\x1b]52;c;cm0gLXJmIH4=\x07\x1b[2Jgood\x9b31m\u202edoog\u2066\u200f\r"
ESCAPED = r"\x1b]52;c;cm0gLXJmIH4=\x07\x1b[2Jgood\x9b31m\u202edoog\u2066\u200f\r"
STEERING = set("\x1b\x07\x9b\u202e\u2066\u200f\r")
MOST_LETTERS = 4_000


@pytest.fixture
def shown(capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What was written since the last call, on either stream, as it would reach a terminal."""

    def read() -> str:
        text = "".join(capfd.readouterr())
        assert not set(text) & STEERING
        assert max(map(len, text.split("\n"))) <= MOST_LETTERS
        return text

    return read


def test_each_way_to_speak_escapes_and_cuts(shown: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    for speak in (say, tell, lambda text: tell(text, sys.stderr), Console(1, 1, speaks=True).say):
        speak(f"{EVIL}\tand\nmore")
        assert shown() == f"{ESCAPED}\tand\nmore\n"
        speak(EVIL * 10_000)
        assert shown().startswith(ESCAPED)
    with Track(1, "images", EVIL):
        assert shown().startswith(ESCAPED)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    filter_tracebacks()
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    assert f"ValueError: {ESCAPED}" in shown()
    fail_in_a_thread(ValueError(EVIL))
    said = re.escape(ESCAPED)
    assert re.search(rf"^Exception in thread {said}:\n(.*\n)+ValueError: {said}\n$", shown())
    fail_in_a_thread(SystemExit(EVIL))
    assert shown() == ""


def fail_in_a_thread(error: BaseException) -> None:
    def fail() -> None:
        raise error

    thread = threading.Thread(target=fail, name=EVIL)
    thread.start()
    thread.join()


def test_the_uploader_escapes_what_its_threads_say_at_their_end(
    shown: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(_: int) -> None:
        fail_in_a_thread(ValueError(EVIL))
        raise SystemExit

    for place, name in ((sys, "stdout"), (sys, "stderr"), (sys, "excepthook"), (threading, "excepthook")):
        monkeypatch.setattr(place, name, getattr(place, name))  # as they were, afterwards
    monkeypatch.setattr(os, "nice", begin)  # the first thing that it does
    monkeypatch.delitem(sys.modules, "trainer.upload.uploader", raising=False)
    with pytest.raises(SystemExit):
        runpy.run_module("trainer.upload.uploader", run_name="__main__")
    assert f"ValueError: {ESCAPED}" in shown()


def test_what_is_invisible_or_no_letter_is_escaped(shown: Callable[[], str]) -> None:
    for speak in (say, tell):
        speak("a\ud800\udfff\u061c\u200b\u200d\u2060\ufeffb")
        assert shown() == "a\\ud800\\udfff\\u061c\\u200b\\u200d\\u2060\\ufeffb\n"


def test_a_bar_on_a_terminal_shows_no_escape_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with Track(1, "images", EVIL):
        Console(1, 1, speaks=True).say(EVIL)
    assert ESCAPED in terminal.getvalue()
    assert not set(terminal.getvalue()) & {"\x07", "\x9b", "\u202e"}
    assert "\x1b]" not in terminal.getvalue()


def test_the_commands_for_checkpoints_escape_what_a_manifest_says(
    shown: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").mkdir()
    store = open_store(str(tmp_path / "store"))
    details: dict[str, Any] = {"config": {"model": {"name": EVIL}, "optim": {"peak_lr": EVIL}}}
    with owning(store, 1, tmp_path) as ownership:
        for step in (1, 2):
            commit(
                ownership, step, state(step), counters={"best": {"top1": 0.5, "step": 1, "weights": "model"}}, **details
            )
    monkeypatch.setenv("TRAINER_STORE", store.uri)
    monkeypatch.setenv("TRAINER_RUN_ID", RUN)
    monkeypatch.setenv("TRAINER_SCRATCH_DIR", str(tmp_path / "scratch"))
    for path in (tmp_path / "store").rglob("manifest/*0002*.json"):
        path.write_text(f'{{"format": "{EVIL}"')
    export = ["export", str(tmp_path / EVIL), "--step", "1"]
    for words, names_it in ((["list"], 0), (["verify", "--every"], 0), (export, 1)):
        checkpoints.main(words)
        assert (ESCAPED in shown()) == names_it, words


def test_a_summary_escapes_what_the_files_of_a_run_say(shown: Callable[[], str]) -> None:
    row = {"step": 1, "time": 0.0, "attempt": 1}
    tell(summary_text(summarise("r", [row], {"recipe": EVIL}, {}, checkpoint=EVIL, metrics=EVIL, report=EVIL)))
    assert "recipe" in shown()


def test_a_preparation_escapes_the_names_of_files(
    shown: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = image_folder(tmp_path / EVIL)
    (next((folder / "train").iterdir()) / f"{EVIL}.jpg").write_bytes(b"no image")
    command = ["prepare", "--data", str(folder), "--store", str(tmp_path / "store"), "--max-broken-share", "0.9"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert prepare.main() == Exit.FINISHED
    assert ESCAPED in shown()
    monkeypatch.setattr(sys, "argv", [*command[:2], f"{tmp_path}/none/{EVIL}", *command[3:]])
    assert prepare.main() == Exit.USER
    assert ESCAPED in shown()
