"""Brings back what somebody has deleted, overwritten or tagged among the checkpoints of a run. No torch here.

Of several versions of a manifest, that one is the run's own whose SHA-256 HEAD.json or a newer manifest has. Of an
object, it is the one that its manifest tells of. Where nothing is known of them, it is the oldest, since each is
written once. It is put on top. Nothing that is there is removed, but for the marks of deletions.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from trainer.contract import (
    HEAD_FILE,
    Lease,
    UserError,
    checkpoint_key,
    parse_manifest_key,
    snapshot_key,
    unseal,
)
from trainer.manifest import check_manifest, data_key, newest_manifest
from trainer.store import ObjectStore
from trainer.store.checksum import Checksums
from trainer.store.versions import Version, Versions, open_versions

ASKED_AT_ONCE = 16  # requests


@dataclass(frozen=True)
class Repair:
    """Something to do for one key."""

    key: str
    what: str  # what somebody has done to it, and what undoes it
    do: Callable[[], None]


@dataclass(frozen=True)
class Findings:
    repairs: Sequence[Repair]
    expired: int  # objects that the run itself has superseded, and that the lifecycle has hidden since
    notes: Sequence[str] = ()


def undelete(store: ObjectStore, run_id: str, *, every: bool, dry_run: bool, say: Callable[[str], None]) -> None:
    """Bring back what can be, and say for each key what was done.

    `every`: also what the run itself had superseded and the lifecycle has hidden. `dry_run`: only say it. A second call
    finds nothing to do. Raises UserError where the store keeps no versions, or none of this run, StoreError.
    """
    versions = open_versions(store)
    if not versions.list(checkpoint_key(run_id, "")):
        raise UserError(f"run {run_id!r} has no checkpoint in {store.uri}, nor had one: check the names (RUN=, STORE=)")
    done = 0
    for find in (find_head, partial(find_lost, every=every), find_tagged):
        findings = find(versions, run_id)
        for note in findings.notes:
            say(note)
        for repair in findings.repairs:
            if not dry_run:
                repair.do()
            say(f"{'would bring back' if dry_run else 'brought back'}  {store.describe(repair.key)}: {repair.what}")
        done += len(findings.repairs)
        if findings.expired:
            say(
                f"{findings.expired:,} objects that the run had superseded have expired; `undelete --every` brings "
                "them back for a day, for a `rewind` to one of them"
            )
    if not done:
        say(f"nothing of run {run_id!r} is lost that an old version could bring back")
    elif not dry_run:
        say(f"{done:,} brought back: `verify --every` compares their bytes with the manifests")


def find_head(versions: Versions, run_id: str) -> Findings:
    """HEAD.json is overwritten all the time: if it is missing or damaged, its newest version that is whole counts."""
    key = checkpoint_key(run_id, HEAD_FILE)
    history = versions.list(key).get(key, [])
    lease, version = newest_lease(versions, run_id, history)
    if not history or version is history[0]:
        return Findings([], 0)
    if lease is None or version is None:
        return Findings([], 0, [f"no version of {key} can be read: the next start takes the newest manifest"])
    how = "deleted" if history[0].is_mark else "damaged"
    return Findings([Repair(key, f"{how}; as of {_at(version)}", partial(versions.put_on_top, version))], 0)


def newest_lease(versions: Versions, run_id: str, history: Iterable[Version]) -> tuple[Lease | None, Version | None]:
    for version in history:
        if not version.is_mark:
            try:
                return Lease.from_json(versions.read(version)).of_run(run_id), version
            except ValueError:
                continue
    return None, None


def find_lost(versions: Versions, run_id: str, *, every: bool) -> Findings:
    """Objects and manifests that were deleted or overwritten."""
    histories = versions.list(checkpoint_key(run_id, ""))
    named = _named(versions, run_id, histories)
    own = find_own(versions, run_id, histories)

    def look(key: str) -> Repair | str | None:
        history = histories[key]
        written = [version for version in history if not version.is_mark]
        if not written:
            return None
        is_deleted = history[0].is_mark
        if is_deleted and key not in named and not every and versions.is_superseded(written[-1]):
            return "expired"
        right = own(key)
        if right is None:
            return f"no version of {key} is the one that its manifest or a newer one tells of: left as it is"
        if history[0] is right or (not is_deleted and versions.same(history[0], right)):
            return None
        if len(written) == 1:
            marks = [version for version in history if version.is_mark]
            return Repair(key, f"deleted {_at(marks[-1])}", partial(versions.remove_marks, marks))
        above = history[history.index(right) - 1]
        how = f"{'deleted' if above.is_mark else 'overwritten'} {_at(above)}"
        return Repair(key, f"{how}; as of {_at(right)}", partial(versions.put_on_top, right))

    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        found = list(pool.map(look, sorted(filter(_is_written_once, histories))))
    notes = [one for one in found if isinstance(one, str) and one != "expired"]
    return Findings([one for one in found if isinstance(one, Repair)], found.count("expired"), notes)


def find_own(
    versions: Versions, run_id: str, histories: Mapping[str, Sequence[Version]]
) -> Callable[[str], Version | None]:
    """Tells of a key its version that is the run's own; None where each of several is known to be another's.

    Nothing is read where each key has one version only.
    """
    written = {key: [one for one in histories[key] if not one.is_mark] for key in filter(_is_written_once, histories)}
    own = {key: found[-1] for key, found in written.items() if found}
    if all(len(found) < 2 for found in written.values()):
        return own.get
    lease, _ = newest_lease(versions, run_id, histories.get(checkpoint_key(run_id, HEAD_FILE), []))
    known = dict(lease.sha256) if lease is not None else {}
    objects: dict[str, Checksums] = {}
    manifests = sorted(
        (key for key in own if parse_manifest_key(key)), key=lambda key: parse_manifest_key(key) or (0, 0), reverse=True
    )
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        read = dict(zip(manifests, pool.map(lambda key: [*map(versions.read, written[key])], manifests), strict=True))
    for key in manifests:  # the newest first: each knows the one before
        digests = [hashlib.sha256(body).hexdigest() for body in read[key]]
        if key in known and known[key] not in digests and len(digests) > 1:
            del own[key]
            continue
        number = digests.index(known[key]) if known.get(key) in digests else len(digests) - 1
        own[key] = written[key][number]
        with suppress(ValueError):
            check_manifest(manifest := unseal(read[key][number]), run_id, key)
            objects[data_key(key)] = Checksums.from_json(manifest["object"])
            parent = manifest.get("parent")
            if parent and parent["sha256"] and known.get(key) == digests[number]:
                known.setdefault(parent["manifest"], parent["sha256"])

    def find(key: str) -> Version | None:
        if key not in objects or len(written[key]) < 2:
            return own.get(key)
        told = objects[key]
        return next((one for one in written[key] if one.bytes == told.bytes and is_told(one, told)), None)

    def is_told(version: Version, told: Checksums) -> bool:
        sha256, crc = versions.sums(version)
        return sha256 == told.sha256 if told.sha256 else crc == told.whole

    return find


def find_tagged(versions: Versions, run_id: str) -> Findings:
    """The tag with which a run gives a checkpoint up, on one that it has not given up."""
    histories = versions.list(checkpoint_key(run_id, ""))
    repairs = [
        Repair(key, "tagged as superseded, and it is not", partial(versions.untag, key))
        for key in sorted(_named(versions, run_id, histories))
        if (history := histories.get(key)) and not history[0].is_mark and versions.is_superseded(history[0])
    ]
    return Findings(repairs, 0)


def _named(versions: Versions, run_id: str, histories: Mapping[str, Sequence[Version]]) -> set[str]:
    """The manifests that HEAD.json names or that are newer, and their objects: what a run never gives up. HEAD.json
    counts as it is, or as it will be brought back."""
    lease, _ = newest_lease(versions, run_id, histories.get(checkpoint_key(run_id, HEAD_FILE), []))
    manifests = {newest_manifest(lease, [key for key in histories if parse_manifest_key(key)])}
    manifests |= lease.keys() if lease else set()
    places = [parse_manifest_key(key) for key in manifests]
    return (manifests - {""}) | {snapshot_key(run_id, place[1], place[0]) for place in places if place}


def _is_written_once(key: str) -> bool:
    return parse_manifest_key(key.replace("/data/", "/manifest/").replace(".safetensors", ".json")) is not None


def _at(version: Version) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(version.modified))
