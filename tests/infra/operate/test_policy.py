"""The policies that `policy` prints are enough for their commands, and no more.

Each command runs, with its policy alone, against an account that enforces it, in every state in which it asks AWS
something else. Then what it has asked is compared with what it may.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.operate.commands.policy import POLICIES
from infra.operate.rights.right import Names, iam_policy
from infra.operate.rights.table import rights_of
from tests.emulator.aws import Aws
from tests.emulator.registry import Registry
from tests.infra.deployed import INSTALLATION
from tests.infra.operate.desk import Desk, asked_by_role, unasked
from tests.infra.operate.scenarios import SCENARIOS

pytestmark = pytest.mark.usefixtures("served", "quick_logs", "quick_destroy")
NAMES = Names(installation=INSTALLATION, account="123456789012", region="us-east-1")
WITH = {"purge": ("destroy", "purge")}  # what goes with another policy


@pytest.fixture
def desk(aws: Aws, registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Desk:
    return Desk(aws, registry, monkeypatch, tmp_path)


def asked_by(command: str, desk: Desk) -> list[dict[str, Any]]:
    """What it asks IAM in all of its scenarios. Nothing may be refused."""
    asked, policy = list[dict[str, Any]](), iam_policy(rights_of(NAMES, WITH.get(command, (command,))))
    for scenario in SCENARIOS[command]:
        desk.aws.reset()
        desk.sit_down(policy)
        with desk.monkeypatch.context():
            scenario(desk)
        asked += asked_by_role(desk.aws)
    return asked


@pytest.mark.slow
@pytest.mark.parametrize("command", SCENARIOS)
def test_a_command_asks_for_all_that_its_policy_allows_and_for_nothing_else(command: str, desk: Desk) -> None:
    assert unasked(rights_of(NAMES, [command]), asked_by(command, desk)) == []


def test_every_command_that_asks_aws_has_a_policy_and_a_scenario() -> None:
    """`rehearse` has both in tests/infra/rehearsal: test_rehearse.py and test_rehearsal_notice.py."""
    assert [*POLICIES] == [*SCENARIOS, "rehearse"]
