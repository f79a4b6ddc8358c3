"""What a live page says after nobody looked, what it keeps in memory, and how it tells an error of its own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.watch.stored_runs import put_running
from tests.trainer.watch.test_server import ask, serving
from trainer.contract import metrics_key, run_key
from trainer.store import ObjectStore, open_store
from trainer.watch.kept import KeptStore
from trainer.watch.reader import RunReader


@pytest.fixture
def folder(tmp_path: Path) -> ObjectStore:
    (tmp_path / "out").mkdir()
    return open_store(str(tmp_path / "out"))


def test_a_page_that_nobody_saw_for_an_hour_does_not_take_the_run_for_silent(folder: ObjectStore) -> None:
    put_running(folder, "digits", at=(begin := time.time()))
    reader = RunReader(folder, "digits")
    reader.look()
    before = reader.document(begin)
    reader._beat = (reader._beat[0], time.monotonic() - 3600)  # the heartbeat that was read an hour ago
    told = reader.document(time.time() + 3600)
    assert (told["word"], told["figures"]) == ("running", before["figures"])
    assert told["wrong"] == ["what is shown was read 1 h 0 min ago, and is being read again"]
    put_running(folder, "digits", at=time.time())
    reader.look()
    told = reader.document(time.time())
    assert (told["word"], told["wrong"]) == ("running", [])


class NotedStore:
    """A store that notes which bodies were read."""

    def __init__(self, store: ObjectStore):
        self.store, self.read = store, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def get(self, key: str) -> bytes:
        self.read.append(key)
        return self.store.get(key)


def test_what_was_not_asked_for_the_longest_leaves_the_memory_and_so_does_what_is_gone(folder: ObjectStore) -> None:
    one, two, three = (metrics_key("digits", 1, f"{first:08d}-{first:08d}.jsonl") for first in range(3))
    noted = NotedStore(folder)
    kept = KeptStore(noted, kept_bytes=25)
    for key in (one, two, three):
        folder.put(key, b"0123456789")
    folder.put(big := metrics_key("digits", 1, "00000003-00000003.jsonl"), b"x" * 26)
    list(kept.list(run_key("digits", "")))
    for key in (one, two, one, big, three, one, two, big):
        kept.get(key)
    assert noted.read == [one, two, big, three, two, big]
    for key in (one, two):
        folder.retire(key)
    list(kept.list(run_key("digits", "metrics/")))
    assert {*kept._etags} == {three, big}
    assert (kept._bytes, *kept._bodies) == (0,)


def test_an_error_while_the_page_is_answered_is_told_to_the_browser_and_once_on_the_terminal(
    folder: ObjectStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(now: float) -> dict[str, Any]:
        raise KeyError("epoch")

    reader = RunReader(folder, "digits")
    monkeypatch.setattr(reader, "document", broken)
    with serving(reader) as server:
        for _ in range(2):
            status, headers, body = ask(server, "/live")
            assert (status, body) == (500, b"the page cannot be answered: KeyError: 'epoch'\n")
            assert headers["Cache-Control"] == "no-store"
        assert ask(server, "/")[0] == 200
        for error in (BrokenPipeError(), TimeoutError(), ValueError("odd")):
            try:
                raise error
            except (OSError, ValueError):
                server.handle_error(None, None)
    said = [line for line in capsys.readouterr().err.splitlines() if line]
    assert said == [f"error: the page cannot be answered: {one}" for one in ("KeyError: 'epoch'", "ValueError: odd")]
