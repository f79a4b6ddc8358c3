"""A webhook: its address, which is a secret, the message in the form that it takes, and one request to it.

Whoever knows the address may write to the channel. So it stands in no message, error or log, and neither does what the
server answers. Redirects are not followed. The text of an alert is escaped, and can mention nobody.
"""

from __future__ import annotations

import ipaddress
import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib import request
from urllib.error import HTTPError
from urllib.parse import SplitResult, urlsplit

from trainer.alerts import Alert
from trainer.contract import RunEnv, UserError
from trainer.text import show_name

WEBHOOK_VARIABLE, FORM_VARIABLE = "TRAINER_WEBHOOK", "TRAINER_WEBHOOK_FORM"
WEBHOOK_FILE = "webhook"  # in the folder of secrets
MESSAGE_FORMS = ("slack", "discord", "json")
MOST_ADDRESS_LETTERS = 2_000
MOST_ALERT_LETTERS = 1_000
MOST_DISCORD_LETTERS = 2_000  # Discord refuses longer messages
PACKET_SECONDS = 10.0  # for one packet; REQUEST_SECONDS for all of them
REQUEST_SECONDS = 15.0
LONGEST_WAIT_SECONDS = 60.0  # a server that asks for a longer pause is not asked again
MAKE_IT = "make one in Slack (Incoming Webhooks) or Discord (Integrations), or name a server of yours"


@dataclass(frozen=True)
class Webhook:
    """Where alerts go. Its text has no address, so that no message can have it by accident."""

    url: str = field(repr=False)
    form: str


class RefusedAlertError(Exception):
    """The webhook did not take an alert. `pause`: seconds until another try; None: another try is of no use."""

    def __init__(self, why: str, pause: float | None = None):
        super().__init__(why)
        self.pause = pause


def find_webhook(environ: Mapping[str, str]) -> Webhook | None:
    """The webhook of the secret file, or else of the environment; None where neither names one.

    Raises UserError for an address that is none, or that may not be used. It does not repeat the address.
    """
    url, where = webhook_url(environ)
    if not url:
        return None
    parts = check_webhook_url(url, where)
    form = environ.get(FORM_VARIABLE, "") or _form_of(parts)
    if form not in MESSAGE_FORMS:
        raise UserError(f"{FORM_VARIABLE}={form!r} is no form of a message: use one of {', '.join(MESSAGE_FORMS)}")
    return Webhook(url, form)


def webhook_url(environ: Mapping[str, str]) -> tuple[str, str]:
    """The address, or "", and where it was found. Raises UserError if the file cannot be read."""
    folder = environ.get(RunEnv.variable("secrets_dir"), "")
    if folder:
        path = Path(folder) / WEBHOOK_FILE
        try:
            with path.open("rb") as file:
                text = file.read(MOST_ADDRESS_LETTERS + 100).decode(errors="replace").strip()
        except FileNotFoundError:
            pass
        except OSError as error:
            why = f"the webhook's address cannot be read from {show_name(path)} ({error.strerror})"
            raise UserError(f"{why}: let this user read the file, or remove it") from None
        else:
            return text, f"the file {show_name(path)}"
    return environ.get(WEBHOOK_VARIABLE, "").strip(), WEBHOOK_VARIABLE


def check_webhook_url(url: str, where: str) -> SplitResult:
    """The parts of the address. Raises UserError, without the address, if an alert may not be sent there."""
    wrong = f"{where} has {len(url)} letters, which are no address of a webhook"
    if len(url) > MOST_ADDRESS_LETTERS or not re.fullmatch(r"[!-~]+", url):
        raise UserError(f"{wrong}: it is one word of at most {MOST_ADDRESS_LETTERS:,} plain letters; {MAKE_IT}")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("https", "http"):
        raise UserError(f"{wrong}: it begins with https:// and the name of a host; {MAKE_IT}")
    if "@" in parts.netloc:
        raise UserError(f"{wrong}: it may have no user and password before the host; {MAKE_IT}")
    if parts.scheme == "http" and not _is_loopback(host):
        raise UserError(f"{where} is an address without TLS, where others could read it: use https://")
    return parts


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _form_of(parts: SplitResult) -> str:
    host = parts.hostname or ""
    if host in ("hooks.slack.com", "hooks.slack-gov.com"):
        return "slack"
    is_discord = any(host == name or host.endswith(f".{name}") for name in ("discord.com", "discordapp.com"))
    return "discord" if is_discord else "json"


def message(alert: Alert, form: str, more: int = 0) -> bytes:
    """The body of the request. `more` alerts before this one were not sent."""
    text = show_name(alert.text[: MOST_ALERT_LETTERS + 1])
    text = text if len(text) <= MOST_ALERT_LETTERS else f"{text[: MOST_ALERT_LETTERS - 1]}…"
    if form == "json":
        value: dict[str, object] = {
            "run": alert.run_id,
            "id": alert.id,
            "kind": alert.kind,
            "level": alert.level,
            "text": text,
        }
        return json.dumps(value | {"step": alert.step, "time": alert.time, "not_sent_before": more}).encode()
    missing = f" ({more} alerts before this one were not sent)" if more else ""
    line = f"{alert.level.upper()}, run {alert.run_id}, step {alert.step}, {alert.kind}: {text}{missing}"
    line = line.replace("@", "@\u200b")  # Mattermost, which takes Slack's form, would tell everyone of @channel
    if form == "slack":
        line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        unparsed = {"mrkdwn": False, "parse": "none", "link_names": False}
        return json.dumps({"text": line, **unparsed, "unfurl_links": False, "unfurl_media": False}).encode()
    line = re.sub(r"([\\*_~`|<>\[\]()#:-])", r"\\\1", line)
    if len(line) > MOST_DISCORD_LETTERS:
        line = line[: MOST_DISCORD_LETTERS - 1].rstrip("\\") + "…"
    suppress_embeds = 4
    return json.dumps({"content": line, "allowed_mentions": {"parse": []}, "flags": suppress_embeds}).encode()


class Post:
    """One request in a thread of its own: a server can make a client wait in places that have no timeout.

    `changed` is told when there is an answer. Raises RefusedAlertError where this machine has no thread left.
    """

    def __init__(self, webhook: Webhook, body: bytes, changed: threading.Condition | None = None) -> None:
        self.changed = changed or threading.Condition()
        self.answer: list[RefusedAlertError | None] = []
        try:
            threading.Thread(target=self._send, args=(webhook, body), daemon=True, name="webhook").start()
        except RuntimeError as error:
            raise RefusedAlertError(f"it cannot be asked ({error})", pause=0) from None

    def _send(self, webhook: Webhook, body: bytes) -> None:
        answer = _sent(webhook, body)
        with self.changed:
            self.answer.append(answer)
            self.changed.notify_all()

    def wait(self, seconds: float, end: Callable[[], float] = lambda: float("inf")) -> None:
        """Raises RefusedAlertError unless the webhook has taken the message by then, or by the monotonic time `end`,
        which may come nearer while this waits."""
        began = time.monotonic()
        with self.changed:
            while not self.answer and (left := min(began + seconds, end()) - time.monotonic()) > 0:
                self.changed.wait(left)
            failure = self.answer[0] if self.answer else _no_answer(time.monotonic() - began)
        if failure:
            raise failure

    @property
    def is_stuck(self) -> bool:
        return not self.answer


def _sent(webhook: Webhook, body: bytes) -> RefusedAlertError | None:
    """Send the message, and return why it was not taken. No error here keeps the address in its text or its chain."""
    opener = request.OpenerDirector()
    # Without TLS the address would be readable by a proxy. No handler follows a redirect.
    proxies = request.ProxyHandler({} if webhook.url.startswith("http:") else None)
    for handler in (
        proxies, request.HTTPHandler(), request.HTTPSHandler(), request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
    ):  # fmt: skip
        opener.add_handler(handler)
    headers = {"Content-Type": "application/json", "User-Agent": "resnet-spot", "Accept-Encoding": "identity"}
    try:
        asked = request.Request(webhook.url, data=body, headers=headers, method="POST")
        with opener.open(asked, timeout=PACKET_SECONDS):  # what it answers is not read
            return None
    except HTTPError as error:
        error.close()
        return _refused(error.code, error.headers.get("Retry-After", "") if error.headers else "")
    except Exception as error:  # noqa: BLE001  # whatever it is, its text may have the address
        return _unreachable(error)


def _no_answer(seconds: float) -> RefusedAlertError:
    return RefusedAlertError(f"it did not answer within {seconds:.0f} s", pause=0)


def _unreachable(error: Exception) -> RefusedAlertError:
    why = getattr(error, "reason", error)
    if isinstance(why, TimeoutError):
        return _no_answer(PACKET_SECONDS)
    if isinstance(why, ssl.SSLCertVerificationError):
        return RefusedAlertError("its certificate is not valid")
    # The text of an error may have the address in it. The system's own words for a number have not.
    said = why.strerror if isinstance(why, OSError) and isinstance(why.strerror, str) else type(why).__name__
    return RefusedAlertError(f"it cannot be reached ({show_name(said[:100])})", pause=0)


def _refused(code: int, retry_after: str) -> RefusedAlertError:
    if code == 429 or code == 503:
        asked = float(retry_after) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", retry_after) else 0.0
        if asked > LONGEST_WAIT_SECONDS:
            return RefusedAlertError(f"it answered {code}, and asks to wait {asked:,.0f} s")
        return RefusedAlertError(f"it answered {code}", pause=asked)
    if code >= 500 or code == 408:
        return RefusedAlertError(f"it answered {code}", pause=0)
    if 300 <= code < 400:
        return RefusedAlertError(f"it answered {code}, a redirect, which is not followed: give the final address")
    hints = {400: f"{FORM_VARIABLE} may name another form", 404: "it was removed, or its address is mistyped"}
    return RefusedAlertError(f"it answered {code}{': ' + hints[code] if code in hints else ''}")
