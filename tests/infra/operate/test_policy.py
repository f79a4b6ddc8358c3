"""The policies that `policy` prints are enough for their commands, and no more.

Each command runs, with its policy alone, against an account that enforces it, in every state in which it asks AWS
something else. Then what it has asked is compared with what it may.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.operate.commands.policy import POLICIES
from infra.operate.rights.right import Names, iam_policy
from infra.operate.rights.table import rights_of
from tests.emulator.aws import Aws
from tests.emulator.policies import Request, applies
from tests.emulator.registry import Registry
from tests.infra.deployed import INSTALLATION
from tests.infra.operate.desk import Desk
from tests.infra.operate.scenarios import SCENARIOS

pytestmark = pytest.mark.usefixtures("served", "quick_logs", "quick_destroy")
NAMES = Names(installation=INSTALLATION, account="123456789012", region="us-east-1")
WITH = {"purge": ("destroy", "purge")}  # what goes with another policy


@pytest.fixture
def desk(aws: Aws, registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Desk:
    return Desk(aws, registry, monkeypatch, tmp_path)


def asked_by(command: str, desk: Desk) -> list[Request]:
    """What it asks IAM in all of its scenarios. Nothing may be refused, not even what the command gets over."""
    asked, policy = list[Request](), iam_policy(rights_of(NAMES, WITH.get(command, (command,))))
    for scenario in SCENARIOS[command]:
        desk.aws.reset()
        desk.sit_down(policy)
        with desk.monkeypatch.context():
            scenario(desk)
        answers = desk.aws.asked()
        assert [one for one in answers if one["refused"]] == []
        asked += [Request(one["action"], one["resource"], one["context"]) for one in answers]
    return asked


@pytest.mark.slow
@pytest.mark.parametrize("command", SCENARIOS)
def test_a_command_asks_for_all_that_its_policy_allows_and_for_nothing_else(command: str, desk: Desk) -> None:
    asked = asked_by(command, desk)
    allowed = [
        {"Action": action, "Resource": resource, "Condition": right.condition or {}}
        for right in rights_of(NAMES, [command]) for action in right.actions for resource in right.on
    ]  # fmt: skip
    assert [one for one in allowed if not any(applies(one, request) for request in asked)] == []


def test_every_command_that_asks_aws_has_a_policy_and_a_scenario() -> None:
    assert [*POLICIES] == [*SCENARIOS]
