"""Brings back what somebody has deleted, overwritten or tagged among the checkpoints of a run. No torch here.

Objects and manifests are written once. So of several versions the oldest one is the run's own, and it is put on top.
Nothing that is there is removed, but for the marks of deletions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from trainer.contract import (
    HEAD_FILE,
    Lease,
    checkpoint_key,
    newest_manifest,
    parse_manifest_key,
    snapshot_key,
)
from trainer.store import ObjectStore
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
    finds nothing to do. Raises UserError where the store keeps no versions, StoreError.
    """
    versions = open_versions(store)
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
    lease, version = newest_lease(versions, history)
    if not history or version is history[0]:
        return Findings([], 0)
    if lease is None or version is None:
        return Findings([], 0, [f"no version of {key} can be read: the next start takes the newest manifest"])
    how = "deleted" if history[0].is_mark else "damaged"
    return Findings([Repair(key, f"{how}; as of {_at(version)}", partial(versions.put_on_top, version))], 0)


def newest_lease(versions: Versions, history: Iterable[Version]) -> tuple[Lease | None, Version | None]:
    for version in history:
        if not version.is_mark:
            try:
                return Lease.from_json(versions.read(version)), version
            except ValueError:
                continue
    return None, None


def find_lost(versions: Versions, run_id: str, *, every: bool) -> Findings:
    """Objects and manifests that were deleted or overwritten."""
    histories = versions.list(checkpoint_key(run_id, ""))
    named = _named(versions, run_id, histories)

    def look(key: str) -> Repair | str | None:
        history = histories[key]
        written = [version for version in history if not version.is_mark]
        if not written or history[0] is written[-1]:
            return None
        oldest, is_deleted = written[-1], history[0].is_mark
        if is_deleted and key not in named and not every and versions.is_superseded(oldest):
            return "expired"
        if is_deleted and len(written) == 1:
            marks = [version for version in history if version.is_mark]
            return Repair(key, f"deleted {_at(marks[-1])}", partial(versions.remove_marks, marks))
        if not is_deleted and versions.same(history[0], oldest):
            return None
        how = f"overwritten {_at(written[-2])}" if len(written) > 1 else "deleted"
        return Repair(key, f"{how}; as of {_at(oldest)}", partial(versions.put_on_top, oldest))

    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        found = list(pool.map(look, sorted(filter(_is_written_once, histories))))
    return Findings([one for one in found if isinstance(one, Repair)], found.count("expired"))


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
    lease, _ = newest_lease(versions, histories.get(checkpoint_key(run_id, HEAD_FILE), []))
    manifests = {newest_manifest(lease, [key for key in histories if parse_manifest_key(key)])}
    manifests |= lease.keys() if lease else set()
    places = [parse_manifest_key(key) for key in manifests]
    return (manifests - {""}) | {snapshot_key(run_id, place[1], place[0]) for place in places if place}


def _is_written_once(key: str) -> bool:
    return parse_manifest_key(key.replace("/data/", "/manifest/").replace(".safetensors", ".json")) is not None


def _at(version: Version) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(version.modified))
