"""The files of infra/boot one by one: their form, and where the scratch folder comes to lie."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator

import docker
import pytest

from infra.stacks.user_data import BOOT, bare, travelling
from tests.engine import LABEL
from tests.infra.boot.boot_machines import CAPABILITIES

SCRIPTS = sorted(path.name for path in BOOT.iterdir() if path.is_file() and path.suffix[1:] not in ("service", "py"))
NO_DISK = "/var/lib/resnet-spot/scratch"
DISK = "/opt/dlami/nvme/scratch"


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script: str) -> None:
    if not (program := shutil.which("shellcheck")):
        pytest.skip("no shellcheck (make ci-deps, as root, installs one)")
    checked = subprocess.run(
        [program, "--external-sources", f"infra/boot/{script}"],
        cwd=BOOT.parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout


def program(script: bytes) -> str:
    """A script as bash has understood it: without comments, and each command written in the one form."""
    whole = f"whole() {{\n{script.decode()}\n}}\ndeclare -f whole"
    read = subprocess.run(["bash", "-c", whole], capture_output=True, text=True, check=True)
    assert read.stderr == ""
    return read.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_travels_as_the_same_program_and_without_its_comments(script: str) -> None:
    here, there = (BOOT / script).read_bytes(), travelling()[script]
    assert program(there) == program(here)
    assert there.splitlines()[0] == here.splitlines()[0] or script == "lib.sh"  # which is only sourced
    assert not re.search(rb"^\s*#(?!!)", there, re.MULTILINE)


def test_a_module_travels_as_the_same_program_without_docstrings_comments_and_empty_lines() -> None:
    here, there = (BOOT / "handover.py").read_text(), travelling()["handover.py"].decode()
    assert "\n\n" not in there
    assert not re.search(r"^\s*#(?!!)", there, re.MULTILINE)
    tree = ast.parse(here)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            is_said = ast.get_docstring(node) is not None and len(node.body) > 1
            node.body = node.body[is_said:]
    assert ast.dump(tree) == ast.dump(ast.parse(there))
    assert len(there) < 0.95 * len(here)


def test_what_is_no_comment_travels_in_any_case() -> None:
    script = b'#!/bin/sh\n# why\n  # shellcheck\necho "${line#*:}" # here\n#\n'
    assert bare(script) == b'#!/bin/sh\necho "${line#*:}" # here\n'
    assert program(bare(b"echo one\n# two\n")) != program(b"echo two\n")


Shell = Callable[[str], tuple[int, str]]


@pytest.fixture(scope="module")
def shell(engine: docker.DockerClient, machine_image: str) -> Iterator[Shell]:
    """A command on a machine that has not booted; its scripts and units are where they belong."""
    container = engine.containers.run(
        machine_image, ["sleep", "infinity"], entrypoint="", cap_add=CAPABILITIES,
        device_cgroup_rules=["a *:* rwm"], network_mode="host", labels={LABEL: "yes"}, detach=True, init=True,
        security_opt=["seccomp=unconfined", "apparmor=unconfined"],
        volumes=[f"{BOOT}:/opt/resnet-spot:ro", "/disks"],
    )  # fmt: skip

    def run(command: str) -> tuple[int, str]:
        code, output = container.exec_run(["sh", "-c", command])
        return int(code), output.decode()

    done(run("sed '$d' /start | sh"))  # to its end: no command may come before the loop devices are there
    yield run
    run("umount --quiet /opt/dlami/nvme; losetup --associated /disks/disk | cut -d: -f1 | xargs -r losetup --detach")
    container.remove(force=True, v=True)


def done(answer: tuple[int, str]) -> str:
    code, output = answer
    assert code == 0, output
    return output.strip()


@pytest.mark.engine
def test_systemd_finds_nothing_in_the_units(shell: Shell) -> None:
    units = " ".join(path.name for path in BOOT.glob("*.service"))
    done(shell(f"cd /opt/resnet-spot && install -m 644 {units} /etc/systemd/system"))
    assert done(shell(f"cd /etc/systemd/system && systemd-analyze verify --man=no {units} 2>&1")) == ""


@pytest.fixture
def disk(shell: Shell) -> Iterator[str]:
    """A blank loop device in the place of an NVMe disk."""
    yield done(shell("truncate --size 64M /disks/disk && losetup --find --show /disks/disk"))
    shell("umount --quiet /opt/dlami/nvme; losetup --associated /disks/disk | cut -d: -f1 | xargs -r losetup --detach")
    shell("rm /disks/disk")


def scratch(shell: Shell, devices: str) -> str:
    return done(shell(f"SCRATCH_DEVICES='{devices}' /opt/resnet-spot/scratch 2>/dev/null"))


@pytest.mark.engine
def test_without_a_disk_of_its_own_the_machine_s_scratch_is_on_the_root_volume(shell: Shell) -> None:
    assert scratch(shell, " ") == NO_DISK
    assert done(shell(f"stat --format '%u %g' {NO_DISK}")) == "10001 10001"


@pytest.mark.engine
def test_a_blank_disk_is_formatted_and_mounted_and_keeps_its_data_over_a_reboot(shell: Shell, disk: str) -> None:
    assert scratch(shell, disk) == DISK
    assert done(shell("findmnt --noheadings --output SOURCE,FSTYPE /opt/dlami/nvme")).split() == [disk, "ext4"]
    assert done(shell(f"stat --format '%u %g' {DISK}")) == "10001 10001"
    done(shell(f"echo kept >{DISK}/file"))
    assert scratch(shell, disk) == DISK  # mounted already
    done(shell("umount /opt/dlami/nvme"))
    assert scratch(shell, disk) == DISK
    assert done(shell(f"cat {DISK}/file")) == "kept"


@pytest.mark.engine
def test_a_disk_of_ours_that_no_longer_mounts_is_formatted_again(shell: Shell, disk: str) -> None:
    assert scratch(shell, disk) == DISK
    done(shell(f"touch {DISK}/file; umount /opt/dlami/nvme"))
    done(
        shell(f"dd if=/dev/zero of={disk} bs=4096 seek=1 count=200 conv=notrunc status=none")
    )  # all but the superblock
    assert scratch(shell, disk) == DISK
    assert shell(f"test -e {DISK}/file")[0] == 1


@pytest.mark.engine
def test_a_disk_that_holds_something_else_is_left_alone(shell: Shell, disk: str) -> None:
    done(shell(f"mkfs.ext4 -q -L theirs {disk}"))
    assert scratch(shell, disk) == NO_DISK
    assert done(shell(f"blkid -p -o value -s LABEL {disk}")) == "theirs"


@pytest.mark.engine
def test_a_disk_with_partitions_and_without_a_file_system_of_its_own_is_not_blank(shell: Shell, disk: str) -> None:
    one = r"\0\0\0\0\203\0\0\0\1\0\0\0\377\0\0\0"  # a partition of Linux, from the second sector on
    done(shell(f"printf '{one}' | dd of={disk} bs=1 seek=446 conv=notrunc status=none"))
    done(shell(rf"printf '\125\252' | dd of={disk} bs=1 seek=510 conv=notrunc status=none"))
    assert done(shell(f"blkid -p -o value -s PTTYPE {disk}")) == "dos"
    assert scratch(shell, disk) == NO_DISK
    assert done(shell(f"blkid -p -o value -s PTTYPE {disk}")) == "dos"
