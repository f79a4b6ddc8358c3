"""A Docker registry for tests/infra: Debian's `docker-registry` on a free port of 127.0.0.1, which Docker takes
without TLS. It stands behind the emulated ECR (`aws.set(registry=registry.host)`)."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

CONFIG = """\
version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: "{folder}"}}, delete: {{enabled: true}}}}
http: {{addr: "{host}"}}
"""
START_SECONDS = 60


@dataclass(frozen=True)
class Registry:
    """`host` is 127.0.0.1:port, the first part of the names of its images."""

    host: str

    def tags(self) -> dict[str, list[str]]:
        """By repository; those without tags are left out."""
        found = {name: self._get(f"{name}/tags/list")["tags"] for name in self._get("_catalog")["repositories"]}
        return {name: sorted(tags) for name, tags in found.items() if tags}

    def _get(self, path: str) -> dict[str, list[str]]:
        with urllib.request.urlopen(f"http://{self.host}/v2/{path}", timeout=30) as answer:
            value: dict[str, list[str]] = json.loads(answer.read())
            return value


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """An empty registry, for the session; skips without the program."""
    if not (program := shutil.which("docker-registry")):
        pytest.skip("no docker-registry (make ci-deps, as root, installs one)")
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as free:  # it cannot choose a port itself and tell it
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    (folder / "config.yml").write_text(CONFIG.format(folder=folder / "images", host=host))
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([program, "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    with server:
        try:
            wait_until_it_answers(host, server)
            yield Registry(host)
        except ConnectionError as error:
            pytest.fail(f"{error}:\n{(folder / 'log').read_text()}")
        finally:
            server.terminate()


def wait_until_it_answers(host: str, server: subprocess.Popen[bytes]) -> None:
    address, port = host.split(":")
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((address, int(port))) == 0:
                return
        time.sleep(0.02)
    raise ConnectionError(f"docker-registry does not answer at {host}")
