"""Times in the answers of AWS: read as botocore reads them, those of S3's headers without its slow parser."""

from __future__ import annotations

import pytest
from botocore.utils import parse_timestamp

from infra import __main__
from infra.__main__ import answer_time, open_session
from tests.infra.deployed import Deployed
from trainer.contract import run_key


@pytest.mark.parametrize(
    "told",
    [
        "Sat, 28 Nov 2026 08:00:00 GMT", "Fri, 29 Feb 2036 23:59:59 GMT", "Sat, 28 Nov 2026 08:00:00 +0100",
        "2026-11-28T08:00:00.123Z", "2026-11-28T08:00:00+00:00", 1_800_000_000.5, "1800000000",
    ],
)  # fmt: skip
def test_a_time_is_the_one_that_botocore_reads(told: object) -> None:
    assert answer_time(told) == parse_timestamp(told)
    assert answer_time(told).tzinfo is not None


@pytest.mark.parametrize("told", ["Sun, 99 Nov 2026 08:00:00 GMT", "Sat, 28 Now 2026 08:00:00 GMT", "soon"])
def test_what_is_no_time_is_refused_as_botocore_refuses_it(told: str) -> None:
    with pytest.raises(ValueError, match="Invalid timestamp"):
        answer_time(told)


def test_the_time_of_an_object_needs_not_the_parser_of_botocore(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(told: object) -> None:
        raise AssertionError(f"botocore parses {told}")

    deployed.put(run_key("run", "done.json"), {})
    s3 = open_session().client("s3")
    place = {"Bucket": deployed.bucket, "Key": run_key("run", "done.json")}
    plain = deployed.aws.client("s3").head_object(**place)["LastModified"]
    monkeypatch.setattr(__main__, "parse_timestamp", refuse)
    assert s3.head_object(**place)["LastModified"] == plain
