"""`make docker-train`: train in the image, with what the run needs of this machine and nothing else.

Secrets are files in a private folder, which the container sees read-only and which is removed at the end: no variable
of the container, no argument and no layer of an image has them. Standard library only.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import unquote, urlsplit

from trainer.alerts.webhook import FORM_VARIABLE, WEBHOOK_FILE, WEBHOOK_VARIABLE
from trainer.contract import DRAIN_SECONDS, Exit, RunEnv, UserError
from trainer.process.counts import PROCESSES
from trainer.process.scratch import open_scratch
from trainer.recipes.named import default_data
from trainer.text import filter_tracebacks, say, show_name
from trainer.words import split_words

SECRETS = "/run/secrets"  # in the container
AWS_FILE = "aws-credentials"
AWS_KEYS = {  # a variable of this machine, and its name in a file of credentials
    "AWS_ACCESS_KEY_ID": "aws_access_key_id",
    "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
    "AWS_SESSION_TOKEN": "aws_session_token",
}
SETTINGS = (  # no secrets
    "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION", FORM_VARIABLE, PROCESSES,
    *(RunEnv.variable(name) for name in ("nodes", "rendezvous", "address", "node")),
)  # fmt: skip
WALLS = (
    "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--read-only",
    "--tmpfs", "/tmp:exec,mode=1777,size=4g", "--pids-limit", "4096", "--ulimit", "core=0",
    "--shm-size", "1g",  # NCCL between several GPUs; snapshots need none, nor the host's (--ipc=host)
)  # fmt: skip
PASS_ON_SECONDS = 0.2


def run_options(environ: Mapping[str, str], secrets: Path) -> list[str]:
    """The options of `docker run` for this user's variables. Writes the secrets. Raises UserError."""
    scratch = open_scratch(environ["TRAINER_SCRATCH_DIR"])
    store, data = store_options(environ["TRAINER_STORE"]), data_options(environ["TRAINER_DATA"])
    source = environ["TRAINER_DATA"] or default_data(environ["RECIPE"])
    options = [*WALLS, "--user", f"{os.getuid()}:{os.getgid()}", "-e", "TRAINER_RUN_ID"]
    options += ["-t"] * os.isatty(2) + ["--gpus", "all"] * bool(shutil.which("nvidia-smi"))
    if is_local(environ.get("AWS_ENDPOINT_URL", "")) or environ.get(RunEnv.variable("nodes"), "1") != "1":
        options += ["--network", "host"]  # else its localhost is another one, and other machines do not reach it
    for name in SETTINGS:
        options += ["-e", name]
    handed = {WEBHOOK_FILE: environ.get(WEBHOOK_VARIABLE, "")}
    if "-v" not in data and source != "digits" and not source.startswith("s3://"):  # else no hub is asked
        handed["hf_token"] = environ.get("HF_TOKEN", "")
    options += secret_options(handed, secrets)
    if environ["TRAINER_STORE"].startswith("s3://") or environ["TRAINER_DATA"].startswith("s3://"):
        options += aws_options(environ, secrets, scratch)
    return [*options, "-v", f"{secrets}:{SECRETS}:ro", "-v", mounted(scratch, "/scratch"), *store, *data]


def absolute(folder: str) -> Path:
    """Without '..' and '.', but with the links that the user named."""
    return Path(os.path.normpath(Path(folder).absolute()))


def mounted(folder: Path, place: str, mode: str = "") -> str:
    """The value of -v. Raises UserError for a folder that docker would read as two."""
    if ":" in str(folder):
        raise UserError(f"docker takes no folder with ':' in its name, {show_name(folder)}: rename it, or link to it")
    return f"{folder}:{place}{mode}"


def store_options(store: str) -> list[str]:
    """STORE= as the container sees it: a folder of this machine is made, and mounted."""
    if store.startswith("file:///"):
        store = unquote(store.removeprefix("file://"))
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", store):
        return ["-e", "TRAINER_STORE"]
    folder = absolute(store)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"STORE={store!r} cannot be made ({error}): name a folder of yours, or s3://…") from error
    return ["-e", "TRAINER_STORE=/store", "-v", mounted(folder, "/store")]


def data_options(data: str) -> list[str]:
    """DATA= as the container sees it: a folder of this machine keeps its name, which the prepared data has, too."""
    if not data or not Path(data).is_dir():
        return ["-e", "TRAINER_DATA"]
    folder = absolute(data)
    place = f"/data/{folder.name}"
    return ["-e", f"TRAINER_DATA={place}", "-v", mounted(folder, place, ":ro")]


def is_local(address: str) -> bool:
    """Whether the address leads to this machine itself, where a container with its own network finds only itself."""
    if not (host := urlsplit(address).hostname):
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        found = {ip_address(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except (OSError, ValueError):  # no such name, or none that could be one
        return False
    return any(one.is_loopback or one.is_unspecified for one in found)


def secret_options(handed: Mapping[str, str], secrets: Path) -> list[str]:
    """What is not empty, each as a file of its name: the hub's token, the webhook."""
    if not (given := {name: text for name, text in handed.items() if text}):
        return []
    for name, text in given.items():
        write_secret(secrets / name, text)
    return ["-e", f"TRAINER_SECRETS_DIR={SECRETS}"]


def aws_options(environ: Mapping[str, str], secrets: Path, scratch: Path) -> list[str]:
    """AWS keys of the environment as a file of credentials; without any, this user's profiles."""
    if keys := {name: environ[name] for name in AWS_KEYS if environ.get(name)}:
        if spoilt := [name for name, value in keys.items() if not re.fullmatch(r"[!-~]+", value)]:
            raise UserError(f"{', '.join(spoilt)} has a space or a line break, which no key of AWS has: set it again")
        lines = ["[default]", *(f"{AWS_KEYS[name]} = {value}" for name, value in keys.items())]
        write_secret(secrets / AWS_FILE, "\n".join([*lines, ""]))
        return ["-e", f"AWS_SHARED_CREDENTIALS_FILE={SECRETS}/{AWS_FILE}"]
    folder = Path("~/.aws").expanduser()
    if not folder.is_dir():
        return []
    (scratch / ".aws").mkdir(exist_ok=True)  # docker would make it as root
    return ["-e", "AWS_PROFILE", "-e", "AWS_DEFAULT_PROFILE", "-v", mounted(folder, "/scratch/.aws", ":ro")]


def write_secret(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w") as file:
        file.write(text)


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only this user can read, in memory where the system has a place for that. Raises UserError."""
    memory = os.environ.get("XDG_RUNTIME_DIR", "")  # after `su` it may be another user's
    is_usable = memory and Path(memory).is_dir() and os.access(memory, os.W_OK | os.X_OK)
    try:
        folder = Path(tempfile.mkdtemp(prefix="resnet-spot-", dir=memory if is_usable else None))
    except OSError as error:
        raise UserError(f"no folder for the secrets can be made ({error}): set TMPDIR to a folder of yours") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class PassedOn:
    """Signals for this process wait here until the container can be told of them."""

    def __init__(self) -> None:
        self.waiting: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup has SIGHUP ignored
                signal.signal(number, lambda number, _: self.waiting.append(number))

    def pass_on(self, container: Path) -> None:
        """Send them to the container that the file names, as soon as there is one."""
        with suppress(OSError):
            id = container.read_text()
            while id and self.waiting:
                command = ["docker", "kill", "--signal", str(self.waiting[0]), id]
                if subprocess.run(command, capture_output=True, check=False, process_group=0).returncode:
                    return
                del self.waiting[0]


def find_image(name: str) -> str:
    """The id of the image. Raises UserError if the engine has none of that name."""
    if name.startswith("-"):
        raise UserError(f"IMAGE={name!r} is no name of an image: it begins with a letter or a digit")
    try:
        found = subprocess.run(
            ["docker", "image", "inspect", "-f", "{{.Id}}", name], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise UserError(
            f"docker cannot be started ({error}): install Docker, https://docs.docker.com/engine"
        ) from error
    if found.returncode:
        raise UserError(f"no image {show_name(name)} here ({found.stderr.strip()}): make image")
    return found.stdout.strip()


def run_container(environ: Mapping[str, str]) -> int:
    """Run the container to its end, and return its exit code. Raises UserError."""
    signals = PassedOn()
    image = environ["IMAGE"]
    try:
        id = find_image(image)
    except UserError:
        if not signals.waiting:
            raise
        say("stopped before the container was started")  # Ctrl-C ended docker, too: its answer tells nothing
        return Exit.INTERRUPTED
    words = [environ["RECIPE"], *split_words(environ.get("ARGS", ""))]
    with private_folder() as secrets, private_folder() as own:
        options = run_options(environ, secrets)
        command = ["docker", "run", "--rm", "--cidfile", str(own / "id"), "--stop-timeout", str(DRAIN_SECONDS + 10)]
        command += ["-e", f"TRAINER_IMAGE={id}", *options, image, *words]
        # In a group of its own: Ctrl-C comes here alone, and the container is told once.
        with subprocess.Popen(command, process_group=0) as process:
            signal.signal(signal.SIGWINCH, lambda number, _: process.send_signal(number))
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(PASS_ON_SECONDS)
                signals.pass_on(own / "id")


def main() -> int:
    try:
        return run_container(os.environ)
    except UserError as error:
        say(f"error: {error}")
        return Exit.USER


if __name__ == "__main__":
    filter_tracebacks()
    sys.exit(main())
