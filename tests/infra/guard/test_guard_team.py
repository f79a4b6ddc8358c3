"""The guard and a run of several machines, against the emulated account."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from infra.guard import acting, reading
from infra.guard.facts import Facts, Signs
from infra.guard.reading import CautiousBucket
from infra.run import fleet
from infra.run.fleet import ON_DEMAND
from tests.infra.fleets import BUCKET, INSTALLATION, RUN, Lab
from trainer.contract import RunEnv, run_key
from trainer.store import open_store
from trainer.upload.machines import MachineRecord

OFF = "Client.InstanceInitiatedShutdown"


def team_of_two(lab: Lab) -> list[str]:
    lab.launch(nodes=2)
    head, member = lab.billing()
    lab.beat()
    lab.record(head)
    return [head, member]


def test_the_place_of_a_machine_that_dies_again_and_again_goes_and_the_head_stays(lab: Lab) -> None:
    head, _ = team_of_two(lab)
    lab.aws.set(end_reason=OFF)
    time.sleep(1.05)  # EC2 tells the second of a launch
    for minute in range(1, 6):  # the first was launched with the head, and does not count
        assert lab.desired() == 2
        lab.client("ec2").terminate_instances(InstanceIds=[id for id in lab.billing() if id != head])
        lab.tick(minute)
    assert (lab.desired(), lab.billing()) == (1, [head])
    assert "autoscaling.TerminateInstanceInAutoScalingGroup" in lab.aws.calls()
    (group,) = lab.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[INSTALLATION.train_group])[
        "AutoScalingGroups"
    ]
    assert group["MaxSize"] == 1
    assert lab.memory().stopped == 0
    assert [message for message in lab.mail() if "the run goes on with 1 machine," in message]
    lab.tick(7)
    assert (lab.desired(), lab.billing(), lab.mail()) == (1, [head], [])


def test_a_run_of_several_changes_to_as_many_on_demand_machines(lab: Lab) -> None:
    lab.aws.set(launch_failures={INSTALLATION.train_group: "UnfulfillableCapacity - Unable to fulfill capacity"})
    lab.launch(nodes=2, on_demand_after_minutes=20.0)
    for minute in (0, 1, 22):
        lab.tick(minute)
    assert (lab.desired(INSTALLATION.train_group), lab.desired(INSTALLATION.on_demand_group)) == (0, 2)
    assert [machine.market for machine in lab.machines() if machine.is_billing] == [ON_DEMAND] * 2


def test_a_run_of_one_machine_has_no_records_and_the_guard_asks_for_none(lab: Lab) -> None:
    spec = lab.launch()
    lab.beat()
    lab.tick(1)
    assert not [call for call in lab.aws.calls() if call.startswith("s3.List")]
    lab.put(run_key(RUN, "spec.json"), replace(spec, nodes=2).to_json())
    lab.tick(2)
    assert [call for call in lab.aws.calls() if call.startswith("s3.List")]


def test_what_is_in_the_records_is_read_only_where_a_machine_is_missing(lab: Lab, tmp_path: Path) -> None:
    """The member's is the one that its uploader writes before its processes have met the others."""
    head, member = team_of_two(lab)
    store = open_store(str(tmp_path))
    env = RunEnv(store=store.uri, run_id=RUN, scratch_dir=str(tmp_path), attempt="1", nodes="2", node=member)
    MachineRecord(env, store, "member").write()
    lab.put(run_key(RUN, f"nodes/{member}.json"), store.get(run_key(RUN, f"nodes/{member}.json")))
    bucket = CautiousBucket(lab.client("s3"), BUCKET)

    def signs(nodes: int) -> tuple[Signs, int]:
        body = {"phase": "training", "step": 1, "attempt": 1, "nodes": nodes}
        lab.put(run_key(RUN, "heartbeat.json"), body)
        before = len(lab.aws.calls())
        found, problems = reading.read_signs(
            bucket, RUN, lab.began, is_wanted=True, is_suspect=False, team=(head, member)
        )
        assert problems == []
        return found, len(lab.aws.calls()) - before

    found, calls = signs(1)
    assert found.nodes is not None
    assert (found.nodes[member].attempt, found.nodes[member].phase) == (1, "")
    assert found.heartbeat is not None
    assert found.heartbeat.nodes == 1
    found, fewer = signs(2)
    assert calls - fewer == 2
    assert {*(found.nodes or {})} == {head, member}
    lab.put(run_key(RUN, f"nodes/{member}.json"), b"[" * 1000)
    found, _ = signs(1)
    assert (found.nodes or {})[member].attempt == 0


def test_a_group_that_was_stopped_since_the_tick_began_stays_at_zero(lab: Lab) -> None:
    lab.launch(nodes=2)
    facts = Facts(now=lab.began, groups=tuple(fleet.read_groups(lab.client("autoscaling"), [INSTALLATION.train_group])))
    fleet.scale_to_zero(lab.client("autoscaling"), INSTALLATION.train_group)
    acting.take_back(lab.client("autoscaling"), facts, 1, [])
    assert (lab.desired(), lab.billing()) == (0, [])


def test_machines_that_were_taken_back_are_told_also_if_aws_refuses_the_new_maximum(lab: Lab) -> None:
    lab.launch()
    fleet.scale(lab.client("autoscaling"), INSTALLATION.train_group, 2)
    lab.aws.fault("autoscaling.UpdateAutoScalingGroup", status=403)
    problems = lab.tick(1)
    assert [problem for problem in problems if f"the maximum of {INSTALLATION.train_group}: " in problem]
    assert (lab.desired(), [one for one in lab.memory().told if one.startswith("shrunk")] != []) == (1, True)
    assert [message for message in lab.mail() if "2 machines were asked of" in message]
