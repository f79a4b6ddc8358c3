"""What a first hour waits for most often: the answer to a wrong login, and preflight. As whole processes.

The limits are for the processor's time, which a busy machine hardly changes, and for the calls before the answer.
"""

from __future__ import annotations

import re
import resource

import pytest

from tests.emulator.aws import Aws
from tests.infra.operator import GIVEN_IMAGE, Ended, infra, prepare_account, rows

# One that is refused, and one that asks whether the region is enabled; `launch` asks before what the region offers.
LOGIN_SECONDS, LOGIN_CALLS = 2.0, 3
PREFLIGHT_SECONDS, LEAST_CHECKS = 5.0, 26


def timed(*arguments: str) -> tuple[Ended, float]:
    """The command, and the processor's seconds of its process and of what that has started."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = infra(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    "arguments", [("status",), ("launch", "--recipe", "digits"), ("destroy",), ("stop",), ("rehearse", "--yes")]
)
def test_keys_that_aws_does_not_know_are_told_in_two_seconds_after_few_calls(
    arguments: tuple[str, ...], aws: Aws
) -> None:
    aws.fault("*", code="InvalidClientTokenId", message="no", status=403)
    ended, seconds = timed(*arguments)
    assert (ended.code, ended.said) == (4, "")
    assert "AWS does not know the keys in the environment" in ended.error
    assert seconds < LOGIN_SECONDS
    assert len(aws.calls()) <= LOGIN_CALLS, aws.calls()


def test_preflight_makes_all_of_its_checks_in_five_seconds(aws: Aws) -> None:
    prepare_account(aws)
    ended, seconds = timed("-c", f"image_uri={GIVEN_IMAGE}", "preflight", "--recipe", "digits")
    assert ended.code == 0, ended.said
    told = re.search(r"^(\d+) checks in [0-9.]+ s, 0 failed$", ended.said, re.MULTILINE)
    assert told is not None, ended.said
    assert int(told[1]) >= LEAST_CHECKS
    assert len(rows(ended.said)) == int(told[1])
    assert "unknown" not in {state for state, _ in rows(ended.said).values()}, ended.said
    assert seconds < PREFLIGHT_SECONDS
