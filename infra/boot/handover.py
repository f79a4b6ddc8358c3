#!/usr/bin/env python3
"""Hands into the container what it cannot fetch: credentials for its run alone, and the metadata service's documents.

Standard library only, for the AMI's own Python. Everything is written whole, below /run/resnet-spot/handover.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

GRANTED_SECONDS = 3600  # AWS grants no more to a role that takes on another
MARGIN_SECONDS = 60  # the file says that the credentials end so long before their end
POLL_SECONDS = 2.0
CONTAINER = "/run/handover"  # the folder as the container sees it
USER = 10001  # of the container
ONCE = ("instance-id", "instance-type", "placement/availability-zone", "instance-life-cycle")
POLLED = ("spot/instance-action", "events/recommendations/rebalance")
MACHINES = "latest/meta-data/"


def session_policy(kind: str, bucket: str, run: str, data: str, files: list[str], partition: str = "aws") -> str:
    """What is left of the run role's permissions for one run: its own files, and its dataset and `files` to read."""
    # These letters mean something to IAM.
    run, data, *files = (re.sub(r"[*?$]", r"${\g<0>}", text) for text in (run, data, *files))
    own = [f"runs/{run}/*", "datasets/*" if kind == "prepare" else f"checkpoints/{run}/*"]
    address = f"s3://{bucket}/"
    read = [data[len(address) :].rstrip("/") + "/*"] if data.startswith(f"{address}datasets/") else []
    read += [file[len(address) :] for file in files if file.startswith(address)]
    arn = f"arn:{partition}:s3:::{bucket}"
    writing = ["s3:GetObject", "s3:PutObject", "s3:PutObjectTagging", "s3:AbortMultipartUpload"]
    statements = [
        (writing, [f"{arn}/{keys}" for keys in own], {}),
        *([("s3:GetObject", [f"{arn}/{keys}" for keys in read], {})] if read else []),
        ("s3:ListBucket", arn, {"Condition": {"StringLike": {"s3:prefix": own + read}}}),
        ("s3:ListBucketMultipartUploads", arn, {}),
    ]
    allowed = [{"Effect": "Allow", "Action": action, "Resource": on, **more} for action, on, more in statements]
    return json.dumps({"Version": "2012-10-17", "Statement": allowed}, separators=(",", ":"))


class Folder:
    """Files that are replaced whole. `user` may read the secret ones."""

    def __init__(self, path: Path, user: int = USER):
        self.path, self.user = path, user

    def write(self, name: str, text: str, mode: int = 0o444) -> None:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f".{file.name}")
        new.unlink(missing_ok=True)
        new.touch(0o600)
        new.write_text(text)
        new.chmod(mode)
        if mode == 0o400:
            os.chown(new, self.user, -1)
        new.replace(file)


class Relay:
    """Copies the documents of the metadata service (IMDSv2)."""

    def __init__(self, url: str, folder: Folder):
        self.url, self.folder = url, folder
        self.opener = build_opener(ProxyHandler({}))
        self.token, self.renew_at, self.looks = "", 0.0, 0

    def ask(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = Request(f"{self.url}/latest/{path}", headers=headers, method=method)
        with self.opener.open(request, timeout=2) as answer:
            return str(answer.read(1 << 16).decode())

    def get(self, path: str) -> str | None:
        if time.monotonic() >= self.renew_at:
            self.token = self.ask("PUT", "api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "21600"})
            self.renew_at = time.monotonic() + 3 * 3600
        try:
            return self.ask("GET", f"meta-data/{path}", {"X-aws-ec2-metadata-token": self.token})
        except HTTPError as error:
            if error.code == 404:
                return None
            self.renew_at = 0.0
            raise

    def look(self) -> None:
        """Copy what is new. Only a look that succeeds renews the file `alive`."""
        for path in POLLED if self.looks else (*ONCE, *POLLED):
            text = self.get(path)
            if text is not None:
                self.folder.write(MACHINES + path, text)
            else:
                (self.folder.path / MACHINES / path).unlink(missing_ok=True)
        self.looks += 1
        self.folder.write("alive", str(self.looks))

    def look_for_ever(self) -> None:
        while True:
            try:
                self.look()
            except Exception as error:  # noqa: BLE001  # whatever it is: the next look may succeed
                print(f"the metadata service: {error!r}", flush=True)
            time.sleep(POLL_SECONDS)


class Credentials:
    """Renews them. `granted` is in seconds, as is `renew`: so long are they used."""

    def __init__(self, folder: Folder, command: list[str], granted: float, renew: float):
        self.folder, self.command, self.granted, self.renew = folder, command, granted, renew
        self.end = 0.0  # by this machine's clock, which need not be right, and may be set meanwhile

    def is_due(self) -> bool:
        return not self.granted - MARGIN_SECONDS - self.renew < self.end - time.time() <= self.granted

    def fetch(self) -> None:
        """Raises CalledProcessError, TimeoutExpired, OSError or ValueError."""
        end = time.time() + self.granted - MARGIN_SECONDS
        told = subprocess.run(self.command, capture_output=True, text=True, timeout=30, check=True).stdout
        answer = json.loads(told)
        granted = answer["Credentials"]
        names = ("AccessKeyId", "SecretAccessKey", "SessionToken")
        until = datetime.fromtimestamp(end, UTC).isoformat()
        value = {"Version": 1, **{name: granted[name] for name in names}, "Expiration": until}
        self.folder.write("credentials.json", json.dumps(value), 0o400)
        if not self.end:
            log(f"the session policy, packed: {answer.get('PackedPolicySize')} % of AWS's limit")
        self.end = end


def hand_over_secret(text: str, names: list[str], folder: Folder) -> None:
    """The secret is a JSON object of parts, or a token alone."""
    parts = json.loads(text) if text.startswith("{") else {"hf_token": text.strip()}
    for name in names:
        if parts.get(name):
            folder.write(name, parts[name], 0o400)


def log(text: str) -> None:
    subprocess.run(["sh", "-c", '. /opt/resnet-spot/lib.sh; log "$1"', "log", text], check=False)


def keep_credentials(credentials: Credentials, retry_seconds: float) -> None:
    failing = 0
    while True:
        if credentials.is_due():
            try:
                credentials.fetch()
                if failing:
                    log("the container's credentials are renewed again")
                failing = 0
            except Exception as error:  # noqa: BLE001  # whatever it is: the next try may succeed
                if failing % 60 == 0:
                    why = str(getattr(error, "stderr", "") or error).strip()
                    log(f"the container's credentials cannot be renewed, trying on: {why}")
                failing += 1
                time.sleep(retry_seconds)
        time.sleep(1)


def main() -> None:
    live, environ = Path("/run/resnet-spot"), os.environ
    if names := sys.argv[1:]:
        hand_over_secret(sys.stdin.read(), names, Folder(live / "secrets"))
        return
    folder = Folder(live / "handover")
    source = f"[default]\ncredential_process = cat {CONTAINER}/credentials.json\n"
    folder.write("aws-config", source)
    url = environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
    threading.Thread(target=Relay(url, folder).look_for_ever, daemon=True).start()
    while not (live / "data").exists():  # the run's script writes it once it has read the spec
        time.sleep(0.1)
    role, bucket = environ["RUN_ROLE"], environ["STORE"][len("s3://") :]
    run, (data, *files) = (live / "run").read_text().strip(), (live / "data").read_text().split("\n")
    policy = session_policy(environ["KIND"], bucket, run, data, files, role.split(":")[1])
    command = ["aws", "sts", "assume-role", "--role-arn", role, "--role-session-name"]
    command += [(live / "instance").read_text().strip(), "--duration-seconds", str(GRANTED_SECONDS)]
    command += ["--policy", policy, "--output", "json", "--region", environ["REGION"]]
    renew = float(environ.get("RENEW_SECONDS", "900"))
    keep_credentials(Credentials(folder, command, GRANTED_SECONDS, renew), float(environ.get("RETRY_SECONDS", "5")))


if __name__ == "__main__":
    main()
