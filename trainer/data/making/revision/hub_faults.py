"""What a Hugging Face hub answers when it does not give the data, told as what it is and with the fix."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from trainer.contract import UserError, check_hub_address
from trainer.text import say

Answer = TypeVar("Answer")

WAITS = (1.0, 3.0)  # seconds before the hub is asked again after a fault
LIMITED_TRIES = 6  # how often a "too many requests" is waited for
LONGEST_WAIT = 900.0  # seconds; the hub counts requests in windows of five minutes


class UnreachableError(UserError):
    """The hub does not answer or is too busy. This may be over in a minute, though nobody does anything."""


@dataclass(frozen=True)
class Account:
    """Who asks the hub for what."""

    data: str  # id, or id@commit
    token: str
    endpoint: str

    @classmethod
    def of(cls, data: str, secrets_dir: str) -> Account:
        """With the token in `<secrets_dir>/hf_token`, else what the hub's client finds. Raises UserError."""
        from huggingface_hub import constants, get_token

        endpoint = check_hub_address(constants.ENDPOINT)
        secret = Path(secrets_dir) / "hf_token" if secrets_dir else None
        given = secret.read_text().strip() if secret and secret.is_file() else ""
        return cls(data, given or get_token() or "", endpoint)

    @property
    def id(self) -> str:
        return self.data.partition("@")[0]

    @property
    def commit(self) -> str:
        """The one that DATA= names; "" where it asks for the newest."""
        return self.data.partition("@")[2]

    @property
    def page(self) -> str:
        return f"{self.endpoint}/datasets/{self.id}"

    @property
    def give(self) -> str:
        return f"make a read token at {self.endpoint}/settings/tokens and give it as HF_TOKEN=… or by `hf auth login`"


def ask_patiently(account: Account, ask: Callable[[], Answer]) -> Answer:
    """The answer, after waits that the hub asks for, and a second try after a fault. What is waited for is said.

    Raises UserError for a refusal, UnreachableError if the hub has a fault or is silent.
    """
    from huggingface_hub.errors import HfHubHTTPError

    faults, limited = list(WAITS), 0
    while True:
        try:
            return ask()
        except Exception as error:  # the client has no common class of errors
            told = refusal(account, error)
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
            if status == 429 and limited < LIMITED_TRIES:
                limited += 1
                wait = _asked_wait(error)
            elif isinstance(told, UnreachableError) and status != 429 and faults and not _is_offline(error):
                wait = faults.pop(0)
            else:
                raise told from error
            say(f"{told}. Waiting {wait:.0f} s")
            time.sleep(wait)


def _asked_wait(error: Exception) -> float:
    """Seconds. The client reads the hub's own header; the other is HTTP's."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # its types forgot it

    headers = error.response.headers  # type: ignore[attr-defined]
    limit = parse_ratelimit_headers(headers)
    seconds = limit.reset_in_seconds + 1 if limit and not limit.remaining else headers.get("Retry-After", "")
    try:
        return min(float(seconds), LONGEST_WAIT)
    except ValueError:  # a date, or nothing
        return 60.0


def _is_offline(error: BaseException) -> bool:
    return type(error).__name__ == "OfflineModeIsEnabled"


def refusal(account: Account, error: BaseException) -> UserError:
    """The error of the hub's client as a message. If it is not about the hub, such as a full disk, it is raised."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    found = _of_answer(account, error) or _of_silence(account, error)
    if found is None:
        raise error
    return found


def _of_answer(account: Account, error: BaseException) -> UserError | None:
    """What the hub said of the dataset, or something in its place; None if nothing answered."""
    from huggingface_hub.errors import (
        DisabledRepoError,
        EntryNotFoundError,
        FileMetadataError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    data, page, hub = f"DATA={account.data}", account.page, f"the hub at {account.endpoint}"
    if isinstance(error, GatedRepoError):
        if not account.token:
            return UserError(f"{data} is gated and no token was found: accept the terms on {page}, then {account.give}")
        return UserError(
            f"{data} is gated and the hub refused this token: accept the terms on {page} with the account that the "
            f"token belongs to, or {account.give}"
        )
    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"{data}: no folder of that name here, and no such dataset at {page} (or it is private): check the "
            f"spelling; for a private dataset {account.give}"
        )
    if isinstance(error, HFValidationError):
        return UserError(
            f"{data}: no folder of that name here, and no dataset can have it: check the spelling ({error})"
        )
    if type(error).__name__ == "XetAuthenticationError":  # of the hub's storage; its package may be missing
        return _of_status(account, 401, str(error))
    if type(error).__name__ == "XetObjectNotFoundError":
        return UserError(f"{data}: {hub} no longer has a part of it (404, {error}): run the same command again")
    if isinstance(error, DisabledRepoError):
        return UserError(f"{data}: {hub} has disabled this dataset: {page} says why; use another copy of it")
    if isinstance(error, RevisionNotFoundError) and account.commit:
        return UserError(f"{data}: the dataset at {page} has no such commit: look for it in the history there")
    if isinstance(error, RevisionNotFoundError | EntryNotFoundError) and isinstance(error, HfHubHTTPError):
        return UserError(f"{data}: {hub} no longer has {error.response.url} (404): run the same command again")
    if isinstance(error, HfHubHTTPError):
        return _of_status(account, error.response.status_code, str(error.server_message or ""))
    if isinstance(error, FileMetadataError) or (isinstance(error, ValueError) and not isinstance(error, UserError)):
        return UserError(
            f"{data}: {hub} answered with something that is not the hub's, such as a web page: look at {page} in a "
            "browser on this machine. A proxy, the login page of a network, or HF_ENDPOINT may be in between"
        )
    return None


def _of_silence(account: Account, error: BaseException) -> UserError | None:
    """Why the hub was not asked or did not answer; None if the error says neither."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    data, hub = f"DATA={account.data}", f"the hub at {account.endpoint}"
    if _is_offline(error):
        return UnreachableError(
            f"{data}: HF_HUB_OFFLINE is set, so the hub is not asked: unset it, or give DATA= a folder of parquet files"
        )
    in_transport = any(kind.__name__ == "TransportError" for kind in type(error).__mro__)  # of the client's library
    # When a connection fails in one thread, the client closes those of all.
    closed = isinstance(error, RuntimeError) and "client has been closed" in str(error)
    if in_transport or closed or isinstance(error, LocalEntryNotFoundError | ConnectionError | TimeoutError):
        return UnreachableError(
            f"{data}: no folder of that name here, and {hub} cannot be reached: check the network, or give DATA= a "
            f"folder of its parquet files{_silence(error)}"
        )
    if type(error) is RuntimeError:  # so the client of the hub's storage tells each of its faults
        return UnreachableError(
            f"{data}: {hub} or its storage did not give the data ({error}): wait and run the same command again"
        )
    return None


def _silence(error: BaseException) -> str:
    kind = type(error).__name__
    if "ProtocolError" in kind:
        return " (it closed the connection without an answer)"
    return " (it was silent for too long)" if kind in ("ReadTimeout", "PoolTimeout", "WriteTimeout") else ""


def _of_status(account: Account, status: int, message: str) -> UserError:
    data, hub = f"DATA={account.data}", f"the hub at {account.endpoint}"
    said = f", {message!r}" if message else ""
    if status == 401:
        return UserError(f"{data}: {hub} refused the token (401{said}): it is wrong or has expired; {account.give}")
    if status == 403:
        return UserError(
            f"{data}: {hub} forbids this (403{said}): the token lacks a permission, such as to read gated "
            f"repositories. Change it at {account.endpoint}/settings/tokens, or {account.give}"
        )
    if status == 429:
        return UnreachableError(
            f"{data}: {hub} has had too many requests (429{said}) from this account or address: wait and run the same "
            f"command again; with a token more are allowed: {account.give}"
        )
    if status >= 500:
        return UnreachableError(
            f"{data}: {hub} has a fault of its own ({status}{said}), which nothing here can mend: wait and run the "
            "same command again"
        )
    return UserError(f"{data}: {hub} answered {status}{said}: look at {account.page}")
