"""Figures that a boot script, a unit or the Makefile cannot import: kept in step with those that they stand for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from infra.config import CONTEXT_PREFIX, ROOT, Tag
from infra.guard import rules
from tests.engine import WALLS
from trainer import container
from trainer.contract import DRAIN_SECONDS, RunEnv

BOOT = ROOT / "infra/boot"


def default(name: str) -> int:
    """Of a variable of lib.sh."""
    (value,) = re.findall(rf'^: "\$\{{{name}:=(\d+)\}}"', (BOOT / "lib.sh").read_text(), re.MULTILINE)
    return int(value)


def unit(name: str, pattern: str) -> int:
    (value,) = re.findall(pattern, (BOOT / name).read_text(), re.MULTILINE)
    return int(value)


def test_every_stop_of_a_container_leaves_the_uploader_the_time_to_drain() -> None:
    save = default("SAVE_SECONDS")
    assert save > DRAIN_SECONDS
    assert unit("resnet-spot.service", r"^ExecStop=-docker stop -t (\d+) resnet-spot$") == save
    margins = re.findall(
        r'"--stop-timeout", str\(DRAIN_SECONDS \+ (\d+)\)', (ROOT / "trainer/container.py").read_text()
    )
    assert [DRAIN_SECONDS + int(margin) for margin in margins] == [save]
    assert not re.search(r"(-t|--stop-timeout) \d", (BOOT / "run").read_text())


def test_what_waits_for_a_stop_waits_longer_than_the_stop() -> None:
    save, stop = default("SAVE_SECONDS"), unit("resnet-spot.service", r"^TimeoutStopSec=(\d+)$")
    waited = unit("deadline", r"^timeout (\d+) systemctl stop resnet-spot\.service$")
    ship = unit("resnet-spot.service", r"^ExecStopPost=-timeout (\d+) /opt/resnet-spot/ship$")
    assert save < stop < stop + ship < waited < default("STOP_SECONDS")
    assert default("STOP_SECONDS") < rules.SHUTDOWN_SECONDS


def test_boot_waits_for_a_lease_as_long_as_the_trainer_does() -> None:
    assert str(default("LEASE_SECONDS")) == RunEnv.__dataclass_fields__["lease_seconds"].default


def test_the_guard_is_more_patient_than_boot() -> None:
    assert default("INTERRUPTED_SECONDS") < rules.PAUSE_SECONDS
    assert default("IDENTIFY_SECONDS") < rules.BOOT_SECONDS


def test_the_shipped_image_is_tested_within_the_walls_that_it_has_on_a_machine() -> None:
    options = (BOOT / "run").read_text().replace(" \\\n", " ")
    (tmpfs,) = WALLS["tmpfs"].items()
    for option in (
        f"--cap-drop {WALLS['cap_drop'][0]} --security-opt {WALLS['security_opt'][0]} ",
        f"--read-only --tmpfs {':'.join(tmpfs)} --shm-size {WALLS['shm_size']} ",
        f"--pids-limit {WALLS['pids_limit']} --ulimit core=0 ",
    ):
        assert option in re.sub(" +", " ", options)


def test_make_docker_train_has_the_walls_of_a_machine() -> None:
    options = re.sub(" +", " ", (BOOT / "run").read_text().replace(" \\\n", " "))
    for option in re.split(" (?=--)", " ".join(container.WALLS)):
        assert f" {option} " in options


@pytest.mark.parametrize(
    "file", [BOOT / "run", BOOT / "scratch", BOOT / "handover.py", ROOT / "Dockerfile"], ids=lambda path: path.name
)
def test_the_containers_user_is_the_same_everywhere(file: Path) -> None:
    assert set(re.findall(r"\b1\d{4}\b", file.read_text())) == {"10001"}


def test_the_tags_that_boot_asks_for_are_those_that_launch_sets() -> None:
    asked = set(re.findall(r"imds tags/instance/(\S+?)\)", (BOOT / "deadline").read_text()))
    assert asked == {Tag.RUN, Tag.DEADLINE}
    assert f"{Tag.INSTALLATION}:" == CONTEXT_PREFIX
