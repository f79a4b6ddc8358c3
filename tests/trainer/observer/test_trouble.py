"""What goes wrong around the observer costs a part of its work once: it goes on, in this process as in its own."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.trainer.observer.conftest import START, Attempt
from tests.uploads import wait_until
from trainer.contract import Exit, Phase
from trainer.observer import __main__ as observing
from trainer.observer.__main__ import Observer
from trainer.observer.live_report import LIVE_REPORT_SECONDS
from trainer.observer.sensors import Sensor
from trainer.store import StoreError
from trainer.store.directory import DirectoryStore
from trainer.telemetry.gpu import Gpus


@pytest.fixture
def observer(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> Iterator[Observer]:
    """In this process, connected, in an attempt that trains."""
    for name, value in attempt.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(observing, "SHORTEST_SPAN_SECONDS", 0.0)
    monkeypatch.setattr(observing, "SEGMENT_SECONDS", 0.0)
    monkeypatch.setattr(observing, "FACTS_SECONDS", 0.05)
    attempt.status(Phase.TRAINING, 9)
    made = Observer(attempt.env, os.getpid())
    made.link.open()
    wait_until(lambda: attempt.port.channel is not None)
    yield made
    made.link.close()
    for sensor in (made.reached, made.cost):
        if sensor is not None and (thread := sensor.thread) is not None:
            last, sensor.seconds = sensor.at, 3600.0  # no more questions to a store, which another test may count
            wait_until(partial(has_come_to_rest, sensor, thread, last))


def has_come_to_rest(sensor: Sensor, thread: threading.Thread, last: float) -> bool:
    return sensor.at != last or not thread.is_alive()


def refuse(*_: object, **__: object) -> Any:
    raise OSError(errno.EAGAIN, "Resource temporarily unavailable")


def refuse_thread(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_machine_without_room_for_a_process_a_thread_or_a_file_costs_a_part_of_the_work_and_is_said_once(
    attempt: Attempt, observer: Observer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as full:
        full.setattr(subprocess, "Popen", refuse)
        full.setattr(os, "memfd_create", refuse)
        full.setattr(threading.Thread, "start", refuse_thread)
        for _ in range(2):
            observer.has_news, observer.report.began = True, time.monotonic() - LIVE_REPORT_SECONDS
            observer.take_rows(json.dumps(START).encode())
            observer.look()
        assert attempt.samples() == []
    said = capfd.readouterr().err
    assert said.count("the observer has left out a part of its work (renew_report: ") == 1
    assert said.count("whether the run has a budget is not known for now: RuntimeError") == 1
    observer.look()
    attempt.port.drain(5)
    assert {row.get("kind", "sample") for row in attempt.samples()} == {"sample", "started"}, "nothing is lost"


def test_a_segment_without_rows_and_one_of_another_program_are_passed_over(
    attempt: Attempt, observer: Observer, capfd: pytest.CaptureFixture[str]
) -> None:
    attempt.tell_rows()
    attempt.tell_rows({"step": "many"})
    attempt.tell_rows(START)
    observer.hear()
    assert [alert["kind"] for alert in observer.telling.newest] == ["started"]
    assert capfd.readouterr().err == ""


def test_a_rule_that_fails_is_said_and_the_next_rows_are_heard(
    attempt: Attempt, observer: Observer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no median of no numbers")

    with monkeypatch.context() as broken:
        broken.setattr(observing, "judge_rows", fail)
        for _ in range(2):
            attempt.tell_rows({"step": 1, "time": 1.0})
            observer.hear()
    assert capfd.readouterr().err.count("(take_rows: ValueError('no median of no numbers'))") == 1
    attempt.tell_rows(START)
    observer.hear()
    assert [alert["kind"] for alert in observer.telling.newest] == ["started"]


def test_a_gpu_that_may_not_be_asked_is_said_also_where_nothing_has_listed_it(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Callable[[str], None]] = []
    monkeypatch.setattr(Gpus, "open", asked.append)  # says it where there is one; see test_gpu.py
    for name, value in attempt.environ.items():
        monkeypatch.setenv(name, value)
    Observer(attempt.env, os.getpid())
    wait_until(lambda: bool(asked))


def break_store(monkeypatch: pytest.MonkeyPatch, name: str, part: str) -> threading.Event:
    """Until the event is set, this method of a store fails for such a key."""
    real, is_mended = getattr(DirectoryStore, name), threading.Event()

    def call(self: DirectoryStore, key: str, *more: Any) -> Any:
        if part in key and not is_mended.is_set():
            raise StoreError("SlowDown", "SlowDown")
        return real(self, key, *more)

    monkeypatch.setattr(DirectoryStore, name, call)
    return is_mended


def test_a_store_that_fails_once_at_the_start_does_not_switch_the_dollars_off(
    attempt: Attempt, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    machine = {"launched": now - 3600, "usd_per_hour": 6.0}
    attempt.store.put("runs/job/spec.json", b'{"budget_usd": 10.0}')
    attempt.store.put("runs/job/spend.json", json.dumps({"at": now, "machines": [machine]}).encode())
    is_mended = break_store(monkeypatch, "get", "spec.json")
    observer.take_rows(json.dumps(START).encode())
    cost = observer.cost
    assert cost is not None
    wait_until(lambda: cost.fault is not None)
    is_mended.set()
    wait_until(lambda: "cost/usd" in cost.newest())
    observer.look()
    assert "50 % of the budget" in observer.telling.newest[-1]["text"]


def test_a_list_that_fails_once_is_no_word_about_dollars_and_is_asked_again(
    attempt: Attempt, observer: Observer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    attempt.store.put("runs/job/metrics/1/00000000-00000900.jsonl", b"")
    monkeypatch.setattr(observing, "REACHED_RETRY_SECONDS", 0.05)
    observer.attempt = 2
    is_mended = break_store(monkeypatch, "list", "metrics/")
    observer.take_rows(json.dumps(START | {"attempt": 2, "origin": 1, "step": 880}).encode())
    reached = observer.reached
    assert reached is not None
    wait_until(lambda: reached.fault is not None)
    observer.look()
    is_mended.set()
    wait_until(lambda: observer.facts is not None and observer.facts.reached is not None)
    observer.look()
    assert observer.telling.newest[-1]["text"].endswith("attempt 2; steps that are done again: 20")
    said = capfd.readouterr().err
    assert "cost" not in said
    assert "budget" not in said
    assert said.count("how many steps are done again is not known for now: StoreError('SlowDown')") == 1


@pytest.mark.parametrize(("before", "told"), [("4.9", ["50 %"]), ("5.1", []), ("", ["50 %"])])
def test_a_stage_of_the_budget_that_was_crossed_between_two_attempts_is_told_and_one_that_was_told_is_not(
    before: str, told: list[str], attempt: Attempt, observer: Observer
) -> None:
    now = time.time()
    machine = {"launched": now - 3600, "usd_per_hour": 6.0}
    attempt.store.put("runs/job/spec.json", b'{"budget_usd": 10.0}')
    attempt.store.put("runs/job/spend.json", json.dumps({"at": now, "machines": [machine]}).encode())
    attempt.store.put("runs/job/telemetry/2/000009.jsonl", b'{"step": 1, "time": 1, "cost/usd": 3.0}\n')
    if before:
        body = f'{{"step": 1, "time": 1, "cost/usd": {before}}}\n'.encode()
        attempt.store.put("runs/job/telemetry/2/000010.jsonl", body)
    attempt.store.put("runs/job/telemetry/3/000001.jsonl", b'{"step": 1, "time": 1, "event": "alert"}\n')
    observer.attempt = 4
    observer.take_rows(json.dumps(START | {"attempt": 4, "origin": 3}).encode())
    cost = observer.cost
    assert cost is not None
    wait_until(lambda: "cost/usd" in cost.newest())
    for _ in range(2):
        observer.look()
    assert [alert["text"][:4] for alert in observer.telling.newest if alert["kind"] == "budget"] == told


def test_an_interruption_is_told_however_many_steps_came_before_it(attempt: Attempt, observer: Observer) -> None:
    rows = [{"step": step, "time": 1000.0 + step, "train/loss": 1.0} for step in range(1, 5001)]
    observer.take_rows("\n".join(map(json.dumps, [START, *rows])).encode())
    observer.take_rows("\n".join(map(json.dumps, [row | {"step": row["step"] + 5000} for row in rows])).encode())
    observer.tell_end({"code": Exit.INTERRUPTED, "message": "step 10000 is saved", "reason": "spot notice"})
    assert observer.telling.newest[-1]["text"] == "spot notice: step 10000 is saved"
