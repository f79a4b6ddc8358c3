"""The log of a run whose machines crash, are cancelled and are replaced: every line of all of them is there, once."""

from __future__ import annotations

import pytest

from infra.operate.commands.logs import Tail
from tests.infra.boot.boot_machines import Machine

pytestmark = pytest.mark.engine


def test_the_lines_of_every_attempt_are_there_after_a_crash_a_cancellation_and_a_replacement(machine: Machine) -> None:
    machine.launched().boot("exit 1", "serve", "exit 0")
    machine.wait_for_life(2)
    machine.sh("systemctl --no-block poweroff")  # so EC2 tells a machine that is terminated, by make stop or anybody
    machine.wait_until_off()
    first, second = machine.instance, "i-0123456789abcdef0"
    machine.imds.documents["/latest/meta-data/instance-id"] = second
    machine.power_on()
    machine.wait_until_off()

    tail = Tail(machine.aws.client("logs"), machine.installation.log_group, machine.run, since=0)
    lines = [(line.stream.removeprefix(f"{machine.run}/"), line.text) for line in tail.poll()]
    said = {number: [text for stream, text in lines if stream.endswith(f"/{number}")] for number in "123"}
    assert said == {"1": ["life 1: exit 1"], "2": ["life 2: serve", "saved"], "3": ["life 3: exit 0"]}
    boot = {id: [text for stream, text in lines if stream == f"{id}/boot"] for id in (first, second)}
    for id, ends in ((first, ("1", "75")), (second, ("0",))):
        found = [text for text in boot[id] if text.startswith("the container ended")]
        assert found == [f"the container ended with exit code {code}" for code in ends]
        assert len(boot[id]) == len(set(boot[id]))
    assert boot[second][-1] == "powering off"
