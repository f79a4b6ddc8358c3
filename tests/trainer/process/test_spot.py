"""Spot notices: the poller against an IMDSv2 over HTTP, and what real runs do about what it hears."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.emulator.imds import NOTICE, REBALANCE, Imds
from tests.runs import QUICK, Run
from trainer.contract import Exit, Phase, attempt_key
from trainer.process import spot
from trainer.process.spot import Handover, Metadata, Poller, endpoint, on_ec2

pytestmark = pytest.mark.slow

NewRun = Callable[..., Run]
WHEN = "2026-01-01T00:02:00Z"
STOP_SECONDS = 20  # from the notice to the commit, as promised


@dataclass
class Heard:
    """What a poller has told."""

    notices: list[tuple[str, str]] = field(default_factory=list)
    rebalances: int = 0
    said: list[str] = field(default_factory=list)

    def poller(self, source: str | Handover, *, token_seconds: int = 21600) -> Poller:
        def rebalance() -> None:
            self.rebalances += 1

        return Poller(
            Metadata(source, token_seconds) if isinstance(source, str) else source,
            lambda *notice: self.notices.append(notice), rebalance, self.said.append, poll_seconds=0.05,
        )  # fmt: skip


@pytest.fixture
def heard() -> Heard:
    return Heard()


def test_a_notice_is_heard_whatever_its_action_and_nothing_is_heard_without_one(imds: Imds, heard: Heard) -> None:
    poller = heard.poller(imds.endpoint + "/")
    assert not poller.poll()
    assert heard == Heard()
    imds.set_notice("hibernate", WHEN)
    assert poller.poll()
    assert heard.notices == [("hibernate", WHEN)]


def test_a_recommendation_is_heard_once_and_the_next_one_again(imds: Imds, heard: Heard) -> None:
    poller, counts = heard.poller(imds.endpoint), []
    for when in ("", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "2026-01-01T00:07:00Z"):
        if when:
            imds.set_rebalance(when)
        poller.poll()
        counts.append(heard.rebalances)
    assert counts == [0, 1, 1, 2]


def test_one_token_serves_many_polls_and_is_renewed_before_it_ends(imds: Imds, heard: Heard) -> None:
    poller = heard.poller(imds.endpoint, token_seconds=2)
    for _ in range(5):
        poller.poll()
    assert [answer for answer in imds.answers if answer[0].startswith("PUT")] == [("PUT /latest/api/token", 200)]
    deadline = time.monotonic() + 2.5
    while time.monotonic() < deadline:
        poller.poll()
        time.sleep(0.1)
    assert len(imds.tokens) > 1
    assert 401 not in {status for _, status in imds.answers}


def test_a_token_that_the_service_has_forgotten_costs_no_poll(imds: Imds, heard: Heard) -> None:
    poller = heard.poller(imds.endpoint)
    poller.poll()
    imds.tokens.clear()
    imds.set_notice()
    assert poller.poll()
    assert heard.said == []


@pytest.mark.parametrize("fault", ["status 500", "status 403", "status 200", "no object", "no field", "silence"])
def test_a_service_that_fails_is_no_notice_is_mentioned_once_and_is_asked_again(
    fault: str, imds: Imds, heard: Heard
) -> None:
    poller = heard.poller(imds.endpoint)
    for document in (NOTICE, REBALANCE):
        imds.documents[document] = {"no object": "[]", "no field": "{}"}.get(fault, "")
    if fault.startswith("status"):
        imds.failing = int(fault.split()[1])
    if fault == "silence":
        imds.answering.clear()
    for _ in range(1 if fault == "silence" else 3):
        assert not poller.poll()
    assert (heard.notices, heard.rebalances, len(heard.said)) == ([], 0, 1)
    assert imds.endpoint in heard.said[0]
    imds.failing = None
    imds.answering.set()
    imds.set_notice()
    assert poller.poll()
    assert len(heard.said) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:{refused}", "http://[", "127.0.0.1", "http://127.0.0.1:port"])
def test_an_endpoint_where_nobody_answers_is_no_notice_either(url: str, heard: Heard) -> None:
    with socket.socket() as bound:  # and not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        poller = heard.poller(url.format(refused=bound.getsockname()[1]))
        assert not poller.poll()
        assert not poller.poll()
    assert (heard.notices, len(heard.said)) == ([], 1)


def test_the_thread_outlives_faults_and_ends_with_the_notice(imds: Imds, heard: Heard) -> None:
    imds.failing = 500
    poller = heard.poller(imds.endpoint)
    poller.start()
    deadline = time.monotonic() + 10
    while len(imds.answers) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    imds.failing = None
    imds.set_notice()
    poller.join(timeout=10)
    assert not poller.is_alive()
    assert len(heard.notices) == 1


def test_the_proxy_of_the_environment_is_not_asked(imds: Imds, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    imds.set_notice()
    assert heard.poller(imds.endpoint).poll()


def test_only_ec2_is_asked_without_being_named(tmp_path: Path) -> None:
    assert not on_ec2(tmp_path), "no firmware to ask, as in some sandboxes"
    vendor, hypervisor = tmp_path / "class/dmi/id/sys_vendor", tmp_path / "hypervisor/uuid"
    for path in (vendor, hypervisor):
        path.parent.mkdir(parents=True)
    found = {}
    for maker, uuid in (("Amazon EC2", ""), ("LENOVO", ""), ("Xen", "ec2e1916-9099-7caf-fd21-0123"), ("Xen", "4c4c")):
        vendor.write_text(f"{maker}\n")
        hypervisor.write_text(f"{uuid}\n") if uuid else hypervisor.unlink(missing_ok=True)
        found[maker, uuid[:4]] = on_ec2(tmp_path)
    assert found == {("Amazon EC2", ""): True, ("LENOVO", ""): False, ("Xen", "ec2e"): True, ("Xen", "4c4c"): False}


def test_the_variables_of_the_aws_sdks_name_the_service_and_turn_it_off() -> None:
    named = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1338/"}
    assert endpoint(named) == "http://127.0.0.1:1338"
    assert endpoint(named | {"AWS_EC2_METADATA_DISABLED": "True"}) == ""
    assert endpoint(named | {"AWS_EC2_METADATA_DISABLED": "false"}) == "http://127.0.0.1:1338"


def test_a_folder_of_documents_is_read_in_the_place_of_the_service_and_silence_is_said_once(
    tmp_path: Path, heard: Heard
) -> None:
    source = spot.documents({"TRAINER_HANDOVER_DIR": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"})
    assert isinstance(source, Handover)
    source.stale_seconds = 0.2
    poller = heard.poller(source)

    def write(path: str, text: str) -> None:
        (tmp_path / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path.lstrip("/")).write_text(text)

    for look in range(4):
        write("alive", str(look))
        assert not poller.poll()
        time.sleep(0.1)
    assert heard == Heard()
    time.sleep(0.2)  # nobody looks any more
    for _ in range(2):
        assert not poller.poll()
    assert len(heard.said) == 1
    assert "has not been renewed" in heard.said[0]
    assert str(tmp_path) in heard.said[0]

    write(REBALANCE, '{"noticeTime": "2026-01-01T00:00:00Z"}')
    write(NOTICE, f'{{"action": "terminate", "time": "{WHEN}"}}')
    assert poller.poll()
    assert heard.notices == [("terminate", WHEN)]
    write("/latest/meta-data/instance-id", "i-1")
    write("alive", "again")
    assert spot.describe_machine(source) == {"id": "i-1", "type": "", "zone": "", "market": ""}


def test_a_folder_that_nobody_has_filled_is_no_notice_either(tmp_path: Path, heard: Heard) -> None:
    poller = heard.poller(Handover(tmp_path / "nothing"))
    assert not poller.poll()
    assert (heard.notices, len(heard.said)) == ([], 1)


@pytest.fixture
def spot_run(new_run: NewRun, imds: Imds) -> Run:
    """A run on a machine that the emulator can reclaim."""
    return new_run(AWS_EC2_METADATA_SERVICE_ENDPOINT=imds.endpoint)


def notice_and_wait(run: Run, imds: Imds) -> float:
    """Reclaim the machine, and wait for the end of the run, which must be an interruption; seconds that it took."""
    imds.set_notice(when=WHEN)
    started = time.monotonic()
    assert run.wait() == Exit.INTERRUPTED, run.output
    assert f"spot notice: this machine is reclaimed at {WHEN}" in run.output
    return time.monotonic() - started


def test_a_machine_that_is_reclaimed_already_begins_nothing(spot_run: Run, imds: Imds) -> None:
    imds.set_notice()
    assert spot_run.run() == Exit.INTERRUPTED, spot_run.output
    assert spot_run.stored() == set()


def test_a_notice_while_the_uploader_starts_and_one_while_torch_loads_are_interruptions(
    spot_run: Run, imds: Imds
) -> None:
    """The process is held in that phase until the notice has been read."""

    def the_uploader() -> bool:
        return bool(children(spot_run, "trainer.upload.uploader"))

    def the_worker() -> bool:
        return bool(spot_run.workers())

    def the_notice() -> bool:
        return imds.served(NOTICE)

    for attempt, (begun, module) in enumerate(
        ((the_uploader, "trainer.upload.uploader"), (the_worker, "trainer.train")), 1
    ):
        spot_run.start()
        spot_run.until(begun)
        (held,) = children(spot_run, module)
        os.kill(held, signal.SIGSTOP)
        imds.set_notice()
        spot_run.until(the_notice)
        os.kill(held, signal.SIGCONT)
        notice_and_wait(spot_run, imds)
        assert spot_run.json(f"attempts/{attempt}.json")["exit"] == Exit.INTERRUPTED
        assert not Path(f"/proc/{held}").exists()
        imds.documents.clear()
        imds.answers.clear()


def test_a_recommendation_saves_and_goes_on_and_a_notice_saves_and_ends(spot_run: Run, imds: Imds) -> None:
    strangers = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}  # of the cluster's own launcher
    no_save = ("--epochs", "1000", "--val-every-epochs", "1000", "--checkpoint.every-seconds", "9999")
    spot_run.start(*QUICK, *no_save, **strangers).until_step(1)
    assert children(spot_run, "trainer.train")
    assert not children(spot_run, "torch.distributed"), "one process needs no torchrun"
    imds.set_rebalance()

    def the_checkpoint() -> str:
        return spot_run.lease().newest

    spot_run.until(the_checkpoint)
    saved = spot_run.manifest()["step"]
    spot_run.until_step(saved + 1)
    assert notice_and_wait(spot_run, imds) < STOP_SECONDS
    assert "rebalance recommendation" in spot_run.output
    assert spot_run.manifest()["step"] > saved
    assert spot_run.json("attempts/1.json")["exit"] == Exit.INTERRUPTED


def test_of_the_two_minutes_of_a_notice_most_are_trained_and_a_wrong_clock_does_not_make_them_more() -> None:
    now = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
    times = {"12:02:00Z": 90, "12:01:58+00:00": 88, "12:02:00": 90, "12:00:40Z": 10, "12:00:30Z": 0, "11:00:00Z": 0}
    for when, seconds in (times | {"13:00:00Z": 90}).items():
        assert spot.seconds_to_train(f"2026-01-31T{when}", now) == seconds, when
    assert spot.seconds_to_train("a time not told", now) == 0
    least = 85 + 3  # of the 120 s, though a notice is 3 s old when it is heard on a machine of a launch
    assert spot.seconds_to_train("2026-01-31T12:02:00Z", now) >= least


def test_a_notice_that_leaves_time_saves_at_once_trains_on_and_saves_the_very_last_step(
    spot_run: Run, imds: Imds
) -> None:
    no_save = ("--epochs", "1000", "--val-every-epochs", "1000", "--checkpoint.every-seconds", "9999")
    spot_run.start(*QUICK, *no_save).until_step(1)
    reclaimed = datetime.now(UTC) + timedelta(seconds=spot.LAST_SAVE_SECONDS + 12)
    imds.set_notice(when=reclaimed.isoformat())

    def the_checkpoint() -> str:
        return spot_run.lease().newest

    spot_run.until(the_checkpoint)
    first = spot_run.manifest()["step"]
    assert datetime.now(UTC) < reclaimed - timedelta(seconds=spot.LAST_SAVE_SECONDS), "saved while it still trains"
    spot_run.until_step(first + 1)
    assert spot_run.wait() == Exit.INTERRUPTED, spot_run.output
    left = (reclaimed - datetime.now(UTC)).total_seconds()
    assert spot.LAST_SAVE_SECONDS - STOP_SECONDS < left <= spot.LAST_SAVE_SECONDS
    last = spot_run.manifest()["step"]
    assert last > first
    assert last == max(row["step"] for row in spot_run.metrics() if "train/loss" in row), "no step is lost"
    ended = spot_run.json("attempts/1.json")
    assert ended["exit"] == Exit.INTERRUPTED
    assert ended["reason"] == f"spot notice: this machine is reclaimed at {reclaimed.isoformat()}"
    assert "saving now, going on for" in spot_run.output


def test_a_notice_in_the_last_validation_is_not_the_end_of_the_run(spot_run: Run, imds: Imds) -> None:
    """The trainer is held there until the notice has reached it: a validation may be shorter than a poll."""
    held = spot_run.start(*QUICK, "--epochs", "1", "--val-batch-size", "1").hold(Phase.EVALUATING)
    imds.set_notice(when=WHEN)
    spot_run.release(held)
    assert notice_and_wait(spot_run, imds) < STOP_SECONDS
    assert spot_run.manifest()["step"] == 5
    assert attempt_key("quick", 1) in spot_run.stored()
    assert not any(key.endswith("done.json") for key in spot_run.stored())


def children(run: Run, module: str) -> list[int]:
    """The process ids of the supervisor's children that run a module."""
    assert run.process is not None
    listing = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text()
    return [int(pid) for pid in listing.split() if module in Path(f"/proc/{pid}/cmdline").read_text().split("\0")]
