"""The files of a machine that boots in a rehearsal's test, and the image of its trainer."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.emulator.aws import Aws
from tests.infra.boot.boot_machines import DOCKER_ENVIRONMENT, ECR, NO_RESTART_WAIT, NO_WAITS, OUTSIDE

VENV = (ROOT / ".venv").resolve()
PYTHON_HOME = Path(os.path.realpath(VENV / "bin/python")).parents[1]
SHARED = ("/usr", "/lib", "/lib64", str(PYTHON_HOME), str(VENV))  # of this machine, which the trainer's container sees
IMAGE = f"""\
FROM scratch
ARG COMMIT
LABEL commit=$COMMIT resnet-spot-end-to-end=yes
COPY trainer /app/trainer
ENV PATH={VENV}/bin:/usr/bin:/bin PYTHONPATH=/app PYTHONUNBUFFERED=1 HOME=/scratch USER=trainer LOGNAME=trainer
USER 10001:10001
WORKDIR /app
ENTRYPOINT ["{VENV}/bin/python", "-m", "trainer.process.supervise"]
"""
LEASE_SECONDS = 5  # of a trainer, instead of a minute
DOCKER = """\
#!/bin/sh
if [ "$1" = run ]; then
  shift
  set -- run {options} "$@"
fi
exec /usr/bin/docker "$@"
"""


def files_of(config: dict[str, Any], aws: Aws) -> dict[str, bytes]:
    """The files of the user data, and what makes this machine one of the test's."""
    volumes = " ".join(f"--volume /host{folder}:{folder}:ro" for folder in SHARED)
    options = f"{volumes} --env TRAINER_LEASE_SECONDS={LEASE_SECONDS}"
    settings = NO_WAITS | {"AWS_ENDPOINT_URL": f"http://{OUTSIDE}:{aws.endpoint.rpartition(':')[2]}", "GPU": ""}
    files = {one["path"].lstrip("/"): decode(one["content"], one.get("encoding", "")) for one in config["write_files"]}
    files["etc/resnet-spot.env"] += "".join(f"{name}={value}\n" for name, value in settings.items()).encode()
    return files | {
        "usr/local/bin/docker": DOCKER.format(options=options).encode(),
        "etc/docker/daemon.json": json.dumps({"insecure-registries": [ECR]}).encode(),
        "etc/systemd/system/docker.service.d/test.conf": DOCKER_ENVIRONMENT,
        "etc/systemd/system/resnet-spot.service.d/test.conf": NO_RESTART_WAIT,
    }


def decode(content: str, encoding: str) -> bytes:
    plain = base64.b64decode(content) if "b64" in encoding else content.encode()
    return gzip.decompress(plain) if encoding.startswith("gz") else plain


def packed(files: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755 if name.startswith(("opt/", "usr/")) else 0o644
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()
