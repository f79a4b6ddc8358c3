"""Back to an older step: its checkpoint is stored once more, as the newest of the run, by an attempt of its own.

Nothing is deleted, and nothing that the run had is superseded. The new manifest is the commit point. Before it, the run
is as it was. After it, the run goes on from the older step: whoever takes the run next moves HEAD.json, if need be.
"""

from __future__ import annotations

import json
import platform
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from trainer.contract import Exit, LostRunError, RunEnv, attempt_key, manifest_key, parse_manifest_key, run_key
from trainer.manifest import is_best
from trainer.store import ObjectStore, StoreError
from trainer.store.checksum import Checksums
from trainer.upload.commit import Commit
from trainer.upload.owner import RENEWALS_PER_LEASE, MachineLock, Ownership, claim_attempt


@dataclass(frozen=True, kw_only=True)
class OldCheckpoint:
    """The older checkpoint, whose bytes are those of its checksums."""

    key: str  # of its manifest
    sha256: str  # of its manifest
    manifest: Mapping[str, Any]
    body: memoryview
    line: Collection[str]  # the manifests on its line, which leads back to step 0

    @property
    def step(self) -> int:
        return int(self.manifest["step"])


def rewind(
    store: ObjectStore, env: RunEnv, target: OldCheckpoint, branch: Callable[[int], None], say: Callable[[str], None]
) -> str:
    """Make the checkpoint the newest of the run, and return the key of its new manifest.

    `branch(attempt)` is called before the commit: it stores from where the metrics go on. Killed at any moment, this
    leaves the run as it was, or rewound, and may be called again. Raises LostRunError if another attempt owns the run
    and is alive, StoreError.
    """
    attempt = claim_attempt(store, env.run_id)
    ledger = attempt_key(env.run_id, attempt)
    begun = {"attempt": attempt, "started": time.time(), "machine": {}, "host": platform.node()}

    def end(code: Exit, message: str) -> None:
        body = begun | {"exit": code, "message": message, "ended": time.time()}
        store.put(ledger, json.dumps(body, indent=1).encode())

    with closing(MachineLock.of(env)) as lock:
        ownership = Ownership(store, env.run_id, attempt, float(env.lease_seconds), lock)
        try:
            ownership.claim(say, lambda before: None)
            with renewed(ownership):
                branch(attempt)
                copy, manifest = put_copy(ownership, target, say)
                ownership.renew()  # else the run was lost meanwhile
                store.put(run_key(env.run_id, "config.json"), json.dumps(manifest["config"], indent=1).encode())
                end(Exit.FINISHED, f"rewound to step {target.step}")
            origin = manifest["rewind"]
            ownership.rewind(copy.key, copy.sha256, best=origin["best"], swept=origin["swept"])
        except LostRunError as error:
            end(Exit.HELD, str(error))  # the copy stays: the new owner may have gone on from it, else it is swept
            raise
        finally:
            if ownership.is_mine:
                with suppress(StoreError, LostRunError):
                    ownership.release()
    return copy.key


@contextmanager
def renewed(ownership: Ownership) -> Iterator[None]:
    """Renew the lease meanwhile, in a thread: a checkpoint may take minutes from here to its store."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(ownership.lease_seconds / RENEWALS_PER_LEASE):
            try:
                ownership.renew()
            except LostRunError:  # the commit will find that, too
                return
            except StoreError:
                continue

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def put_copy(
    ownership: Ownership, target: OldCheckpoint, say: Callable[[str], None]
) -> tuple[Commit, Mapping[str, Any]]:
    """Store the checkpoint as one of this attempt, after the older one. Returns what was stored, and its manifest.

    Its own objects, since those of the older one may have been superseded and expire any day. In `rewind` it says what
    HEAD.json names after it. The best checkpoint stays the best if it is on the line.
    """
    run_id, attempt = ownership.run_id, ownership.attempt
    here, best = manifest_key(run_id, target.step, attempt), ownership.written.best
    if best == target.key or is_best(target.manifest):
        best = here
    elif best not in target.line:
        best = ""
    last = max(number for number, _ in filter(None, map(parse_manifest_key, ownership.manifests())))
    origin = {"manifest": target.key, "best": best, "swept": last + 1}
    manifest = dict(target.manifest) | {"attempt": attempt, "time": time.time(), "rewind": origin}
    parent = {"manifest": target.key, "sha256": target.sha256}
    copy = Commit.of(run_id, attempt, manifest, Checksums.of(target.body), parent)
    say(copy.told())
    copy.put(ownership.store, target.body)
    return copy, manifest
