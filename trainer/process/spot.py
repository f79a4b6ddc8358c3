"""What this machine is, and whether it is about to be reclaimed: what EC2's instance metadata service (IMDSv2) says.

On AWS the container cannot reach that service. The boot scripts copy its documents into a folder, which is read then.
Standard library only. Two callbacks are told; what they do is not known here.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

NOTICE_POLL_SECONDS = 5.0  # what AWS recommends; a notice leaves two minutes
TIMEOUT_SECONDS = 1.5
TOKEN_SECONDS = 21600  # the longest that the service grants
BODY_BYTES = 4096
NOTICE = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
MACHINE = {
    "id": "instance-id", "type": "instance-type", "zone": "placement/availability-zone",
    "market": "instance-life-cycle",
}  # fmt: skip
HANDOVER = "TRAINER_HANDOVER_DIR"  # the folder with what the boot scripts hand into the container
ALIVE = "alive"  # the file in it that is written again after each look at the service
STALE_SECONDS = 60.0  # for so long that file may stay as it is
WARNING_SECONDS = 120.0  # from a notice to the reclaim, at most
SECOND_SAVE_SECONDS = 30.0  # so long before the reclaim the last save begins: 90 of the two minutes are trained
FAULTS = (OSError, http.client.HTTPException, ValueError)


def on_ec2(sysfs: Path = Path("/sys")) -> bool:
    """Whether the firmware names EC2: `Amazon EC2` on Nitro and bare metal, a UUID of `ec2…` on the older Xen."""
    try:
        if (sysfs / "class/dmi/id/sys_vendor").read_text().strip() == "Amazon EC2":
            return True
        return (sysfs / "hypervisor/uuid").read_text().lower().startswith("ec2")
    except OSError:
        return False


def endpoint(environ: Mapping[str, str]) -> str:
    """The address of the service, by the variables of every AWS SDK; "" on a machine outside EC2."""
    if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return ""
    named = environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "")
    return named.rstrip("/") or ("http://169.254.169.254" if on_ec2() else "")


class Documents(Protocol):
    """Where the documents are. `where` and `advice` are for messages."""

    where: str
    advice: str
    poll_seconds: float

    def get(self, path: str) -> str | None:
        """A document; None if there is none. Raises OSError, HTTPException or ValueError if nobody can tell."""


def documents(environ: Mapping[str, str]) -> Documents | None:
    """The folder that the boot scripts fill, where one is named, else the service itself; None outside EC2."""
    if folder := environ.get(HANDOVER, ""):
        return Handover(Path(folder))
    return Metadata(url) if (url := endpoint(environ)) else None


class Handover:
    """The service's documents as the boot scripts have copied them into a folder, below their own paths."""

    advice = "see the journal of resnet-spot-handover on the machine"
    poll_seconds = 1.0  # a file costs less than a request

    def __init__(self, folder: Path, stale_seconds: float = STALE_SECONDS):
        self.folder, self.stale_seconds = folder, stale_seconds
        self.where = f"the folder {folder} with the documents of the instance metadata service"
        self.written, self.seen = 0, time.monotonic()

    def get(self, path: str) -> str | None:
        try:
            return (self.folder / path.lstrip("/")).read_text()
        except FileNotFoundError:
            self.check_alive()
            return None

    def check_alive(self) -> None:
        """Raises ValueError if nobody has looked for a while. The time of day does not matter, since it may jump."""
        written = (self.folder / ALIVE).stat().st_mtime_ns
        if written != self.written:
            self.written, self.seen = written, time.monotonic()
        elif (seconds := time.monotonic() - self.seen) > self.stale_seconds:
            raise ValueError(f"it has not been renewed for {seconds:.0f} s")


class Metadata:
    """The service itself."""

    advice = "in a container it needs a hop limit of 2"
    poll_seconds = NOTICE_POLL_SECONDS

    def __init__(self, url: str, token_seconds: int = TOKEN_SECONDS):
        self.url, self.token_seconds = url, token_seconds
        self.where = f"the instance metadata service at {url}"
        self.token, self.renew_at = "", 0.0

    def get(self, path: str) -> str | None:
        for _ in range(2):
            if time.monotonic() >= self.renew_at:
                seconds = {"X-aws-ec2-metadata-token-ttl-seconds": str(self.token_seconds)}
                status, body = self.request("PUT", "/latest/api/token", seconds)
                if status != 200:
                    raise ValueError(f"{status} for a token")
                self.token, self.renew_at = body, time.monotonic() + self.token_seconds / 2
            status, body = self.request("GET", path, {"X-aws-ec2-metadata-token": self.token})
            if status != 401:
                break
            self.renew_at = 0.0  # the token was refused before its time was over
        if status == 404:
            return None
        if status != 200:
            raise ValueError(f"{status} for {path}")
        return body

    def request(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Status and body. http.client ignores proxies, which must not see these requests."""
        url = urlsplit(self.url)
        if not url.hostname:
            raise ValueError("no host in it: it must be like http://169.254.169.254")
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=TIMEOUT_SECONDS)
        try:
            connection.request(method, url.path + path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read(BODY_BYTES).decode()
        finally:
            connection.close()


def describe_machine(source: Documents | None) -> dict[str, str]:
    """This machine's id, type, zone and market (spot or on-demand), for the record of an attempt; {} outside EC2."""
    if source is None:
        return {}
    try:
        return {name: source.get(f"/latest/meta-data/{path}") or "" for name, path in MACHINE.items()}
    except FAULTS:
        return {}


def seconds_to_train(when: str, now: float) -> float:
    """How long training may go on after a notice, by the time in it; 0 if that is near, past, or no time.

    AWS gives two minutes, and the time in UTC (`2026-01-31T12:02:00Z`):
    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    A clock that is wrong must not make it more than what the two minutes leave.
    """
    try:
        at = datetime.fromisoformat(when)
    except ValueError:
        return 0.0
    left = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now
    return max(0.0, min(left, WARNING_SECONDS) - SECOND_SAVE_SECONDS)


class Poller(threading.Thread):
    """Polls until a notice has come, or for ever. A failure of the source is no notice, and is mentioned once."""

    def __init__(
        self,
        source: Documents,
        on_notice: Callable[[str, str], None],
        on_rebalance: Callable[[], None],
        say: Callable[[str], None],
        *,
        poll_seconds: float = 0.0,
    ):
        super().__init__(daemon=True, name="spot")
        self.source, self.poll_seconds = source, poll_seconds or source.poll_seconds
        self.on_notice, self.on_rebalance, self.say = on_notice, on_rebalance, say
        self.recommended = ""  # the time of the last recommendation: a new one has another
        self.complained = False

    def run(self) -> None:
        while not self.poll():
            time.sleep(self.poll_seconds)

    def poll(self) -> bool:
        """Look for a notice, then for a recommendation; True once there is a notice."""
        if (notice := self.ask(NOTICE, "action")) is not None:
            self.on_notice(notice["action"], str(notice.get("time", "a time not told")))
            return True
        recommendation = self.ask(REBALANCE, "noticeTime")
        if recommendation is not None and recommendation["noticeTime"] != self.recommended:
            self.recommended = recommendation["noticeTime"]
            self.on_rebalance()
        return False

    def ask(self, path: str, name: str) -> dict[str, Any] | None:
        """A JSON object with this field; None if there is none, or if the service fails."""
        try:
            return self.get(path, name)
        except FAULTS as error:
            if not self.complained:
                self.complained = True
                self.say(
                    f"{self.source.where} fails ({type(error).__name__}: {error}): "
                    f"a spot notice would go unseen; trying on ({self.source.advice})"
                )
            return None

    def get(self, path: str, name: str) -> dict[str, Any] | None:
        if (body := self.source.get(path)) is None:
            return None
        answer = json.loads(body)
        if not (isinstance(answer, dict) and isinstance(answer.get(name), str)):
            raise ValueError(f"{body[:80]!r} for {path}")
        return answer
