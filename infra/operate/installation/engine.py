"""The Docker engine of this machine, and so where a deploy builds the image: here, or in the account."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

LOCAL, IN_ACCOUNT = "local", "aws"
PLACES = (LOCAL, IN_ACCOUNT)  # BUILD=
OF_MACHINES = "amd64"  # Docker's word for the architecture of the machines that train
ENGINE_SECONDS = 10


@dataclass(frozen=True)
class Engine:
    """`version` is "" where none answers; then `trouble` says why, and `fix` is the command that helps."""

    version: str = ""
    architecture: str = ""
    trouble: str = ""
    fix: str = ""


def find_engine() -> Engine:
    program = shutil.which("docker")
    if not program:
        return Engine(trouble="there is no docker command", fix="curl -fsSL https://get.docker.com | sh")
    command = [program, "version", "--format", "{{.Server.Version}} {{.Server.Arch}}"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=ENGINE_SECONDS)
    except subprocess.TimeoutExpired:
        return Engine(trouble=f"no answer in {ENGINE_SECONDS} s", fix="sudo systemctl restart docker")
    if asked.returncode:
        why = asked.stderr.strip().splitlines() or ["no answer"]
        may_not = "permission" in why[-1]
        fix = "sudo usermod -aG docker $USER && newgrp docker" if may_not else "sudo systemctl start docker"
        return Engine(trouble=f"the engine does not answer: {why[-1]}", fix=fix)
    version, _, architecture = asked.stdout.strip().partition(" ")
    return Engine(version, architecture)


def place_of_build(given: str, engine: Engine) -> str:
    """`given` is BUILD=, or ""; then it is here where the engine's own machine is like those that train."""
    return given or (LOCAL if engine.architecture == OF_MACHINES else IN_ACCOUNT)
