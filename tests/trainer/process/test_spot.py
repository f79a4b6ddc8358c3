"""Spot notices: the poller against an IMDSv2 over HTTP. test_spot_runs.py has what real runs do."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.emulator.imds import NOTICE, REBALANCE, Imds
from trainer.process import spot
from trainer.process.spot import Handover, Metadata, Poller, endpoint, on_ec2

pytestmark = pytest.mark.slow

WHEN = "2026-01-01T00:02:00Z"


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


def test_of_the_two_minutes_of_a_notice_most_are_trained_and_a_wrong_clock_does_not_make_them_more() -> None:
    now = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
    times = {"12:02:00Z": 90, "12:01:58+00:00": 88, "12:02:00": 90, "12:00:40Z": 10, "12:00:30Z": 0, "11:00:00Z": 0}
    for when, seconds in (times | {"13:00:00Z": 90}).items():
        assert spot.seconds_to_train(f"2026-01-31T{when}", now) == seconds, when
    assert spot.seconds_to_train("a time not told", now) == 0
    least = 85 + 3  # of the 120 s, though a notice is 3 s old when it is heard on a machine of a launch
    assert spot.seconds_to_train("2026-01-31T12:02:00Z", now) >= least
