"""`status` of what a machine tells of itself: one screen of any size, rows in a file, and fields for programs."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from infra.operate.commands import status
from infra.operate.progress import Recent
from infra.operate.screen import screen
from infra.operate.session import AwsError
from infra.operate.state import RunState
from infra.operate.terminal import plain, show_screen
from tests.infra.deployed import RUN, Deployed
from tests.infra.operate.states import GPU_TEXT, NOW, SAMPLE, alert, heartbeat, metrics, running, samples
from tests.infra.operator import operate
from trainer.contract import metrics_key, run_key

BUCKET = "resnet-spot-storage-bucket1234abcd-xyz1234"
COMMAND = f"make watch STORE=s3://{BUCKET} RUN={RUN}"
HOT = "the GPU slows down because it is hot: 87 °C"
BLOCKS = set("▁▂▃▄▅▆▇█")


@pytest.fixture
def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    def make(columns: int, lines: int) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.delenv("NO_COLOR", raising=False)
        for name, value in (("TERM", "xterm"), ("COLUMNS", str(columns)), ("LINES", str(lines))):
            monkeypatch.setenv(name, value)

    return make


def drawn(state: RunState, trouble: str = "") -> list[str]:
    return [line.plain for line in screen(state, BUCKET, trouble)]


def jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (120, 40), (60, 24), (40, 12), (30, 8)])
def test_one_screen_fits_and_says_first_what_is_wrong(
    terminal_of: Callable[[int, int], None], columns: int, lines: int
) -> None:
    terminal_of(columns, lines)
    found = drawn(running(alert("throttled", HOT, 60), wait=0.23))
    *body, command = found if lines > 10 else [*found, ""]
    assert len(body) + -(-len(command) // columns) < lines
    assert max(map(len, body)) <= columns
    assert command == (f"next: {COMMAND}" if lines > 10 else "")
    assert body[0].startswith("run rn50-")
    assert body[1].startswith("  wrong          ")
    assert body[1][17:].split()[0] in HOT


def test_a_usual_terminal_shows_curves_gpu_and_the_rest(terminal_of: Callable[[int, int], None]) -> None:
    terminal_of(80, 24)
    found = {line[2:17].strip(): line[17:] for line in drawn(running())}
    assert found["state"] == "training, heard 0 s ago"
    assert found["step"] == "350 of 1,000 (35.0 %)"
    assert found["cost"].startswith("$0.80 spent")
    assert found["data wait"] == "2 % of the last minute"
    assert found["GPU"].endswith(GPU_TEXT)
    assert found["loss"].endswith("2.137, 2.834 2 min before")
    assert found["machine"].startswith("i-0123456789abcdef0, g6.xlarge")
    assert "wrong" not in found
    curves = {name: found[name][:20] for name in ("loss", "speed", "GPU")}
    assert all(set(one.rstrip()) <= BLOCKS for one in curves.values())
    assert curves["loss"][0] == "█"
    assert curves["loss"][-1] == "▁"
    assert [curves["loss"], curves["speed"]] != [20 * curves["loss"][0]] * 2


def test_a_wide_terminal_has_longer_curves_and_a_narrow_one_none(terminal_of: Callable[[int, int], None]) -> None:
    lengths = []
    for columns in (60, 80, 100, 200):
        terminal_of(columns, 50)
        lengths.append(sum(letter in BLOCKS for line in drawn(running()) if "images/s" in line for letter in line))
    assert lengths == [0, 20, 40, 60]


def test_a_terminal_without_unicode_or_colours_gets_neither(
    terminal_of: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal_of(80, 24)
    monkeypatch.setenv("NO_COLOR", "1")
    show_screen(screen(running(alert("throttled", HOT, 60)), BUCKET))
    assert "\x1b[3" not in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "_encoding", "latin-1", raising=False)
    monkeypatch.setattr(type(sys.stdout), "encoding", property(lambda self: "latin-1"), raising=False)
    (loss,) = [line for line in drawn(running()) if line.startswith("  loss")]
    assert loss[17] == "#"
    assert loss.isascii()


def test_in_a_file_everything_is_there_as_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show_screen(screen(running(alert("throttled", HOT, 60), wait=0.23), BUCKET))
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert not set(text) & BLOCKS
    for line in (
        f"  wrong          {HOT} (60 s ago)\n",
        "  wrong          data wait 23 % over the last minute: the loader is the limit; more --data.workers, or a type "
        "with more vCPU\n",
        f"  GPU            {GPU_TEXT}\n",
        f"  next: {COMMAND}\n",
    ):
        assert line in text


def test_alerts_are_shown_for_a_quarter_of_an_hour_errors_first() -> None:
    told = [
        alert("throttled", HOT, 60), alert("gpu-lost", "the GPU fell off the bus", 800, "error"),
        alert("disk-full", "old", 901), alert("best", "a new best: 63 %", 30, "info"),
        alert("starved", "data wait 23 %", 10),
    ]  # fmt: skip
    found = [(line[2:17].strip(), line[17:]) for line in drawn(running(*told, wait=0.23))[1:]]
    assert found[:3] == [
        ("wrong", "the GPU fell off the bus (13 min ago)"), ("wrong", "data wait 23 % (10 s ago)"),
        ("wrong", f"{HOT} (60 s ago)"),
    ]  # fmt: skip
    assert found[3][0] == "state"
    assert ("told", "a new best: 63 % (30 s ago)") in found


def test_silence_and_a_late_checkpoint_are_wrong() -> None:
    found = [line for line in drawn(running(now=NOW + 400)) if line.startswith("  wrong")]
    assert found == [
        "  wrong          nothing was heard of the machine for 6 min",
        "  wrong          the newest checkpoint is 7 min old: one is due each minute",
    ]


def test_without_a_machine_the_last_values_are_shown_with_their_age() -> None:
    state = replace(running(now=NOW + 3 * 3600), machines=(), group=None)
    found = {line[2:17].strip(): line[17:] for line in drawn(state)}
    assert found["state"] == "stopped: its group is at 0"
    assert found["step"] == "350 of 1,000 (35.0 %)"
    assert found["speed"] == "250 images/s, 3 h 00 min ago"
    assert found["data wait"] == "2 % of the last minute, 3 h 00 min ago"
    assert found["GPU"] == f"{GPU_TEXT}, 3 h 00 min ago"
    assert found["loss"].endswith(", 3 h 00 min ago")
    assert "wrong" not in found


def test_figures_of_an_observer_that_died_have_their_age_while_the_run_goes_on() -> None:
    state = running()
    old = [sample | {"time": sample["time"] - 600} for sample in samples()]
    state = replace(state, progress=replace(state.progress, recent=Recent.of(metrics(), old)))
    found = {line[2:17].strip(): line[17:] for line in drawn(state)}
    assert found["GPU"].endswith("10 min ago")
    assert found["speed"] == "250 images/s"


def test_what_a_machine_tells_is_read_from_the_bucket(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    deployed.launch()
    deployed.train_to(150)
    now = time.time()
    evil = "hot \x1b[2J\ngpu"
    told = {**alert("throttled", evil, 0), "time": now - 60}
    deployed.put(run_key(RUN, "heartbeat.json"), heartbeat(told, {"id": 7}, step=150))
    rows = [row | {"step": 150 + i, "time": now - 10 + i} for i, row in enumerate(metrics(10, wait=0.3))]
    deployed.put(metrics_key(RUN, 1, "00000150-00000159.jsonl"), jsonl(rows) + b'{"step": 160, "tra')
    for number in range(3):
        body = jsonl([sample | {"time": now} for sample in samples(30)])
        deployed.put(run_key(RUN, f"telemetry/1/{number:06d}.jsonl"), body)
    capsys.readouterr()
    operate("status")
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert re.search(r"wrong          hot \\x1b\[2J gpu \([0-9]+ s ago\)", text)
    assert "data wait 30 % over the last minute: the loader is the limit" in text
    assert f"GPU            {GPU_TEXT}\n" in text
    assert "00000150-00000159.jsonl, which no machine of ours writes" in text
    assert "heartbeat.json, of which no machine of ours writes this: id is 7" in text
    assert f"make watch STORE=s3://{deployed.bucket} RUN={RUN}" in text
    operate("status", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["gpu"] == {name.removeprefix("gpu/"): value for name, value in SAMPLE.items()} | {
        "age_seconds": pytest.approx(0, abs=60)
    }
    assert found["data_wait"] == pytest.approx(0.3)
    assert found["train_loss"] == pytest.approx(2.137, abs=0.001)
    assert [one["kind"] for one in found["alerts"]] == ["throttled"]
    assert [problem.split()[0] for problem in found["problems"]] == ["hot", "data"]


class StoppedWatchingError(Exception):
    """The user has seen enough."""


def test_a_watch_keeps_the_last_state_while_aws_does_not_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    silence = AwsError("no answer")
    answers: list[RunState | Exception] = [silence, running(), silence, StoppedWatchingError()]

    def read() -> RunState:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(status, "WATCH_SECONDS", 0)
    with pytest.raises(StoppedWatchingError):
        status.watch(read, BUCKET)
    text = capsys.readouterr().out
    assert text.startswith("no answer; trying again\n")
    assert text.count("350 of 1,000") == 2
    assert "  wrong          no answer; trying again\n  state          training" in text


def test_a_screen_shows_no_code_of_others() -> None:
    state = running(alert("\x1b[2J", "\x1b]0;owned\x07" * 50, 5, "error"))
    assert not set(plain(*screen(state, BUCKET))) & set("\x1b\x07")
