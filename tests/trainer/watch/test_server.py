"""The server of the live page: what it answers, to whom, and how it goes on when a store or a port does not serve."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import PATIENCE, ROOT
from tests.trainer.watch.stored_runs import pulse_of, put_finished, put_json, put_running
from trainer.contract import Exit, UserError, run_key
from trainer.report import Report, build_report
from trainer.store import ObjectStore, StoreError, open_store
from trainer.watch import reader as reader_module
from trainer.watch.__main__ import listen_on, main
from trainer.watch.reader import RunReader
from trainer.watch.server import FIRST_PORT, PageServer


@contextmanager
def serving(reader: RunReader, port: int | None = 0) -> Iterator[PageServer]:
    with listen_on(reader, port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            reader.stop()


def ask(server: PageServer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=PATIENCE)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def live(server: PageServer) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(ask(server, "/live")[2])
    return told


@pytest.fixture
def folder(tmp_path: Path) -> ObjectStore:
    (tmp_path / "out").mkdir()
    return open_store(str(tmp_path / "out"))


def test_the_page_its_parts_the_figures_and_the_report_are_served_to_this_machine_only(store: ObjectStore) -> None:
    put_running(store, "digits", at=time.time())
    reader = RunReader(store, "digits")
    reader.look()
    reader.build()
    with serving(reader) as server:
        assert server.server_address[0] == "127.0.0.1"
        kinds = {"/": "html", "/watch.js": "javascript", "/watch.css": "css", "/live": "json", "/report": "html"}
        for path, kind in kinds.items():
            status, headers, body = ask(server, path)
            assert (status, kind in headers["Content-Type"], len(body) > 100) == (200, True, True), path
            policy = headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "script-src 'self';" in policy
            assert headers["Cache-Control"] == "no-store"
            assert ask(server, path, "HEAD")[2] == b""
        told = live(server)
        assert (told["word"], told["report"], told["wrong"]) == ("running", 1, [])
        assert ask(server, "/report")[2] == reader.report
        assert b"<main>" in reader.report
        assert ask(server, "/../../etc/passwd")[0] == 404
        assert ask(server, "/", "POST")[0] == 501


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200), ("localhost", 200), ("localhost:9000", 200), ("[::1]:1", 200),
        ("evil.example:{port}", 403), ("127.0.0.1.evil.example", 403), ("", 403), ("127.0.0.1@evil.example", 403),
        ("192.168.1.2:{port}", 403),
    ],
)  # fmt: skip
def test_a_request_under_another_name_is_refused(folder: ObjectStore, host: str, status: int) -> None:
    with serving(RunReader(folder, "digits")) as server:
        for path in ("/", "/live", "/report", "/watch.js"):
            found = ask(server, path, Host=host.format(port=server.server_port))
            assert found[0] == status
        if status == 403:
            assert found[2].decode() == f"this page is at {server.address}, and under no other name\n"


def test_a_port_in_use_is_said_and_the_next_one_taken_unless_it_was_asked_for(
    folder: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = RunReader(folder, "digits")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} cannot be used .*in use.*leave --port out"):
            listen_on(reader, port)
    for odd in (-1, 65536):
        with pytest.raises(UserError, match=f"--port {odd} is no port"):
            listen_on(reader, odd)
    capsys.readouterr()
    with listen_on(reader, None) as first, listen_on(reader, None) as second:
        assert FIRST_PORT <= first.server_port < second.server_port
        assert f"port {first.server_port} is taken, trying the next one" in capsys.readouterr().err


def test_two_watchers_see_the_same_run_go_on(folder: ObjectStore) -> None:
    put_running(folder, "digits", at=time.time())
    readers = [RunReader(folder, "digits") for _ in range(2)]
    with serving(readers[0]) as one, serving(readers[1]) as other:
        for step in (1300, 1400):
            put_json(folder, run_key("digits", "heartbeat.json"), pulse_of(time.time(), step=step))
            for reader in readers:
                reader.look()
            figures = [dict(live(server)["figures"]) for server in (one, one, other)]
            assert [found["step"].split()[0] for found in figures] == [f"{step:,}"] * 3


def test_a_page_may_wait_for_a_run_and_names_the_others_meanwhile(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    reader = RunReader(store, "digits")
    reader.look()
    told = reader.document(time.time())
    assert told["word"] == "reading"
    assert f"there is no store {tmp_path / 'out'} yet" in told["wrong"][0]
    put_finished(store, "other")
    reader.look()
    told = reader.document(time.time())
    assert (told["word"], told["state"], told["others"]) == ("missing", "there is no such run yet", ["other"])
    assert told["wrong"] == []
    put_running(store, "digits", at=time.time())
    reader.look()
    told = reader.document(time.time())
    assert (told["word"], told["others"]) == ("running", [])
    put_finished(store, "digits")
    reader.look()
    assert reader.document(time.time())["word"] == "finished"


def test_a_store_that_fails_is_told_while_what_was_read_stays(
    folder: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_running(folder, "digits", at=time.time())
    reader = RunReader(folder, "digits")
    reader.look()
    before = reader.document(time.time())
    get = folder.get

    def failing(key: str) -> bytes:
        raise StoreError("get out/x: Connection reset", "ECONNRESET")

    monkeypatch.setattr(folder, "get", failing)
    reader.look()
    told = reader.document(time.time() + 3600)  # and nobody takes the run for silent because of it
    assert told["wrong"][0].startswith(
        "the store cannot be read for 1 h 0 min, trying on: get out/x: Connection reset;"
    )
    assert (told["word"], told["figures"]) == (before["word"], before["figures"])
    reader.build()
    assert "the report could not be built: StoreError" in reader.document(time.time())["report_fault"]
    monkeypatch.setattr(folder, "get", get)
    reader.look()
    reader.build()
    told = reader.document(time.time())
    assert (told["wrong"], told["report_fault"], told["report"]) == ([], "", 1)


def test_the_store_is_read_little_and_not_at_all_while_nobody_looks(
    folder: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_running(folder, "digits", at=time.time())
    asked, built = list[str](), list[str]()
    get = folder.get

    def noted(key: str) -> bytes:
        asked.append(key)
        return get(key)

    def noted_report(store: ObjectStore, run_id: str) -> Report:
        built.append(run_id)
        return build_report(store, run_id)

    monkeypatch.setattr(folder, "get", noted)
    monkeypatch.setattr(reader_module, "build_report", noted_report)
    monkeypatch.setattr(reader_module, "UNWATCHED_SECONDS", 0.2)
    monkeypatch.setattr(reader_module, "REPORT_SECONDS", 0.05)
    reader = RunReader(folder, "digits", seconds=0.02)
    reader.start()
    deadline = time.monotonic() + PATIENCE
    while not reader.report_number and time.monotonic() < deadline:
        reader.document(time.time())
        time.sleep(0.02)
    while len([key for key in asked if key.endswith("heartbeat.json")]) < 5 and time.monotonic() < deadline:
        reader.document(time.time())
        time.sleep(0.02)
    assert built == ["digits"], "nothing that a report shows has changed"
    segments = [key for key in asked if "/metrics/" in key or "/manifest/" in key]
    assert len(segments) <= 2 * len(set(segments)), "what does not change is read once, or by two threads at once"
    time.sleep(0.5)
    before = len(asked)
    time.sleep(0.2)
    assert len(asked) == before, "nobody looks"
    reader.document(time.time())
    while len(asked) == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(asked) > before, "somebody looks again"
    reader.stop()


def test_ctrl_c_ends_the_command_at_once_though_a_browser_is_connected(folder: ObjectStore, tmp_path: Path) -> None:
    put_finished(folder, "digits")
    command = [sys.executable, "-m", "trainer.watch", "--store", folder.uri, "--run-id", "other", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(3)]
    assert f"shows run other of {folder.uri}; Ctrl-C ends it" in said[0]
    assert [line.strip() for line in said[1:]] == ["there is no such run yet", "the store has: digits"]
    port = int(said[0].split("/")[2].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE):
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as other:
            other.sendall(b"GET /live HTTP/1.0\r\nHost: localhost\r\n\r\n")
            assert other.recv(100).startswith(b"HTTP/1.0 200"), "it serves now"
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=PATIENCE)
        seconds = time.monotonic() - started
    assert (process.returncode, rest) == (0, "\nthe page has ended; the run goes on\n")
    assert seconds < 20


def test_a_wrong_name_or_store_is_refused_with_the_fix(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--store", str(tmp_path), "--run-id", "../x"]) == Exit.USER
    assert "is not a run id" in capsys.readouterr().err
    assert main(["--store", "http://x", "--run-id", "x"]) == Exit.USER
    assert "is not a store" in capsys.readouterr().err
