"""Which attempt owns a run: how it claims the run, renews the claim, commits, and cleans up after a dead owner.

Each of these changes one small object, `HEAD.json`, by compare-and-swap. `contract.Lease` explains its fields.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.contract import (
    HEAD_FILE,
    Lease,
    LostRunError,
    RunEnv,
    attempt_key,
    checkpoint_key,
    manifest_key,
    parse_manifest_key,
    run_key,
    unseal,
)
from trainer.manifest import check_manifest, data_key, is_best, newest_manifest
from trainer.store import ConflictError, NotFoundError, ObjectStore, StoreError
from trainer.text import show_sha256
from trainer.upload.commit import attempt_of
from trainer.values import parse_object

RENEWALS_PER_LEASE = 4
UNKNOWN = "unknown"  # the etag after a write that may or may not have taken effect


def claim_attempt(store: ObjectStore, run_id: str) -> int:
    """Take the next free attempt number by creating its key."""
    prefix = run_key(run_id, "attempts/")
    names = [re.fullmatch(r"([0-9]{1,15})\.json", info.key.removeprefix(prefix)) for info in store.list(prefix)]
    attempt = max((int(name[1]) for name in names if name), default=0) + 1  # a folder may have others' files, too
    while True:
        body = {"attempt": attempt, "started": time.time(), "host": platform.node(), "nonce": uuid.uuid4().hex}
        try:
            store.create(attempt_key(run_id, attempt), json.dumps(body).encode())
        except ConflictError:
            attempt += 1
        else:
            return attempt


def read_first(store: ObjectStore, run_id: str) -> dict[str, Any]:
    """How the first attempt began, as it wrote it; {} where nobody can tell, which stops no start."""
    try:
        return parse_object(store.get(attempt_key(run_id, 1)))
    except (StoreError, ValueError):
        return {}


class MachineLock:
    """Tells which attempts of this machine are dead, so that a restart on the same machine need not wait for a lease.

    A file in the scratch folder lists the attempts that have held its lock. The kernel releases the lock of a dead
    process, whatever container it ran in. A stopped process keeps the lock.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.mine = path, False
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

    @classmethod
    def of(cls, env: RunEnv) -> MachineLock:
        """The lock of a run on this machine."""
        return cls(Path(env.scratch_dir).absolute() / "runs" / env.run_id / "uploader.lock")

    def close(self) -> None:
        """Let the lock go. An attempt does so by its end."""
        os.close(self.fd)

    def take(self, name: str) -> list[str]:
        """Add this process's name, and return the names of dead attempts; none while a living process has the lock."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # taken; or there are no locks here, and then a restart waits for the lease
            return []
        dead = [line for line in self.path.read_text().splitlines() if line != name]
        if not self.mine:
            os.write(self.fd, f"{name}\n".encode())
            self.mine = True
        return dead


class Ownership:
    """One attempt's claim to a run. Several threads may use it."""

    def __init__(self, store: ObjectStore, run_id: str, attempt: int, lease_seconds: float, lock: MachineLock):
        """Read the lease, and watch from now on whether its owner renews it. Raises StoreError."""
        self.store, self.run_id, self.attempt, self.lease_seconds = store, run_id, attempt, lease_seconds
        self.key, self.machine = checkpoint_key(run_id, HEAD_FILE), lock
        self.mutex = threading.RLock()
        self.lease, self.etag = self._read()
        self.seen_at = time.monotonic()
        self.is_mine, self.rendezvous = False, ""  # where this attempt meets other machines
        self.written = Lease(attempt=attempt)  # what this attempt wrote last
        self.since = time.time()
        self.adopted: dict[str, str] = {}  # the SHA-256 of a manifest that the lease does not vouch for

    def has_been_watched(self, etag: str, seen_at: float) -> None:
        """The lease was seen already at this time.monotonic(), if it is still the one with this etag."""
        if etag == self.etag:
            self.seen_at = min(self.seen_at, seen_at)

    def _read(self) -> tuple[Lease | None, str]:
        """The lease and its etag; (None, "") if there is no HEAD.json. The lease is None if its bytes are damaged."""
        try:
            body, etag = self.store.get_with_etag(self.key)
        except NotFoundError:
            return None, ""
        try:
            return Lease.from_json(body).of_run(self.run_id), etag
        except ValueError:
            return None, etag

    def look(self) -> None:
        """Read the lease again, and note when it has changed."""
        lease, etag = self._read()
        if etag != self.etag and self.etag != UNKNOWN:  # else our own write may be what changed it
            self.seen_at = time.monotonic()
        self.lease, self.etag = lease, etag

    def manifests(self) -> list[str]:
        listed = self.store.list(checkpoint_key(self.run_id, "manifest/"))
        return [info.key for info in listed if parse_manifest_key(info.key)]

    def _name(self, attempt: int, since: float) -> str:
        """An attempt's name in the lock file. It has the time too: an emptied store counts attempts from 1 again."""
        return f"{self.store.uri} {attempt} {since!r}"

    def is_held_by_another(self) -> bool:
        """Whether another attempt owns the run and may be alive. Raises StoreError."""
        with self.mutex:
            if self.is_mine:
                return False
            dead = self.machine.take(self._name(self.attempt, self.since))
            self.look()
            if self.lease is None or not self.lease.owner or self.lease.attempt == self.attempt:
                return False
            if self._name(self.lease.attempt, self.lease.since) in dead:
                return False
            return time.monotonic() < self.seen_at + self.lease_seconds

    def claim(self, say: Callable[[str], None], resend: Callable[[Lease | None], None]) -> None:
        """Take the run, if need be after one lease, in which its owner ends or shows no sign of life.

        Before that, `resend(lease)` is called to store what the last owner left on this machine. Raises LostRunError
        if another attempt holds the run, StoreError.
        """
        give_up = time.monotonic() + self.lease_seconds
        first: Lease | None = None  # the lease as it was when the waiting began
        while True:
            with self.mutex:
                held, holder, etag = self.is_held_by_another(), self.lease, self.etag
                if not held:
                    self.refuse_later()
            if not held or holder is None:
                resend(holder)
                if self._take(holder, etag, say):
                    return
                continue  # another attempt has changed the lease in between
            since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(holder.since))
            who = f"run {self.run_id!r} is held by attempt {holder.attempt} on {holder.owner!r} since {since}"
            if self.rendezvous:  # of several machines; the run was free just now, so another one was quicker
                raise LostRunError(f"{who}, which was quicker: this machine joins it")
            if first is None:
                say(f"{who}: waiting up to {self.lease_seconds:.0f} s for it to end")
                first = holder
            if time.monotonic() >= give_up and holder != first:  # it has renewed its lease meanwhile
                raise LostRunError(f"{who}; it is alive: stop that one, or start a new run (RUN=another-name)")
            time.sleep(min(1.0, self.lease_seconds / 10))

    def refuse_later(self) -> None:
        if self.lease is not None and self.lease.attempt > self.attempt:
            self.is_mine = False
            raise LostRunError(f"attempt {self.lease.attempt} has taken the run over from attempt {self.attempt}")

    def _take(self, before: Lease | None, etag: str, say: Callable[[str], None]) -> bool:
        """Take the run if its lease is still `before`. Returns whether it is ours."""
        newest = newest_manifest(before, self.manifests())
        after = before or Lease(attempt=0, swept=self.attempt)  # nobody knows what a lost lease named: keep everything
        if newest and newest not in after.sha256:
            after = self._adopt(after, newest)
        with self.mutex:
            self.lease, self.etag = before, etag
            try:
                mine = replace(after, attempt=self.attempt, owner=platform.node() or "unknown", since=self.since)
                self._write(replace(mine, rendezvous=self.rendezvous))
            except ConflictError:
                return False
            self.is_mine = True
        if newest and newest != (before.newest if before else "") and (sha256 := self.adopted[newest]):
            _, step = parse_manifest_key(newest) or (0, 0)
            say(f"HEAD.json did not name step {step}, {show_sha256(sha256)}: taken over, compare it with the log")
        return True

    def _adopt(self, lease: Lease, newest: str) -> Lease:
        """The lease that names a manifest whose writer died before it could move the lease itself.

        Anybody may have written it. So the lease has no SHA-256 of it, and vouches for the next one only.
        """
        sha256, manifest = "", dict[str, Any]()
        with suppress(NotFoundError, ValueError):
            found = unseal(body := self.store.get(newest))
            check_manifest(found, self.run_id, newest)
            sha256, manifest = hashlib.sha256(body).hexdigest(), found
        self.adopted = {newest: sha256}
        if newest == lease.newest:  # an attempt before this one has done the same
            return lease
        if rewind := manifest.get("rewind"):
            return lease.rewound(newest, "", best=rewind["best"], swept=rewind["swept"])
        return lease.advance(newest, "", is_best=is_best(manifest))

    def _write(self, lease: Lease) -> None:
        """Replace the lease that was read last. Raises ConflictError if it is another by now, StoreError."""
        lease = replace(lease, renewed=lease.renewed + 1)
        try:
            if self.etag:
                self.etag = self.store.replace(self.key, lease.to_json(), self.etag)
            else:
                self.etag = self.store.create(self.key, lease.to_json())
        except StoreError:
            self.etag = UNKNOWN  # the write may have taken effect: read it before the next one
            raise
        self.lease = self.written = lease

    def move(self, change: Callable[[Lease], Lease]) -> Lease:
        """Write `change(lease)`; returns the lease before. Raises LostRunError if it is another's, StoreError."""
        with self.mutex:
            while True:
                if self.etag == UNKNOWN:
                    self.look()
                self.refuse_later()
                found, before = self.lease, self.written
                if found is not None and found.attempt == self.attempt and found.renewed > before.renewed:
                    before = found  # our own write, of which we heard nothing; somebody put an older lease back
                try:
                    self._write(change(before))
                except ConflictError:
                    continue
                return before

    def parent_of(self, step: int) -> dict[str, str]:
        """What the manifest of this attempt's checkpoint of a step says of the one before."""
        with self.mutex:
            parent = self.written.parent_of(manifest_key(self.run_id, step, self.attempt))
            if parent and not parent["sha256"]:
                parent["sha256"] = self.adopted.get(parent["manifest"], "")
            return parent

    def commit(self, manifest: str, sha256: str, *, is_best: bool) -> set[str]:
        """Make this manifest the newest. Returns the manifests that it supersedes."""
        before = self.move(lambda lease: lease.advance(manifest, sha256, is_best=is_best))
        return before.keys() - self.written.keys()

    def rewind(self, manifest: str, sha256: str, *, best: str, swept: int) -> None:
        """Make this manifest the newest in place of later steps, supersede nothing, and give the run up."""
        self.move(
            lambda lease: replace(lease.rewound(manifest, sha256, best=best, swept=swept), owner="", rendezvous="")
        )
        self.is_mine = False

    def renew(self) -> None:
        self.move(lambda lease: lease)

    def release(self) -> None:
        """Give the run up, so that the next attempt need not wait."""
        self.move(lambda lease: replace(lease, owner="", rendezvous=""))
        self.is_mine = False

    def sweep(self) -> None:
        """Retire what earlier attempts left and the lease does not name. Each attempt is swept once."""
        with self.mutex:
            named, first = self.written.keys(), self.written.swept
        named |= {data_key(manifest) for manifest in named}
        for info in self.store.list(checkpoint_key(self.run_id, "")):
            if info.key not in named and first <= attempt_of(info.key, self.attempt) < self.attempt:
                self.store.retire(info.key)
        self.move(lambda lease: replace(lease, swept=self.attempt))
