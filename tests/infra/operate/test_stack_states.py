"""A stack in each state that CloudFormation knows: what preflight says, and that its command leads out of it."""

from __future__ import annotations

import re
from collections.abc import Callable

import botocore.exceptions
import botocore.session
import pytest

from infra.operate.checks import account
from infra.operate.checks.finding import Finding, Wanted
from infra.operate.installation.stack_states import DEAD
from infra.operate.installation.zones import zones_of_subnets
from infra.operate.planning.options import Request
from infra.operate.session import ExitCode
from tests.emulator.aws import Aws
from tests.infra import hub
from tests.infra.deployed import INSTALLATION, Deployed
from tests.infra.operator import fixes, infra, left, operate, operator, prepare_account, rows

STATES = botocore.session.get_session().get_service_model("cloudformation").shape_for("StackStatus").enum
AT_REST = (
    "CREATE_COMPLETE",
    "UPDATE_COMPLETE",
    "UPDATE_ROLLBACK_COMPLETE",
    "IMPORT_COMPLETE",
    "IMPORT_ROLLBACK_COMPLETE",
)
TRAINING, STORAGE = INSTALLATION.training_stack, INSTALLATION.storage_stack
ENDS = {  # of what CloudFormation does, as its user guide names them
    "CREATE_IN_PROGRESS": ("CREATE_COMPLETE", "ROLLBACK_COMPLETE", "ROLLBACK_FAILED"),
    "ROLLBACK_IN_PROGRESS": ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED"),
    "DELETE_IN_PROGRESS": ("DELETE_COMPLETE", "DELETE_FAILED"),
    "UPDATE_IN_PROGRESS": ("UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE", "UPDATE_ROLLBACK_FAILED"),
    "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS": ("UPDATE_COMPLETE",),
    "UPDATE_ROLLBACK_IN_PROGRESS": ("UPDATE_ROLLBACK_COMPLETE", "UPDATE_ROLLBACK_FAILED"),
    "UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS": ("UPDATE_ROLLBACK_COMPLETE",),
    "IMPORT_IN_PROGRESS": ("IMPORT_COMPLETE", "IMPORT_ROLLBACK_COMPLETE", "IMPORT_ROLLBACK_FAILED"),
}


def look_at_stacks() -> Finding:
    return account.stacks(Wanted(aws=operator(), installation=INSTALLATION, request=Request()))


@pytest.mark.parametrize("stack", [STORAGE, TRAINING])
def test_each_state_is_fine_or_has_one_command(deployed: Deployed, stack: str) -> None:
    told = {}
    for state in STATES:
        deployed.aws.set(stack_status={stack: state})
        told[state] = look_at_stacks()
        assert (told[state].state == "failed") == bool(told[state].fix), state
        assert state in told[state].said or state == "DELETE_COMPLETE"
    assert {state for state, one in told.items() if one.state == "ok"} == {*AT_REST, *DEAD, "DELETE_COMPLETE"}
    for state in DEAD:
        assert f"{stack}: {state}, from a deploy that failed: the next one deletes it first" in told[state].said
    assert told["DELETE_FAILED"].fix == told["IMPORT_ROLLBACK_FAILED"].fix == "make destroy"
    assert told["UPDATE_FAILED"].fix == f"aws cloudformation rollback-stack --stack-name {stack}"
    assert told["UPDATE_ROLLBACK_FAILED"].fix.startswith("aws cloudformation continue-update-rollback --stack-name")


@pytest.mark.parametrize(("going", "end"), [(going, end) for going, ends in ENDS.items() for end in ends])
def test_the_command_that_waits_ends_where_the_operation_ends(deployed: Deployed, going: str, end: str) -> None:
    deployed.aws.set(stack_status={TRAINING: going})
    waiter = re.fullmatch(rf"aws cloudformation wait (\S+) --stack-name {TRAINING}", look_at_stacks().fix)
    assert waiter
    assert waits_on(deployed.aws, waiter[1])
    deployed.aws.set(stack_status={TRAINING: end})
    assert not waits_on(deployed.aws, waiter[1])


def waits_on(aws: Aws, name: str) -> bool:
    """Whether the waiter of this name would ask again."""
    waiter = aws.client("cloudformation").get_waiter(name.replace("-", "_"))
    try:
        waiter.wait(StackName=TRAINING, WaiterConfig={"Delay": 0, "MaxAttempts": 1})
    except botocore.exceptions.WaiterError as error:
        return "Max attempts exceeded" in str(error)
    return False


@pytest.mark.usefixtures("quick_destroy")
@pytest.mark.parametrize("state", [state for state in STATES if not state.endswith("_IN_PROGRESS")])
def test_destroy_ends_a_stack_in_each_state_in_which_it_rests(deployed: Deployed, state: str) -> None:
    deployed.aws.set(stack_status={TRAINING: state})
    assert operate("destroy") == ExitCode.DONE
    assert left() == []


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("state", DEAD)
def test_a_dead_storage_stack_with_its_secret_is_no_stack(aws: Aws, look: Callable[..., str], state: str) -> None:
    prepare_account(aws)
    aws.client("secretsmanager").create_secret(Name=INSTALLATION.secret_name)
    aws.set(stack_status={STORAGE: state})
    delete = f"aws secretsmanager delete-secret --force-delete-without-recovery --secret-id {INSTALLATION.secret_name}"
    said = look()
    assert "is there without its stack, and a new stack can neither adopt nor replace it" in rows(said)["token"][1]
    assert fixes(said)["token"] == delete
    ended = infra("secret", stdin=hub.TOKEN)
    assert ended.code == ExitCode.USAGE
    assert delete in ended.error


def test_a_dead_training_stack_has_no_zones_to_keep(deployed: Deployed) -> None:
    assert zones_of_subnets(operator(), INSTALLATION) == ["us-east-1b", "us-east-1c"]
    deployed.aws.set(stack_status={TRAINING: "ROLLBACK_COMPLETE"})
    assert len(zones_of_subnets(operator(), INSTALLATION)) == 3
