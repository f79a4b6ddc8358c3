"""A run of several machines as the operator sees it: a row and a prefix for each, and one of them alone."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from infra.operate.facts import node_row
from infra.operate.nodes import NodeRecord
from infra.operate.runs import DatedBody, ExplainedBucket
from infra.run.spend import Machine, Spend
from tests.infra.deployed import INSTALLATION, RUN, Deployed, client
from tests.infra.operate.log_writer import Writer
from tests.infra.operate.states import NOW, running
from tests.infra.operator import operate
from trainer.contract import UserError, run_key


def node_key(run_id: str, node: str) -> str:
    return run_key(run_id, f"nodes/{node}.json")


def record(role: str = "member", **values: Any) -> dict[str, Any]:
    machine = {"type": "g6.xlarge", "gpu": "1 x NVIDIA L4"}
    return {
        "node": "i", "address": "10.0.0.7", "role": role, "attempt": 3, "time": time.time(), "phase": "training",
        "step": 350, "processes": 4, "machine": machine, "message": "",
    } | values  # fmt: skip


@pytest.fixture
def team(deployed: Deployed) -> list[str]:
    """Three machines of a run of three: the head, a member, and one that has written nothing yet."""
    deployed.launch(nodes=3)
    deployed.train_to(350, attempt=3)
    deployed.put(run_key(RUN, "heartbeat.json"), {"phase": "training", "step": 350, "attempt": 3, "nodes": 2})
    ids = [machine.id for machine in deployed.machines()]
    deployed.put(node_key(RUN, ids[0]), record("head"))
    deployed.put(node_key(RUN, ids[1]), record())
    return ids


def test_status_has_a_row_for_each_machine_and_how_many_of_them_train(
    deployed: Deployed, team: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, get = list[str](), ExplainedBucket.get

    def counted(bucket: ExplainedBucket, key: str, *most: int) -> DatedBody | None:
        asked.append(key)
        return get(bucket, key, *most)

    monkeypatch.setattr(ExplainedBucket, "get", counted)
    assert operate("status") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    rows = {line.split(" ")[0]: line for line in lines if line}
    assert "training, nodes 2 of 3, heard" in rows["state"]
    assert f"; {team[0]}, g6.xlarge in us-east-1b" in rows["head"]
    members = [line for line in lines if line.startswith("node ")]
    assert len(members) == 2
    (member,) = (line for line in members if team[1] in line)
    for figure in ("training, step 350, attempt 3, heard", "4 processes", "1 x NVIDIA L4"):
        assert figure in member
    (silent,) = (line for line in members if team[2] in line)
    assert silent.endswith("it has written no record yet")
    assert "machine" not in rows
    assert sorted(key for key in asked if "/nodes/" in key) == sorted(node_key(RUN, id) for id in team)

    assert operate("status", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["nodes"], document["nodes_wanted"]) == (2, 3)
    assert [one["record"] and one["record"]["role"] for one in document["machines"]] == ["head", "member", None]


def test_a_record_that_is_old_or_of_another_attempt_or_has_ended_stands_out() -> None:
    state = running()
    assert state.spec is not None
    state = replace(state, spec=replace(state.spec, nodes=2))
    (machine,) = state.machines
    well = NodeRecord(at=NOW - 5, role="member", attempt=1, phase="training", step=350)
    for found, is_odd in (
        (well, False),
        (replace(well, at=NOW - 200), True),
        (replace(well, attempt=2), True),
        (replace(well, ended=NOW, message="the head has died"), True),
        (None, True),
    ):
        _, text = node_row(replace(state, nodes={machine.id: found} if found else {}), machine)
        assert (not isinstance(text, str) and str(text.style) == "yellow") == is_odd, text
    label, text = node_row(replace(state, nodes={machine.id: replace(well, ended=NOW, message="gone")}), machine)
    assert label == "node"
    assert "ended: gone" in str(text)


def test_a_run_of_one_has_no_rows_of_nodes_and_reads_no_records(
    deployed: Deployed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.operate.nodes.parse_object_or_nothing", None)
    deployed.launch()
    deployed.train_to(350)
    assert operate("status") == 0
    text = capsys.readouterr().out
    assert "  machine " in text
    assert "node" not in text


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 5000, b'{"step": -1}', b'{"phase": 7}', b'{"machine": [1]}', b'{"machine": {"gpu": 4}}',
        b'{"ended": "now"}', b'{"attempt": 1e99}', b'{"phase": "\\u001b[2J"}',
    ],
)  # fmt: skip
def test_a_record_that_no_machine_writes_is_told_and_steers_nothing(
    deployed: Deployed, team: list[str], capsys: pytest.CaptureFixture[str], body: bytes
) -> None:
    deployed.put(node_key(RUN, team[1]), body)
    assert operate("status") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "\x1b" not in text
    assert team[1] in text
    is_object = body.startswith(b"{") and b"u001b" not in body
    assert (f"{node_key(RUN, team[1])}, which no machine of ours writes" in text) == is_object


def test_lines_of_several_machines_have_short_names_and_come_in_their_order(
    deployed: Deployed, writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch(nodes=2)
    first, second = "i-0aaaaaaa1111", "i-0bbbbbbb2222"
    writer.write("epoch 1 begins", machine=first, age_seconds=30)
    writer.write("rank 4 is ready", machine=second, age_seconds=20)
    writer.write("step 10", machine=first, age_seconds=10)
    assert operate("logs", "--no-follow") == 0
    assert capsys.readouterr().out.splitlines() == [
        "i-0aaaaaaa epoch 1 begins", "i-0bbbbbbb rank 4 is ready", "i-0aaaaaaa step 10",
    ]  # fmt: skip


def test_the_first_line_of_several_machines_has_its_name_too(
    deployed: Deployed, writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch(nodes=2)
    writer.write("alone yet", machine="i-0aaaaaaa1111")
    assert operate("logs", "--no-follow") == 0
    assert capsys.readouterr().out == "i-0aaaaaaa alone yet\n"


def test_node_shows_one_machine_alone_by_the_first_letters_of_its_id(
    deployed: Deployed, writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch(nodes=2)
    one, other = [machine.id for machine in deployed.machines()]
    gone = Machine(id="i-gone", type="g6.xlarge", zone="a", market="spot", launched=1.0, ended=2.0)
    deployed.put(run_key(RUN, "spend.json"), Spend(at=3.0, machines=(gone,)).to_json())
    for machine in (one, other, "i-gone"):
        writer.write(f"words of {machine}", machine=machine)
    for asked, found in ((one, one), (other, other), ("i-gon", "i-gone")):
        assert operate("logs", "--no-follow", "--node", asked) == 0
        assert capsys.readouterr().out == f"words of {found}\n"
    with pytest.raises(UserError, match="NODE='i-none' begins the id of no machine of the run") as refused:
        operate("logs", "--no-follow", "--node", "i-none")
    assert all(machine in str(refused.value) for machine in (one, other, "i-gone"))
    with pytest.raises(UserError, match="NODE='i-' begins the ids of"):
        operate("logs", "--no-follow", "--node", "i-")


def test_logs_says_of_each_machine_that_is_gone_why(
    deployed: Deployed, writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch(nodes=3)
    writer.write("words")

    def machine(id: str, end: str = "", ended: float = 7200.0) -> Machine:
        return Machine(id=id, type="g6.xlarge", zone="a", market="spot", launched=1.0, ended=ended, end=end)

    spend = Spend(at=9000.0, machines=(
        machine("i-1", "Server.SpotInstanceTermination"), machine("i-2", "Client.UserInitiatedShutdown"),
        machine("i-3"), machine("i-4", ended=0.0),
    ))  # fmt: skip
    deployed.put(run_key(RUN, "spend.json"), spend.to_json())
    deployed.put(run_key(RUN, "guard.json"), {"ends": {"i-2": "it bills and does not train with the others"}})
    deployed.put(node_key(RUN, "i-1"), record(ended=7000.0, message="step 7 is saved"))
    assert operate("logs", "--no-follow") == 0
    notes = capsys.readouterr().err.splitlines()
    assert len([note for note in notes if note.startswith("-- node ")]) == 3
    first, second, third = (note for note in notes if note.startswith("-- node "))
    assert first.startswith("-- node i-1 (member, attempt 3) ended ")
    assert first.endswith(": AWS took its machine back; step 7 is saved")
    assert "i-2 (it has never written a record)" in second
    assert second.endswith(": the guard ended its machine: it bills and does not train with the others")
    assert third.endswith(": nobody told why")


def test_runs_and_cost_tell_how_many_machines_a_run_may_have(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch(nodes=3)
    deployed.train_to(350)
    assert operate("runs") == 0
    assert "training, 3 nodes" in capsys.readouterr().out
    assert operate("runs", "--json") == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["nodes"] == 3
    assert operate("cost", "--run", RUN) == 0
    assert "with up to 3 nodes at once" in capsys.readouterr().out


def test_status_says_why_one_of_several_machines_does_not_come(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.launch(nodes=2)
    deployed.train_to(350)
    deployed.aws.set(launch_failures={INSTALLATION.train_group: "VcpuLimitExceeded - more than the limit of 4"})
    client(deployed.aws, "ec2").terminate_instances(InstanceIds=[deployed.machines()[1].id])
    assert operate("status") == 0
    assert "too few the account's vCPU quota for this kind of machine is used up" in " ".join(
        capsys.readouterr().out.split()
    )
