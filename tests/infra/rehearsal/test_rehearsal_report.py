"""`rehearsal.json` goes to strangers: no text in it tells whose account it was, whatever AWS had said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.operate.rehearsal.record import Record, UnseenError

OURS, OTHER = "123456789012", "210987654321"


def written(folder: Path, said: str) -> str:
    """The report of a rehearsal in which AWS said this in an act, an answer, a fact and of what is left."""
    record = Record(account=OURS)

    def fail() -> str:
        raise UnseenError(said)

    record.act("deploy", fail)
    record.see("cpu", said)
    record.facts["machines"] = [said]
    record.left = [said]
    record.write(folder / "rehearsal.json")
    return (folder / "rehearsal.json").read_text()


@pytest.mark.parametrize(
    ("said", "kept", "secrets"),
    [
        (
            f"User: arn:aws:sts::{OTHER}:assumed-role/AWSReservedSSO_Admin_0a1b/jane@example.org is not authorized to "
            f"perform: ec2:RunInstances on resource: arn:aws:ec2:us-east-1:{OTHER}:instance/*",
            "User: <arn> is not authorized to perform: ec2:RunInstances on resource: <arn>",
            (OTHER, "jane", "example.org"),
        ),
        (
            f"bucket cdk-hnb659fds-assets-{OTHER}-us-east-1, x{OURS}y, {OTHER[:4]}-{OTHER[4:8]}-{OTHER[8:]}",
            "bucket cdk-hnb659fds-assets-<account>-us-east-1, x<account>y, <account>",
            (OTHER, OURS, "2109-"),
        ),
        (
            f"{OTHER}.dkr.ecr.us-east-1.amazonaws.com/image: no route from ip-10-0-3-7.ec2.internal (10.0.3.7)",
            "<host>/image: no route from <host> (<address>)",
            (OTHER, "10-0-3-7", "10.0.3.7", "amazonaws"),
        ),
        (
            'Could not connect to "https://proxy.jane.example:3128/a?b", nor to 2600:1f18:0:1::9 or fe80::1 of a.lan.',
            'Could not connect to "https://<host>/a?b", nor to <address> or <address> of <host>.',
            ("proxy", "2600", "fe80", "a.lan"),
        ),
        ("the keys AKIAIOSFODNN7EXAMPLE and AROAZL22PDN5A6WKRBQNU:me", "the keys <id> and <id>:me", ("AKIA", "AROA")),
    ],
)  # fmt: skip
def test_no_text_of_the_report_tells_whose_account_it_is(
    said: str, kept: str, secrets: tuple[str, ...], tmp_path: Path
) -> None:
    text = written(tmp_path, said)
    assert not [one for one in secrets if one in text]
    report = json.loads(text)
    assert [report["steps"][0]["said"], report["left"][0], report["machines"][0]] == [kept] * 3
    assert [one["said"] for one in report["answers"] if one["seen"]] == [kept]


def test_what_a_rehearsal_measured_stays(tmp_path: Path) -> None:
    said = (
        "i-09876543210987654, g6.xlarge in us-east-1a: at 12:30:45 step 1,234,567 of s3://bucket/runs, loss "
        "0.693147180559 after 123456789 s, driver 550.54.15, $0.123; 2026-11-28T08:00:00+00:00"
    )
    assert json.loads(written(tmp_path, said))["machines"] == [said]
