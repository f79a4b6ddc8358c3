"""`make docker-train`: secrets are files that nobody else sees, walls stand, and signals reach the container."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests import PATIENCE, ROOT
from tests.engine import LABEL
from trainer.container import private_folder, run_container, run_options
from trainer.contract import Exit, UserError

WEBHOOK = "https://hooks.example.org/planted"
TOKEN, KEY, SECRET = "hf_plantedPLANTED", "AKIAPLANTED", "planted/secret+key=%s"
KEYS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": "planted-session"}


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    (tmp_path / "secrets").mkdir(mode=0o700)
    return tmp_path / "secrets"


@pytest.fixture
def options(tmp_path: Path, secrets: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()

    def read(**environ: str) -> list[str]:
        given = {"TRAINER_STORE": "out", "TRAINER_DATA": "", "TRAINER_SCRATCH_DIR": ".scratch", "RECIPE": "digits"}
        for file in secrets.iterdir():
            file.unlink()
        return run_options(given | environ, secrets)

    return read


def test_keys_and_token_are_files_that_only_this_user_reads(
    options: Callable[..., list[str]], secrets: Path, tmp_path: Path
) -> None:
    found = options(TRAINER_STORE="s3://b", TRAINER_DATA="org/images", HF_TOKEN=TOKEN, **KEYS)
    assert not [word for word in found if "planted" in word.lower()]
    assert {"HF_TOKEN", *KEYS}.isdisjoint(found)
    assert f"{secrets}:/run/secrets:ro" in found
    assert {"TRAINER_SECRETS_DIR=/run/secrets", "AWS_SHARED_CREDENTIALS_FILE=/run/secrets/aws-credentials"} <= {*found}
    assert (secrets / "hf_token").read_text() == TOKEN
    assert {stat.S_IMODE(file.stat().st_mode) for file in secrets.iterdir()} == {0o400}
    read = "import botocore.session as s; print(*s.get_session().get_credentials().get_frozen_credentials()[:3])"
    environ = {"PATH": os.environ["PATH"], "AWS_SHARED_CREDENTIALS_FILE": str(secrets / "aws-credentials")}
    said = subprocess.run([sys.executable, "-c", read], env=environ, capture_output=True, text=True, timeout=PATIENCE)
    assert said.stdout.split() == [*KEYS.values()], said.stderr


def test_a_secret_goes_only_where_the_run_needs_it(options: Callable[..., list[str]], secrets: Path) -> None:
    Path("photos").mkdir()
    for environ in ({"TRAINER_DATA": "photos"}, {"TRAINER_DATA": "s3://b/data"}, {}, {"TRAINER_DATA": "digits"}):
        options(**environ, HF_TOKEN=TOKEN)
        assert not list(secrets.iterdir())
    for environ in ({"RECIPE": "finetune"}, {"TRAINER_DATA": "org/images"}):
        options(**environ, HF_TOKEN=TOKEN)
        assert [file.name for file in secrets.iterdir()] == ["hf_token"]
    options(TRAINER_DATA="org/images", **KEYS)
    assert not list(secrets.iterdir())
    options(TRAINER_DATA="s3://b/data", **KEYS)
    assert [file.name for file in secrets.iterdir()] == ["aws-credentials"]


def test_the_webhook_is_a_file_whatever_the_data_are(options: Callable[..., list[str]], secrets: Path) -> None:
    for data, more in (("digits", set()), ("org/images", {"hf_token"})):
        found = options(TRAINER_DATA=data, HF_TOKEN=TOKEN, TRAINER_WEBHOOK=WEBHOOK, TRAINER_WEBHOOK_FORM="slack")
        assert {file.name for file in secrets.iterdir()} == {"webhook"} | more
        assert (secrets / "webhook").read_text() == WEBHOOK
        assert stat.S_IMODE((secrets / "webhook").stat().st_mode) == 0o400
        assert found.count("TRAINER_SECRETS_DIR=/run/secrets") == 1
        assert "TRAINER_WEBHOOK_FORM" in found
        assert "TRAINER_WEBHOOK" not in found
        assert not [word for word in found if WEBHOOK in word]


def test_a_key_with_a_line_break_is_refused_and_not_shown(options: Callable[..., list[str]]) -> None:
    with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY has a space or a line break") as refused:
        options(TRAINER_STORE="s3://b", **KEYS | {"AWS_SECRET_ACCESS_KEY": "planted\n[profile x]"})
    assert "planted" not in str(refused.value)


def test_profiles_are_mounted_read_only_where_no_keys_are_given(
    options: Callable[..., list[str]], tmp_path: Path
) -> None:
    mount = f"{tmp_path}/home/.aws:/scratch/.aws:ro"
    assert mount not in options(TRAINER_STORE="s3://b")
    (tmp_path / "home/.aws").mkdir()
    assert mount in options(TRAINER_STORE="s3://b")
    assert (tmp_path / ".scratch/.aws").stat().st_uid == os.getuid()
    assert mount not in options(TRAINER_STORE="s3://b", **KEYS)
    assert mount not in options()


HOSTS = {  # as /etc/hosts and the name service say
    "this-machine": ["127.0.1.1"], "both": ["10.0.0.1", "::1"], "s3.example.com": ["192.0.2.1", "2001:db8::1"],
    "localhost.example.com": ["192.0.2.2"], "127.0.0.1.example.com": ["192.0.2.3"],
}  # fmt: skip


def test_the_hosts_network_is_shared_only_for_an_endpoint_on_this_machine(
    options: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo

    def look_up(host: str, *more: Any) -> list[Any]:
        if not re.search("[a-z]", host) or ".." in host:
            return [*resolve(host, *more)]
        if host not in HOSTS:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [found for address in HOSTS[host] for found in resolve(address, *more)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    for address in (
        "http://127.0.0.1:9000", "http://localhost:9000", "http://s3.localhost", "http://[::1]:9000",
        "http://0.0.0.0:9000", "http://[::]:9000", "http://127.1", "http://this-machine:9000", "http://both:9000",
    ):  # fmt: skip
        assert "host" in options(AWS_ENDPOINT_URL=address), address
    for address in (
        "", "https://s3.example.com", "http://localhost.example.com", "http://10.0.0.1:9000", "http://nowhere",
        "http://127.0.0.1.example.com", "http://a..b",
    ):  # fmt: skip
        assert "host" not in options(AWS_ENDPOINT_URL=address), address
    assert not [word for word in options() if word.startswith("--ipc")]


def test_a_machine_of_several_shares_the_hosts_network_and_is_told_what_the_user_said(
    options: Callable[..., list[str]],
) -> None:
    """A bridge's addresses and ports lead nowhere from another machine."""
    names = ("PET_NPROC_PER_NODE", "TRAINER_NODES", "TRAINER_RENDEZVOUS", "TRAINER_ADDRESS", "TRAINER_NODE")
    for nodes, shares in (("2", True), ("1", False)):
        found = options(TRAINER_NODES=nodes)
        assert (["--network", "host"] in [found[at : at + 2] for at in range(len(found))]) == shares
        assert {*names} <= {found[at + 1] for at, word in enumerate(found) if word == "-e"}


def test_a_folder_that_docker_would_read_as_two_is_refused(options: Callable[..., list[str]]) -> None:
    Path("a:b").mkdir()
    with pytest.raises(UserError, match="docker takes no folder with ':'"):
        options(TRAINER_DATA="a:b")


@pytest.mark.parametrize("may_write", [True, False])
def test_secrets_lie_in_memory_only_where_this_user_may_write_to_it(
    may_write: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "disk").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "memory"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "disk"))
    monkeypatch.setattr(os, "access", lambda *_: may_write)  # root may do anything
    with private_folder() as folder:
        assert folder.parent == tmp_path / ("memory" if may_write else "disk")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with pytest.raises(UserError, match=r"no folder for the secrets can be made .*set TMPDIR"), private_folder():
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_before_the_container_is_started_says_nothing_of_the_image(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docker").write_text(f"#!/bin/sh\nkill -{number.value} $PPID\nsleep 0.1\nexit 130\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        assert run_container({"IMAGE": "resnet-spot"}) == Exit.INTERRUPTED
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert capfd.readouterr().err == "stopped before the container was started\n"


ENGINE = f"""#!{sys.executable}
import json, os, pathlib, sys, time
here = pathlib.Path(__file__).parent
if sys.argv[1] == "image":
    print("sha256:0123")
elif sys.argv[1] == "run":
    words = sys.argv
    folder = next(word for word in words if word.endswith(":/run/secrets:ro")).split(":")[0]
    secrets = {{path.name: path.read_text() for path in pathlib.Path(folder).iterdir()}}
    (here / "run.json").write_text(json.dumps([folder, secrets, words]))
    pathlib.Path(words[words.index("--cidfile") + 1]).write_text("the-id")
    while not (here / "killed").exists():
        time.sleep(0.02)
    sys.exit(75)
elif sys.argv[1] == "kill":
    (here / "killed").write_text(" ".join(sys.argv[2:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_container_and_the_secrets_are_gone_at_its_end(
    number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/docker").write_text(ENGINE)
    (tmp_path / "bin/docker").chmod(0o755)
    environ = {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT),
        "RECIPE": "digits", "IMAGE": "i", "ARGS": "--epochs '4'", "TRAINER_STORE": "s3://b",
        "TRAINER_RUN_ID": "r", "TRAINER_DATA": "org/images", "TRAINER_SCRATCH_DIR": ".scratch",
        "HF_TOKEN": TOKEN, **KEYS,
    }  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "trainer.container"], cwd=tmp_path, env=environ)
    began, deadline = tmp_path / "bin/run.json", time.monotonic() + PATIENCE
    while not began.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(PATIENCE) == 75
    folder, found, words = json.loads(began.read_text())
    assert words[-4:] == ["i", "digits", "--epochs", "4"]
    assert found["hf_token"] == TOKEN
    assert SECRET in found["aws-credentials"]
    assert not Path(folder).exists()
    assert (tmp_path / "bin/killed").read_text() == f"--signal {number.value} the-id"


INSIDE = """
import json, os, pathlib, shutil
status = dict(line.split(":\\t", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
def writes(folder):
    try:
        pathlib.Path(folder, "x").touch()
    except OSError:
        return False
    return True
print(json.dumps({
    "capabilities": int(status["CapEff"], 16) | int(status["CapPrm"], 16),
    "new privileges": status["NoNewPrivs"].strip(),
    "core": __import__("resource").getrlimit(4), "writes": [name for name in ("/", "/app", "/run/secrets", "/opt/venv",
    "/tmp", "/scratch", "/store") if writes(name)], "shared memory": shutil.disk_usage("/dev/shm").total >> 20,
    "token": pathlib.Path("/run/secrets/hf_token").read_text(), "environ": dict(os.environ),
}), flush=True)
input()
"""


@pytest.fixture
def cleared(engine: docker.DockerClient) -> Iterator[None]:
    yield
    for container in engine.containers.list(all=True, filters={"label": f"{LABEL}=walls"}):
        container.remove(force=True)


@pytest.mark.engine
def test_the_walls_of_a_real_container(
    image: str, engine: docker.DockerClient, cleared: None, options: Callable[..., list[str]]
) -> None:
    given = options(HF_TOKEN=TOKEN, TRAINER_DATA="org/images", TRAINER_STORE="out")
    command = [
        "docker",
        "run",
        "-i",
        "--rm",
        "--label",
        f"{LABEL}=walls",
        "--network",
        "none",
        "--entrypoint",
        "python",
    ]
    process = subprocess.Popen(
        [*command, *given, image, "-c", INSIDE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    seen = json.loads(process.stdout.readline())
    (container,) = engine.containers.list(filters={"label": f"{LABEL}=walls"})
    shown = json.dumps(container.attrs)
    process.communicate("\n", timeout=PATIENCE)
    assert TOKEN not in shown
    assert TOKEN not in json.dumps(seen.pop("environ"))
    assert seen.pop("writes") == ["/tmp", "/scratch", "/store"]
    assert seen == {"capabilities": 0, "new privileges": "1", "core": [0, 0], "shared memory": 1024, "token": TOKEN}
    assert container.attrs["HostConfig"]["PidsLimit"] == 4096
