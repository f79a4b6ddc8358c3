"""The live page in a real browser: it changes in place, loads nothing from elsewhere, and takes no text for HTML."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Tab, opened
from tests.trainer.watch.stored_runs import (
    CONFIG,
    pulse_of,
    put_checkpoint,
    put_finished,
    put_json,
    put_running,
    put_segment,
    rows_of,
)
from tests.trainer.watch.test_server import serving
from trainer.contract import run_key
from trainer.store import ObjectStore, open_store
from trainer.watch import reader as reader_module
from trainer.watch.reader import RunReader

pytestmark = [pytest.mark.browser, pytest.mark.slow]

HOSTILE = "<img src=x onerror='window.stolen=1'></script><script>window.stolen=1</script>"


@pytest.fixture(scope="module")
def tab(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with opened(chromium, tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setattr(reader_module, "REPORT_SECONDS", 0.1)
    (tmp_path / "out").mkdir()
    return open_store(str(tmp_path / "out"))


def put_hostile(store: ObjectStore) -> None:
    """A running run with HTML wherever a text may be."""
    put_running(store, "digits", at=time.time())
    config = CONFIG | {"recipe": HOSTILE, HOSTILE: HOSTILE}
    put_json(store, run_key("digits", "config.json"), config)
    put_json(store, run_key("digits", "spec.json"), {"recipe": HOSTILE})
    alert = {"id": "1-1", "time": time.time(), "step": 1, "kind": HOSTILE, "level": "error", "text": HOSTILE}
    observed = {"sample": {"gpu/utilization": 0.87}, "alerts": [alert]}
    pulse = pulse_of(time.time(), phase=HOSTILE, owner=HOSTILE, observed=observed)
    put_json(store, run_key("digits", "heartbeat.json"), pulse)


def test_hostile_texts_are_shown_and_do_nothing(tab: Tab, folder: ObjectStore) -> None:
    put_hostile(folder)
    reader = RunReader(folder, "digits", seconds=0.1)
    reader.start()
    begin = len(tab.requests())
    with serving(reader) as server:
        tab.open(server.address)
        tab.until("document.querySelector('#report main h1') && document.querySelector('#wrong li')")
        assert HOSTILE in tab.value("document.getElementById('wrong').textContent")
        assert HOSTILE in tab.value("document.getElementById('state').textContent")
        assert HOSTILE in tab.value("document.getElementById('report').textContent")
        assert tab.value("document.querySelectorAll('#live img, #report img, #report script').length") == 0
        assert tab.value("window.stolen") is None
        assert tab.value("document.title") == "24 % · digits · running"
        for width in (390, 1280):
            tab.resize(width)
            assert tab.value("document.getElementById('live').scrollWidth <= innerWidth"), width
            assert tab.value("document.querySelectorAll('#figures > div').length") >= 8
        assert all(address.startswith((server.address, "data:")) for address in tab.requests()[begin:])
        assert tab.errors() == []


def test_the_page_changes_in_place_and_keeps_the_place_of_the_reader(tab: Tab, folder: ObjectStore) -> None:
    put_running(folder, "digits", at=time.time())
    reader = RunReader(folder, "digits", seconds=0.1)
    reader.start()
    with serving(reader) as server:
        tab.open(server.address)
        tab.until("document.querySelector('#report details') && document.querySelector('#report svg')")
        tab.value("window.mark = 1; for (const one of document.querySelectorAll('#report details')) one.open = true; 0")
        tab.value("scrollTo(0, 500); getSelection().selectAllChildren(document.querySelector('#report h1')); 0")
        place, drawn = tab.value("scrollY"), tab.value("document.querySelector('#report svg').outerHTML")
        assert place == 500
        put_segment(folder, "digits", [row | {"train/loss": 0.5} for row in rows_of(1231, 1500, at=time.time())])
        put_checkpoint(folder, "digits", step=1500, at=time.time())
        put_json(folder, run_key("digits", "heartbeat.json"), pulse_of(time.time(), step=1500))
        tab.until("document.getElementById('figures').textContent.includes('1,500 of 5,000')")
        tab.until(f"document.querySelector('#report svg').outerHTML !== {json.dumps(drawn)}")
        assert (tab.value("window.mark"), tab.value("scrollY")) == (1, place)
        assert tab.value("[...document.querySelectorAll('#report details')].every((one) => one.open)")
        assert tab.value("getSelection().toString()") == "digits"
        put_finished(folder, "digits")
        tab.until("document.getElementById('word').textContent === 'finished'")
        tab.until("!document.querySelector('#report').textContent.includes('not finished')")
        assert tab.value("window.mark") == 1
        assert tab.errors() == []


def test_the_page_waits_for_a_run_and_for_its_own_server(tab: Tab, folder: ObjectStore) -> None:
    put_finished(folder, "other")
    reader = RunReader(folder, "digits", seconds=0.1)
    reader.start()
    with serving(reader) as server:
        tab.open(server.address)
        tab.until("document.getElementById('word').textContent === 'missing'")
        assert "The store has: other." in tab.value("document.getElementById('others').textContent")
        put_running(folder, "digits", at=time.time())
        tab.until("document.getElementById('word').textContent === 'running'")
        assert tab.value("document.getElementById('others').hidden")
        port = server.server_port
    tab.until("document.getElementById('wrong').textContent.includes('`make watch` has ended')")
    again = RunReader(folder, "digits", seconds=0.1)
    again.start()
    with serving(again, port):
        tab.until("!document.getElementById('wrong').textContent.includes('has ended')")


def test_another_run_on_the_same_port_has_its_own_report_and_the_same_run_keeps_its_place(
    tab: Tab, folder: ObjectStore
) -> None:
    put_running(folder, "digits", at=time.time())
    reader = RunReader(folder, "digits", seconds=0.1)
    reader.start()
    with serving(reader) as server:
        port = server.server_port
        tab.open(server.address)
        tab.until("document.querySelector('#report main h1')")
        tab.value("document.querySelector('#report main').mark = 1; 0")
    with serving(again := RunReader(folder, "digits", seconds=0.1), port):
        again.start()
        tab.until("document.getElementById('word').textContent === 'running' && !document.querySelector('.cut')")
        assert tab.value("document.querySelector('#report main').mark") == 1
    with serving(other := RunReader(folder, "other", seconds=0.1), port):
        other.start()
        tab.until("document.getElementById('run').textContent === 'other'")
        assert tab.value("document.getElementById('report').textContent") == ""
        put_finished(folder, "other")
        tab.until("document.querySelector('#report h1')?.textContent.includes('other')")


def test_an_error_of_the_server_is_shown_as_what_it_is(
    tab: Tab, folder: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(now: float) -> dict[str, Any]:
        raise KeyError("epoch")

    reader = RunReader(folder, "digits")
    monkeypatch.setattr(reader, "document", broken)
    with serving(reader) as server:
        tab.open(server.address)
        tab.until("document.querySelector('#wrong li')")
        said = tab.value("document.getElementById('wrong').textContent")
    assert "cannot be answered: KeyError: 'epoch'" in said
    assert "has ended" not in said
