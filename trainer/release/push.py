"""Uploads a release folder to the Hugging Face Hub, as one commit, and says what the hub answers where it refuses.

Nothing here is called unless --push was typed.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from trainer.contract import UserError, check_hub_address
from trainer.release.folder import FORM_FILES, README_FILE, RELEASE_FILES, read_released
from trainer.release.readme import TIMM_SOURCE, WHERE_TO_RUN, WHERE_TO_RUN_OF_HUB
from trainer.text import say

T = TypeVar("T")
HUB_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
HUB_OWN_FILES = frozenset({".gitattributes"})  # every repository begins with it


@dataclass(frozen=True)
class Destination:
    """A repository of the hub, there or not, and who asks for it."""

    repository: str  # owner/name
    endpoint: str
    token: str  # never shown

    @property
    def page(self) -> str:
        return f"{self.endpoint}/{self.repository}"

    @property
    def give(self) -> str:
        return f"make a token that may write at {self.endpoint}/settings/tokens and give it as HF_TOKEN=…"


@dataclass(frozen=True)
class Present:
    """A repository that is there."""

    is_private: bool
    commit: str  # the newest
    files: tuple[str, ...]


def find_destination(repository: str, secrets_dir: str) -> Destination:
    """With the token of `<secrets_dir>/hf_token`, else HF_TOKEN, else that of `hf auth login`. Raises UserError."""
    from huggingface_hub import constants, get_token

    if not re.fullmatch(HUB_NAME, repository):
        raise UserError(f"--push {repository!r} is no name of the hub: write owner/name, for example somebody/resnet50")
    endpoint = check_hub_address(constants.ENDPOINT)
    try:
        secret = Path(secrets_dir) / "hf_token" if secrets_dir else None
        token = (secret.read_text("utf-8").strip() if secret and secret.exists() else "") or get_token() or ""
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        file = (error.filename if isinstance(error, OSError) else None) or secret or constants.HF_TOKEN_PATH
        raise UserError(
            f"--push {repository}: the token in {str(file)!r} cannot be read ({why}): mend or remove that file"
        ) from None
    found = Destination(repository, endpoint, token)
    if not token:
        raise UserError(f"--push {repository}: no token was found: {found.give} or by `hf auth login`")
    if not re.fullmatch(r"[!-~]+", token):
        raise UserError(f"--push {repository}: the token has letters that none has (it is not shown): {found.give}")
    return found


def look_up(destination: Destination) -> Present | None:
    """What is at the destination; None where nothing is that this token may see. Raises UserError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi(endpoint=destination.endpoint, token=destination.token)
    try:
        info = asked(destination, lambda: api.model_info(destination.repository))
    except UserError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):
            return None
        raise
    names = tuple(sorted(file.rfilename for file in info.siblings or ()))
    return Present(bool(info.private), str(info.sha), tuple(name for name in names if name not in HUB_OWN_FILES))


def agree_to_overwrite(destination: Destination, present: Present | None, *, public: bool, yes: bool) -> None:
    """Ask before anything that is there is overwritten or shown to everybody. Raises UserError where it may not be."""
    if present is None:
        return
    if not present.is_private and not public:
        raise UserError(
            f"{destination.page} is public, so everybody would see these weights: add --public if you mean that, make "
            f"it private at {destination.page}/settings, or push to another name"
        )
    if not present.files or yes:
        return
    what = f"{destination.page} is there, with {len(present.files)} files ({', '.join(present.files[:4])})"
    if sys.stdin is None or not sys.stdin.isatty():
        raise UserError(f"{what}: add --yes to overwrite them, or push to another name")
    say(f"{what}. Overwrite them? Type yes:")
    if sys.stdin.readline().strip() != "yes":
        raise UserError(f"{what}: nothing was pushed; push to another name, or answer yes")


def push_folder(folder: Path, destination: Destination, present: Present | None, *, public: bool) -> str:
    """Upload a release folder as one commit; a repository that is not there is made. Returns the commit's address.

    Files of an earlier release that this one lacks go. Raises UserError.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    api = HfApi(endpoint=destination.endpoint, token=destination.token)
    name = destination.repository
    if not sys.stderr.isatty():
        disable_progress_bars()
    files = files_to_push(folder, name)
    stale = RELEASE_FILES.intersection(present.files if present else ()) - files.keys()
    operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationDelete(one) for one in sorted(stale)]
    operations += [CommitOperationAdd(file, body) for file, body in files.items()]
    if present is None:
        asked(destination, lambda: api.create_repo(name, private=not public))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        warnings.simplefilter("ignore", DeprecationWarning)  # of the client's use of its own libraries
        commit = asked(destination, lambda: api.create_commit(
            name, operations, commit_message="Release by resnet-spot", parent_commit=present.commit if present else None
        ))  # fmt: skip
    for warning in told:
        say(f"note: the hub says: {warning.message}")
    return str(commit.commit_url)


def files_to_push(folder: Path, repository: str) -> dict[str, str | bytes]:
    """By name: the text of the README as it is to be on the hub, and the paths of the other files.

    Users may have changed them, so all are read before the hub is told anything. Raises UserError.
    """
    fix = "mend it, or make the release anew with --replace"
    read_released(folder)
    found: dict[str, str | bytes] = {}
    for path in sorted(folder.iterdir()):
        try:
            with path.open("rb") as file:
                found[path.name] = (
                    readme_for_hub(file.read().decode(), repository).encode() if path.name == README_FILE else str(path)
                )
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--push {repository}: {str(path)!r} cannot be read ({error}): {fix}") from error
    if README_FILE not in found:
        raise UserError(f"--push {repository}: {str(folder)!r} has no {README_FILE}: {fix}")
    if found.keys().isdisjoint(FORM_FILES.values()):
        raise UserError(f"--push {repository}: {str(folder)!r} has no weights: {fix}")
    return found


def readme_for_hub(text: str, repository: str) -> str:
    """The README, with lines for timm that load from the hub."""
    if f'"{TIMM_SOURCE}"' in text:
        text = text.replace(WHERE_TO_RUN, WHERE_TO_RUN_OF_HUB)
    return text.replace(f'"{TIMM_SOURCE}"', f'"hf-hub:{repository}"')


def asked(destination: Destination, ask: Callable[[], T]) -> T:
    """The answer of the hub. Raises UserError that says why there is none, with the client's error as its cause."""
    try:
        return ask()
    except Exception as error:  # the client has no common class of errors
        cause = error
        while type(cause) is RuntimeError and isinstance(cause.__cause__, Exception):  # of a file among several
            cause = cause.__cause__
        told = refusal_of_hub(destination, cause)
        if told is None:
            raise
        raise UserError(told.replace(destination.token, "…")) from cause


def refusal_of_hub(destination: Destination, error: Exception) -> str | None:
    """An error of the hub's client as a message; None if it is not about the hub."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    push, hub = f"--push {destination.repository}", f"the hub at {destination.endpoint}"
    if isinstance(error, HfHubHTTPError):
        return _of_answer_to_push(destination, error.response.status_code, str(error.server_message or ""))
    if isinstance(error, HFValidationError):
        return f"{push}: no repository can have this name ({error})"
    if type(error).__name__ == "OfflineModeIsEnabled":
        return f"{push}: HF_HUB_OFFLINE is set, so the hub is not asked: unset it"
    if type(error).__name__.startswith("Xet") or type(error) is RuntimeError:  # of the hub's storage
        return f"{push}: the storage of {hub} did not take the files ({error}): run the same command again"
    in_transport = any(kind.__name__ == "TransportError" for kind in type(error).__mro__)
    if in_transport or isinstance(error, ConnectionError | TimeoutError):
        return f"{push}: {hub} cannot be reached ({type(error).__name__}): check the network, and run it again"
    if isinstance(error, ValueError) and "README.md" in str(error):
        return f"{push}: {hub} does not take the README.md ({error}): another --license may be what it wants"
    if isinstance(error, ValueError) and not isinstance(error, UserError):
        return f"{push}: {hub} answered with what is not the hub's, such as a web page: look at {destination.page}"
    return None


def _of_answer_to_push(destination: Destination, status: int, message: str) -> str:
    push, hub = f"--push {destination.repository}", f"the hub at {destination.endpoint}"
    said = f"{status}, {message!r}" if message else str(status)
    owner = destination.repository.partition("/")[0]
    fixes = {
        401: f"{hub} refused the token ({said}): it is wrong or has expired; {destination.give}",
        403: f"{hub} forbids this ({said}): the token may not write there, or its account does not belong to {owner}; "
        f"{destination.give}, or push to a name of your own",
        404: f"{hub} has no such repository, or this token may not see it ({said}): look at {destination.page}",
        409: f"the name is taken, and this token may not see by what ({said}): push to another name",
        412: f"somebody has changed {destination.page} meanwhile ({said}), so nothing was overwritten: look at it, and "
        "run the same command again",
        429: f"{hub} has had too many requests ({said}): wait and run the same command again",
    }
    if status >= 500:
        return f"{push}: {hub} has a fault of its own ({said}): wait and run the same command again"
    return f"{push}: {fixes.get(status, f'{hub} answered {said}: look at {destination.page}')}"
