"""Datasets of a Hugging Face hub: one revision for the whole preparation, downloaded into the hub's own cache.

What the hub answers when it does not give the data becomes a message in `hub_faults`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.contract import UserError
from trainer.data.format import Origin
from trainer.data.making.revision.hub_faults import Account, UnreachableError, ask_patiently
from trainer.data.making.revision.ledger import Rows
from trainer.data.making.revision.manifest import Chosen, Files, Known, SourceMemory, know_folder
from trainer.data.making.revision.patterns import fetch_patterns
from trainer.data.progress import ProgressListener
from trainer.text import say, show_bytes, show_name

ANSWER_SECONDS = 60.0  # for the listing
FILES_NAMED = 3


@dataclass(frozen=True)
class HubFile:
    path: str
    bytes: int
    oid: str  # git's: of the file, or of the pointer to it
    sha256: str  # of the content; "" if the listing does not have it

    def is_content(self, sha256: str, file: Path) -> bool:
        """Whether a file of this many bytes, with this hash, is the one that the hub lists."""
        if self.sha256:
            return sha256 == self.sha256
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {self.bytes}\n".encode()
        return self.oid == _git_oid(pointer) or self.oid == _git_oid(file.read_bytes())


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Revision:
    """All files of one commit of a dataset."""

    account: Account
    commit: str
    files: tuple[HubFile, ...]
    unasked: str = ""  # why the hub was not asked whether this is the newest commit

    @property
    def data(self) -> str:
        return self.account.data

    def origin(self, groups: Files) -> Origin:
        """What the files of these splits are: the same for two commits that do not differ in them."""
        listed = {file.path: file for file in self.files}
        chosen = [(split, [listed[path] for path in paths]) for split, paths in groups.items()]
        content = [(split, [(file.path, file.bytes, file.oid) for file in files]) for split, files in chosen]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        sizes = [file.bytes for _, files in chosen for file in files]
        return Origin("hub", digest, len(sizes), sum(sizes), self.commit)


def find_revision(data: str, secrets_dir: str) -> Revision:
    """The commit that DATA= names, or the newest. If the hub does not answer, one that this machine has downloaded.

    Raises UserError if the hub refuses, UnreachableError if it does not answer and nothing was downloaded.
    """
    from huggingface_hub import HfApi, constants

    account = Account.of(data, secrets_dir)
    api = HfApi(endpoint=constants.ENDPOINT, token=account.token or False)
    try:
        info = ask_patiently(account, lambda: api.dataset_info(
            account.id, revision=account.commit or None, files_metadata=True, timeout=ANSWER_SECONDS
        ))  # fmt: skip
    except UnreachableError as error:
        if found := _downloaded(account, str(error)):
            which = "downloaded" if account.commit else "downloaded last"
            say(f"{found.unasked}. Using commit {found.commit[:12]}, which this machine {which}")
            return found
        raise
    files = (
        HubFile(file.rfilename, int(file.size or 0), str(file.blob_id), file.lfs.sha256 if file.lfs else "")
        for file in info.siblings or ()
    )
    return Revision(account, str(info.sha), tuple(sorted(files, key=lambda file: file.path)))


def _downloaded(account: Account, why: str) -> Revision | None:
    from huggingface_hub import HfApi, constants, get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, RevisionResolutionError

    cache = constants.HF_HUB_CACHE
    try:
        commit = account.commit or HfApi().resolve_revision(
            account.id, repo_type="dataset", cache_dir=cache, local_files_only=True
        ).resolved  # fmt: skip
        listing = get_cached_repo_tree(account.id, repo_type="dataset", revision=commit, cache_dir=cache)
    except RevisionResolutionError:
        return None
    except CachedRepoTreeNotFoundError as error:
        folder = _snapshot(account, commit)
        if not folder.is_dir():
            return None
        raise UserError(
            f"{why}. There is a cache of commit {commit[:12]}, but without the list of its files, so nobody knows "
            f"whether it is complete. If you know that it is, give DATA={folder}"
        ) from error
    files = (HubFile(file.path, file.size, file.blob_id, "") for file in listing)
    return Revision(account, commit, tuple(sorted(files, key=lambda file: file.path)), why)


def _storage(account: Account) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=account.id, repo_type="dataset")


def _snapshot(account: Account, commit: str) -> Path:
    return _storage(account) / "snapshots" / commit


def fetch_files(revision: Revision, paths: Collection[str], progress: ProgressListener | None = None) -> Path:
    """The folder that has these files of a revision, each with as many bytes as the hub lists.

    What is in the hub's cache is not downloaded again. `progress` is told of bytes when they arrive and when they are
    written. Raises UserError that says what is missing if the hub does not answer.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars, tqdm

    account, folder = revision.account, _snapshot(revision.account, revision.commit)
    paths = frozenset(paths)
    wanted = [file for file in revision.files if file.path in paths]
    missing = [file for file in wanted if not _has(folder, file)]
    if not missing:
        return folder
    if revision.unasked:
        raise UnreachableError(
            f"{revision.unasked}. The cache of commit {revision.commit[:12]} is not complete: {len(missing)} of "
            f"{len(wanted)} files are missing, {show_bytes(sum(file.bytes for file in missing))} ({_few(missing)})"
        )
    for file in missing:
        forget(revision, file.path)  # it has another size
    if not sys.stderr.isatty():
        disable_progress_bars()

    class Bar(tqdm):  # the hub's client reports progress in no other way
        def __init__(self, *arguments: Any, desc: str | None = None, **keywords: Any) -> None:
            super().__init__(*arguments, desc=desc and show_name(desc[:80]), **keywords)  # type: ignore[no-untyped-call]

        def update(self, count: float | None = 1) -> bool | None:
            if progress is not None and count:
                progress(int(count))
            shown: bool | None = super().update(count)
            return shown

    allow, ignore = fetch_patterns(paths, {file.path for file in revision.files} - paths)

    def fetch() -> str:
        return snapshot_download(
            account.id,
            repo_type="dataset",
            revision=revision.commit,
            endpoint=constants.ENDPOINT,
            cache_dir=constants.HF_HUB_CACHE,
            allow_patterns=allow,
            ignore_patterns=ignore,
            token=account.token or False,
            tqdm_class=Bar,
        )

    ask_patiently(account, fetch)
    if missing := [file for file in wanted if not _has(folder, file)]:
        raise UnreachableError(
            f"DATA={account.data}: {len(missing)} of {len(wanted)} files did not arrive whole from {account.endpoint} "
            f"({_few(missing)}): run the same command again"
        )
    return folder


def _has(folder: Path, file: HubFile) -> bool:
    try:
        return (folder / file.path).stat().st_size == file.bytes
    except (FileNotFoundError, NotADirectoryError):
        return False


def _few(files: Sequence[HubFile]) -> str:
    names = [file.path for file in files]
    return ", ".join(names[:FILES_NAMED]) + (", …" if len(names) > FILES_NAMED else "")


def read_text_file(revision: Revision, path: str) -> str:
    """A small text file of a revision, as the hub lists it. Raises UserError."""
    (listed,) = (file for file in revision.files if file.path == path)
    tries = 0
    while True:
        file = fetch_files(revision, [path]) / path
        body = file.read_bytes()
        if listed.is_content(hashlib.sha256(body).hexdigest(), file):
            return body.decode("utf-8", errors="replace")
        _drop(revision, [listed], file.parent, tries)
        tries += 1


def whole_snapshot(
    revision: Revision,
    files: Files,
    memory: SourceMemory,
    workers: int = 0,
    progress: ProgressListener | None = None,
) -> tuple[Path, Known]:
    """A folder with these files of a revision, and its content: every file is as the hub lists it.

    What is damaged in the hub's cache is downloaded again, once. `progress` is told of bytes that are downloaded or
    read. Raises UserError.
    """
    tries = 0
    while True:
        folder = fetch_files(revision, [path for paths in files.values() for path in paths], progress)
        known = know_folder(
            revision.data, folder, lambda: Chosen(files), memory,
            rules=json.dumps({split: list(paths) for split, paths in files.items()}), whole=False,
            workers=workers, progress=progress,
        )  # fmt: skip
        bad = _not_as_listed(revision, folder, known.groups().values())
        if not bad:
            if not revision.account.commit:
                keep_commit(revision)
            return folder, known
        _drop(revision, bad, folder, tries)
        tries += 1


def _drop(revision: Revision, bad: Sequence[HubFile], folder: Path, tries: int) -> None:
    """Remove files that are not as listed from the cache, to download them again. UserError if that did not help."""
    what = f"DATA={revision.data}: {_few(bad)} has other bytes than commit {revision.commit[:12]} lists (in {folder})"
    if revision.unasked:
        raise UserError(f"{what}: run the same command again when the hub can be reached, to download it again")
    for file in bad:
        forget(revision, file.path)
    if tries:
        raise UserError(
            f"{what}, and was removed: run the same command again. If it stays so, a proxy or the disk changes the "
            "bytes"
        )
    say(f"{what}: downloading it again")


def _not_as_listed(revision: Revision, folder: Path, groups: Iterable[Rows]) -> list[HubFile]:
    """The files whose content is not what the hub lists."""
    found = {os.fsdecode(path): sha256 for rows in groups for path, sha256 in zip(rows.paths, rows.hashes, strict=True)}
    listed = {path: HubFile(path, 0, "", "") for path in found} | {file.path: file for file in revision.files}
    return [
        listed[path]
        for path, sha256 in found.items()
        if not listed[path].is_content(sha256.tobytes().hex(), folder / path)
    ]


def forget(revision: Revision, path: str) -> None:
    """Take a file out of the hub's cache, so that it is downloaded again."""
    link = _snapshot(revision.account, revision.commit) / path
    if link.is_symlink():  # to a blob, which may be a link to a blob that other datasets share
        (link.parent / link.readlink()).unlink(missing_ok=True)
    link.unlink(missing_ok=True)


def keep_commit(revision: Revision) -> None:
    """Record that this commit is whole in the cache: without the hub, it is the one to use."""
    ref = _storage(revision.account) / "refs" / "main"
    with contextlib.suppress(OSError):  # a cache that nobody may write
        if not ref.exists() or ref.read_text() != revision.commit:
            ref.parent.mkdir(parents=True, exist_ok=True)
            part = ref.with_name(f"main.{os.getpid()}.part")
            part.write_text(revision.commit)
            part.replace(ref)
