"""What others wrote into the bucket, the log or a name is shown escaped and cut, and objects are read with a limit."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.config import Config

from infra.config import Installation
from infra.guard import rules
from infra.guard.reading import CautiousBucket, UnreadableError
from infra.operate import terminal
from infra.operate.installation.standing import is_bucket_of
from infra.operate.planning.options import Request
from infra.operate.runs import ExplainedBucket
from infra.operate.session import Aws as Operator
from infra.operate.session import AwsError
from infra.run.values import MOST_BYTES
from tests.emulator.aws import Aws
from tests.emulator.s3 import FaultyProxy, cut_answer
from tests.infra import hub
from tests.infra.deployed import RUN, Deployed
from tests.infra.fleets import BUCKET, Lab
from tests.infra.hub import Hub
from tests.infra.operate.log_writer import Writer
from tests.infra.operator import operate, rows, session
from trainer.contract import UserError, run_key

EVIL = "\x1b]52;c;cm0gLXJmIH4=\x07\x1b[2Jgood\x9b31m\u202edoog\ud800\u061c\u200b\u200d\u2060\ufeff"
STEERING = set("\x1b\x07\x9b\u202e\ud800\u061c\u200b\u200d\u2060\ufeff")
ESCAPED = r"\x1b]52;c;cm0gLXJmIH4=\x07\x1b[2Jgood\x9b31m\u202edoog\ud800\u061c\u200b\u200d\u2060\ufeff"


def test_no_command_sends_a_terminal_what_others_wrote(
    deployed: Deployed, writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch()
    deployed.train_to(150)
    attempt = {"attempt": 1, "started": 0, "exit": EVIL, "machine": {"id": EVIL, "type": EVIL, "market": EVIL}}
    deployed.put(run_key(RUN, "attempts/1.json"), attempt)
    heartbeat = {"phase": EVIL, "step": 1, "progress": 1, "time": 0, "attempt": 1}
    deployed.put(run_key(RUN, "heartbeat.json"), heartbeat)
    deployed.put(run_key(RUN, "guard.json"), {"reason": EVIL})
    writer.write(EVIL, "tabs\tstay")
    commands = [("status",), ("status", "--json"), ("runs",), ("runs", "--json"), ("cost", "--run", RUN)]
    for command in (*commands, ("logs", "--no-follow")):
        operate(*command)
        shown = capsys.readouterr().out
        assert not set(shown) & STEERING, command
        if "--json" in command:
            assert json.loads(shown)
        if command == ("logs", "--no-follow"):
            assert ESCAPED in shown
            assert "tabs\tstay" in shown
    deployed.end("failed", EVIL * 10_000)
    operate("status")
    shown = capsys.readouterr().out
    assert ESCAPED in shown
    assert "\x1b" not in shown
    assert len(shown) < 30_000


def test_every_way_to_show_a_text_escapes_and_cuts_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = terminal.LiveLine()
    monkeypatch.setattr("builtins.input", lambda question: print(question) or "")
    rich = terminal.Text.assemble(EVIL, (EVIL, "red"))
    ways: list[Callable[[str], object]] = [
        terminal.show_line, lambda text: terminal.show_line(text, sys.stderr), terminal.display, terminal.ask,
        live.show,
        lambda text: terminal.display(terminal.styled(text, "red")), lambda text: terminal.display(rich, text),
        lambda text: terminal.display(terminal.table([(text, terminal.styled(text, "red"), rich)], ("a", EVIL, "c"))),
        lambda text: terminal.display_commands([("what", text)]), lambda text: terminal.next_commands((text, text)),
        lambda text: terminal.display_line(f"{text} ", text, 100), terminal.display_json,
        lambda text: terminal.show_traceback(ValueError, ValueError(text), None),
    ]  # fmt: skip
    for way in ways:
        way(EVIL)
        shown = "".join(capsys.readouterr())
        assert "good" in shown
        assert not set(shown) & STEERING, shown
        if way is not terminal.display_json:
            way(EVIL * 10_000)
            assert len("".join(capsys.readouterr())) < 20_000


def test_a_terminal_gets_colours_and_no_other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", screen)
    terminal.display(terminal.Text.assemble(("red", "red"), EVIL), terminal.table([(EVIL, EVIL)]))
    terminal.display_line(f"{EVIL} ", EVIL, 100)
    with terminal.LiveLine() as live:
        live.show(EVIL)
    shown = screen.getvalue()
    assert "\x1b[31mred" in shown
    assert not set(shown) & set("\x07\x9b\u202e")
    assert "\x1b]" not in shown
    assert "\x1b[2J" not in shown


def test_an_object_that_no_run_writes_is_not_read(deployed: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    deployed.launch()
    deployed.put(run_key(RUN, "heartbeat.json"), json.dumps({"phase": "x" * MOST_BYTES}).encode())
    with pytest.raises(UserError, match=r"heartbeat\.json is larger than 1,048,576 bytes, which no run writes"):
        operate("status", "--run", RUN)
    operate("runs")
    assert "unreadable" in capsys.readouterr().out


def test_the_guard_reads_no_object_that_would_not_fit_into_its_memory(lab: Lab) -> None:
    lab.put("runs/r/heartbeat.json", b"x" * (MOST_BYTES + 1))
    lab.put("runs/r/guard.json", b"x" * MOST_BYTES)
    bucket = CautiousBucket(lab.client("s3"), BUCKET)
    with pytest.raises(UnreadableError, match=r"heartbeat\.json is larger than 1,048,576 bytes"):
        bucket.read("runs/r/heartbeat.json")
    found = bucket.read("runs/r/guard.json")
    assert found
    assert len(found.body) == MOST_BYTES


def test_a_body_that_was_cut_on_its_way_is_no_answer(lab: Lab) -> None:
    lab.put("runs/r/spec.json", b'{"kind": "train"}' + b" " * 1000)
    proxy = FaultyProxy(lab.client("s3").meta.endpoint_url)
    try:
        s3 = boto3.client("s3", endpoint_url=proxy.endpoint, region_name="us-east-1", aws_access_key_id="a",
                          aws_secret_access_key="b", config=Config(s3={"addressing_style": "path"}))  # fmt: skip
        proxy.plan("GET", cut_answer, cut_answer)
        with pytest.raises(UnreadableError, match=r"spec\.json cannot be read"):
            CautiousBucket(s3, BUCKET).read("runs/r/spec.json")
        with pytest.raises(AwsError, match=r"spec\.json"):
            ExplainedBucket(s3, BUCKET).read("runs/r/spec.json")
        assert ExplainedBucket(s3, BUCKET).read_json("runs/r/spec.json") == {"kind": "train"}
    finally:
        proxy.close()


def test_a_mail_is_short_and_escaped(lab: Lab) -> None:
    lab.guard().tell("run r", EVIL * 1000)
    (mail,) = lab.mail()
    assert ESCAPED in mail
    assert len(mail) <= 1102


def test_no_text_of_a_machine_keeps_the_guard_from_terminating_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "SILENCE_SECONDS", 10_000.0)  # the emulated bucket's clock is the real one
    lab.launch()
    lab.beat(phase="\ud800")
    (machine,) = lab.billing()
    lab.put("runs/run-1/guard.json", {"mark": r"attempt 1, \ud800, step 1, 1", "marked": lab.began - 700})
    assert not [*lab.tick(16), *lab.tick(17)]
    assert machine not in lab.billing()
    assert [mail for mail in lab.mail() if r"minutes (attempt 1, \ud800, step 1, 1)" in mail]
    lab.put("runs/run-1/failed.json", {"attempt": 1, "message": EVIL})
    assert not lab.tick(30)
    assert lab.desired() == 0
    assert [mail for mail in lab.mail() if ESCAPED in mail]


def test_the_token_follows_no_redirect_to_another_host(ready: Aws, look: Callable[..., str], served: Hub) -> None:
    page = f"/api/datasets/{hub.IMAGENET}/auth-check"
    with hub.serve() as other:
        served.moved = {page: f"{other.endpoint}/api/datasets/{hub.OPEN}/auth-check"}
        state, said = rows(look(Request()))["gate of the hub"]
        assert state == "unknown"
        assert "sends to another host, which gets no token" in said
        assert other.tokens == []
    served.moved = {page: f"{served.endpoint}/api/datasets/{hub.OPEN}/auth-check"}
    assert rows(look(Request()))["gate of the hub"][0] == "ok"


def test_an_address_of_the_hub_without_tls_is_refused(
    ready: Aws, look: Callable[..., str], served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in ("http://hub.example", "http://127.0.0.1.example", "ftp://127.0.0.1", "hub.example"):
        monkeypatch.setenv("HF_ENDPOINT", address)
        state, said = rows(look(Request()))["gate of the hub"]
        assert (state, said.split(" is ")[0]) == ("failed", f"HF_ENDPOINT='{address}'")


def test_only_a_bucket_of_this_account_is_adopted(ready: Aws, look: Callable[..., str]) -> None:
    mine = ready.client("s3").list_buckets()["Buckets"][0]["Name"]
    asked: dict[str, Any] = {}
    events = Operator(session()).client("s3").meta.events
    for name in ("HeadBucket", "GetBucketTagging"):
        events.register(f"provide-client-params.s3.{name}", lambda params, name=name, **_: asked.update({name: params}))
    assert rows(look())["bucket"][0] == "ok"
    assert is_bucket_of(Operator(session()), mine, Installation())
    assert {name: params["ExpectedBucketOwner"] for name, params in asked.items()} == {
        "HeadBucket": "123456789012", "GetBucketTagging": "123456789012",
    }  # fmt: skip
