"""Alerts reach a webhook, or are given up with a line: nobody waits, nothing fails, and the address is nowhere."""

from __future__ import annotations

import logging
import threading
import time
from http.server import BaseHTTPRequestHandler

import pytest

from tests.trainer.alerts.receiver import Receiver, answering, made, wait_for
from trainer.alerts import delivery as delivering
from trainer.alerts import webhook as webhooks
from trainer.alerts.__main__ import main
from trainer.alerts.delivery import Delivery
from trainer.contract import Exit


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivering, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(delivering, "LAST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(webhooks, "PACKET_SECONDS", 0.2)
    monkeypatch.setattr(delivering, "REQUEST_SECONDS", 0.4)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


class Opened:
    """A delivery to a receiver, and what it said."""

    def __init__(self, receiver: Receiver) -> None:
        self.said: list[str] = []
        found = Delivery.open({"TRAINER_WEBHOOK": receiver.url}, self.said.append)
        assert found
        self.delivery = found

    def tell(self, *texts: str) -> None:
        for text in texts:
            self.delivery.send(made(text=text))

    def close(self, seconds: float = 5.0) -> list[str]:
        self.delivery.close(seconds)
        assert "XYZZY" not in "".join(self.said)
        return self.said


def test_alerts_arrive_in_their_order_and_the_end_waits_for_them(receiver: Receiver) -> None:
    opened = Opened(receiver)
    opened.tell("one", "two", "three")
    assert opened.close() == []
    assert receiver.texts() == ["one", "two", "three"]


def test_a_server_that_is_busy_or_fails_is_asked_again(receiver: Receiver) -> None:
    receiver.answers = [answering(429, Retry_After="0.3"), answering(500), answering(503), answering(204)]
    opened, began = Opened(receiver), time.monotonic()
    opened.tell("one")
    wait_for(lambda: len(receiver.got) == 4)
    assert time.monotonic() - began >= 0.3
    assert opened.close() == []
    assert receiver.texts() == ["one"] * 4


def drips(handler: BaseHTTPRequestHandler) -> None:
    """An answer whose head never ends, though a byte comes often."""
    for _ in range(200):
        handler.wfile.write(b"X")
        time.sleep(0.05)


def hangs(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(3)


def nonsense(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\x00\xff XYZZY no HTTP\r\n\r\n")


def endless(handler: BaseHTTPRequestHandler) -> None:
    """Taken, with a body of a gigabyte that nobody should read."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(1 << 30))
    handler.end_headers()
    handler.wfile.write(b"XYZZY" * 1000)
    time.sleep(1)


def test_a_body_that_never_ends_is_not_read(receiver: Receiver) -> None:
    receiver.answers = [endless]
    opened = Opened(receiver)
    opened.tell("one", "two")
    assert opened.close() == []
    assert receiver.texts() == ["one", "two"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (answering(500), "it answered 500"),
        (hangs, "it did not answer within 0 s"),
        (drips, "it has not yet answered an earlier message"),
        (nonsense, "it cannot be reached (BadStatusLine)"),
    ],
)
def test_a_server_that_goes_on_failing_is_given_up_with_one_line(receiver: Receiver, answer, why: str) -> None:
    receiver.answers = [answer]
    opened, began = Opened(receiver), time.monotonic()
    opened.tell("one", "two")
    assert time.monotonic() - began < 0.1  # whoever tells does not wait
    wait_for(lambda: opened.said)
    assert opened.close(0.1)[0] == f"the webhook did not take an alert (best): {why}; the run goes on"
    assert not [line for line in opened.said[1:] if "did not take" in line]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (answering(404), "it answered 404: it was removed, or its address is mistyped"),
        (answering(400), "it answered 400: TRAINER_WEBHOOK_FORM may name another form"),
        (answering(429, Retry_After="3600"), "it answered 429, and asks to wait 3,600 s"),
    ],
)
def test_what_another_try_would_not_change_is_not_tried_again(receiver: Receiver, answer, why: str) -> None:
    receiver.answers = [answer]
    opened = Opened(receiver)
    opened.tell("one")
    assert opened.close() == [f"the webhook did not take an alert (best): {why}; the run goes on"]
    assert len(receiver.got) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(receiver: Receiver, status: int) -> None:
    receiver.answers = [answering(status, Location=f"{receiver.url}/elsewhere")]
    opened = Opened(receiver)
    opened.tell("one")
    [line] = opened.close()
    assert f"it answered {status}, a redirect, which is not followed" in line
    assert len(receiver.got) == 1


def test_the_next_message_says_how_many_were_lost(receiver: Receiver) -> None:
    receiver.answers = [answering(404), answering(204)]
    opened = Opened(receiver)
    opened.tell("one", "two", "three")
    opened.close()
    assert [(body["text"], body["not_sent_before"]) for body in receiver.got] == [("one", 0), ("two", 1), ("three", 0)]


def test_a_flood_becomes_few_messages_and_takes_no_memory(receiver: Receiver) -> None:
    receiver.answers = [hangs]
    opened = Opened(receiver)
    for number in range(10_000):
        opened.delivery.send(made("failed", f"{number}"))
    assert len(opened.delivery.waiting) == 64
    assert "64 alerts" in opened.close(0.1)[-1]


def test_the_end_takes_no_longer_than_it_may(receiver: Receiver) -> None:
    receiver.answers = [answering(429, Retry_After="50")]
    opened, began = Opened(receiver), time.monotonic()
    opened.tell("one", "two")
    opened.close(0.3)
    assert time.monotonic() - began < 1.5
    assert "429" in opened.said[0]


def hangs_for_ever(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(10)


@pytest.mark.parametrize("kind", ["finished", "failed"])
def test_the_end_of_a_run_is_told_also_behind_a_message_that_the_server_never_answers(
    receiver: Receiver, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivering, "REQUEST_SECONDS", 15.0)
    monkeypatch.setattr(webhooks, "PACKET_SECONDS", 10.0)
    receiver.answers = [hangs_for_ever, answering(204)]
    opened = Opened(receiver)
    opened.tell("one")
    wait_for(lambda: receiver.got)
    opened.tell("two", "three")
    opened.delivery.send(made(kind, "the end"))
    began = time.monotonic()
    said = opened.close(1.5)
    assert time.monotonic() - began < 2.5
    assert said == []
    assert receiver.texts() == ["one", "the end", "one", "two", "three"], "then what waits, as far as the time goes"


def test_a_server_that_is_slow_but_answers_gets_all_in_their_order(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "PACKET_SECONDS", 5.0)
    monkeypatch.setattr(delivering, "REQUEST_SECONDS", 5.0)

    def slow(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.2)
        answering(204)(handler)

    receiver.answers = [slow]
    opened = Opened(receiver)
    opened.tell("one", "two")
    opened.delivery.send(made("finished", "the end"))
    assert opened.close(9.0) == []
    assert receiver.texts() == ["one", "two", "the end"]


def test_a_machine_without_a_thread_left_sends_the_alert_later(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    opened = Opened(receiver)
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        opened.tell("one")
    opened.tell("two")
    assert opened.close() == []
    assert receiver.texts() == ["one", "two"]


def test_nobody_at_the_address_is_a_line_without_it(receiver: Receiver) -> None:
    receiver.server.shutdown()
    receiver.server.server_close()
    opened = Opened(receiver)
    opened.tell("one")
    wait_for(lambda: opened.said)
    assert opened.close() == [
        "the webhook did not take an alert (best): it cannot be reached (Connection refused); the run goes on"
    ]


def test_no_proxy_sees_an_address_without_tls(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")
    opened = Opened(receiver)
    opened.tell("one")
    assert opened.close() == []
    assert receiver.texts() == ["one"]


def test_a_wrong_address_is_a_line_and_the_run_goes_on() -> None:
    said: list[str] = []
    assert Delivery.open({"TRAINER_WEBHOOK": "http://example.org/XYZZY"}, said.append) is None
    assert "without TLS" in said[0]
    assert "XYZZY" not in said[0]
    assert Delivery.open({}, said.append) is None
    assert len(said) == 1


def test_the_command_sends_one_alert_and_tells_what_came_of_it(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.delenv("TRAINER_SECRETS_DIR", raising=False)
    monkeypatch.setenv("TRAINER_WEBHOOK", receiver.url)
    assert main() == Exit.FINISHED
    assert receiver.texts() == ["this is a test: alerts of your runs arrive here"]
    assert "the webhook took a test alert, in JSON" in capfd.readouterr().out
    receiver.answers = [answering(404)]
    assert main() == 1
    assert "error: the webhook did not take the alert: it answered 404" in capfd.readouterr().err
    monkeypatch.setenv("TRAINER_WEBHOOK", "http://example.org/XYZZY")
    assert main() == Exit.USER
    monkeypatch.setenv("TRAINER_WEBHOOK", "")
    assert main() == Exit.USER
    told = capfd.readouterr()
    assert "no webhook is set: export TRAINER_WEBHOOK=https://…" in told.err
    assert "XYZZY" not in told.out + told.err + caplog.text
