"""Docker's real awslogs driver before the emulated CloudWatch: an engine of its own, since the driver takes its
credentials from the engine's environment, and containers that print numbered lines with the time.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

IMAGE = "empty"
START_SECONDS = 60.0
PYTHON = Path(sys.base_prefix)
MOUNTS = ("/usr", "/lib", "/lib64", str(PYTHON))  # the image is empty: the container sees this machine's Python
# Bursts as a trainer prints them: a line or a few, then nothing for a while.
PRINT = """
import random, sys, time
count, mean_pause = int(sys.argv[1]), float(sys.argv[2])
chance = random.Random(0)
for number in range(count):
    print(f"line {number} {time.time():.6f}", flush=True)
    if chance.random() < 0.5:
        time.sleep(chance.expovariate(0.5 / mean_pause) if mean_pause else 0)
"""


def why_no_engine() -> str:
    """What keeps this user from an engine of his own; empty if nothing does."""
    if os.geteuid() != 0:
        return "only root may start a Docker engine"
    if not shutil.which("dockerd"):
        return "no dockerd (make ci-deps, as root, installs one)"
    return ""


@dataclass(frozen=True)
class Engine:
    socket: Path
    endpoint: str

    def docker(self, *arguments: str, stdin: bytes = b"") -> str:
        command = ["docker", "--host", f"unix://{self.socket}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode()}")
        return done.stdout.decode().strip()

    def print_lines(self, group: str, stream: str, count: int, mean_pause_seconds: float, **options: str) -> str:
        """Start a container that prints; `options` are awslogs's, with '_' for '-'. Its id."""
        mounts = [flag for folder in MOUNTS for flag in ("--volume", f"{folder}:{folder}:ro")]
        opts = {"awslogs-region": "us-east-1", "awslogs-group": group, "awslogs-stream": stream,
                "awslogs-endpoint": self.endpoint, "mode": "non-blocking", "max-buffer-size": "16m"}  # fmt: skip
        opts |= {name.replace("_", "-"): value for name, value in options.items()}
        logs = [flag for name, value in opts.items() for flag in ("--log-opt", f"{name}={value}")]
        return self.docker(
            "run", "--detach", "--network", "host", "--log-driver", "awslogs", *logs, *mounts, IMAGE,
            str(PYTHON / "bin" / "python3"), "-c", PRINT, str(count), str(mean_pause_seconds),
        )  # fmt: skip

    def wait(self, container: str) -> int:
        return int(self.docker("wait", container))


@contextmanager
def run_engine(endpoint: str, environ: Mapping[str, str]) -> Iterator[Engine]:
    """A Docker engine with its own data and without a network of its own; it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="dockerd-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                ["dockerd", "--host", f"unix://{home}/socket", "--pidfile", home / "pid",
                 "--data-root", home / "data", "--exec-root", home / "exec", "--storage-driver", "vfs",
                 "--bridge", "none", "--iptables=false", "--ip6tables=false"],
                env={"PATH": os.environ["PATH"]} | dict(environ), stdout=log, stderr=log,
            )  # fmt: skip
        engine = Engine(home / "socket", endpoint)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not answers(engine):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"dockerd has not started:\n{(home / 'log').read_text()[-3000:]}")
                time.sleep(0.1)
            engine.docker("import", "-", IMAGE, stdin=empty_tar())
            yield engine
            for container in engine.docker("ps", "--all", "--quiet").split():
                engine.docker("rm", "--force", container)
        finally:
            process.terminate()
            process.wait(timeout=START_SECONDS)
            subprocess.run(["umount", home / "exec" / "netns" / "default"], check=False, stderr=subprocess.DEVNULL)


def answers(engine: Engine) -> bool:
    try:
        return bool(engine.docker("version", "--format", "{{.Server.Version}}"))
    except RuntimeError:
        return False


def empty_tar() -> bytes:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(folder)
    return body.getvalue()
