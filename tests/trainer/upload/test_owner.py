"""Who owns a run: leases, dead owners, stale owners, half-done commits, and what is retired; on a folder and on S3."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests import ROOT
from tests.checkpoints import (
    RUN,
    commit,
    is_retired,
    note,
    owner,
    owning,
    read_lease,
    state,
    store_checkpoint,
)
from trainer.contract import HEAD_FILE, LostRunError, checkpoint_key, manifest_key
from trainer.manifest import data_key
from trainer.store import ObjectStore, StoreError, open_store
from trainer.upload.owner import Ownership

pytestmark = pytest.mark.slow
HEAD = checkpoint_key(RUN, HEAD_FILE)


@pytest.fixture(params=["directory", "s3_uri"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "directory":
        (tmp_path / "store").mkdir()
        return open_store(str(tmp_path / "store"))
    return open_store(request.getfixturevalue("s3_uri"))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The scratch folder of another machine."""
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere"


def claim(ownership: Ownership) -> list[str]:
    """Claim the run; returns what was said."""
    said: list[str] = []
    ownership.claim(said.append, lambda before: None)
    return said


def test_after_a_clean_end_nobody_waits(store: ObjectStore, tmp_path: Path, elsewhere: Path) -> None:
    with owning(store, 1, tmp_path) as first:
        key = commit(first, 5, state(1))
    second = owner(store, 2, elsewhere)
    started = time.monotonic()
    assert not claim(second)
    assert time.monotonic() - started < 3
    found = read_lease(store)
    assert (found.attempt, found.newest) == (2, key)
    assert found.owner


def test_of_two_on_different_machines_the_second_says_who_holds_the_run_and_gives_up_after_one_lease(
    store: ObjectStore, tmp_path: Path, elsewhere: Path
) -> None:
    holder = owner(store, 1, tmp_path, lease_seconds=2)
    claim(holder)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.4):
            holder.renew()

    renewing = threading.Thread(target=renew)
    renewing.start()
    said: list[str] = []
    started = time.monotonic()
    try:
        with pytest.raises(LostRunError, match=r"held by attempt 1 on '.+' since 20\d\d-.* UTC.*RUN=another-name"):
            owner(store, 2, elsewhere, lease_seconds=2).claim(said.append, lambda before: None)
    finally:
        ended.set()
        renewing.join()
    assert 1.5 < time.monotonic() - started < 6
    assert len(said) == 1
    assert "waiting up to 2 s" in said[0]
    assert read_lease(store).attempt == 1


def test_an_owner_that_shows_no_life_for_one_lease_is_taken_over_and_can_commit_nothing_more(
    store: ObjectStore, tmp_path: Path, elsewhere: Path
) -> None:
    stale, fresh = owner(store, 1, tmp_path, lease_seconds=1), owner(store, 2, elsewhere, lease_seconds=1)
    claim(stale)
    first = commit(stale, 5, state(1))
    started = time.monotonic()
    claim(fresh)
    assert 0.9 < time.monotonic() - started < 5
    newer = commit(fresh, 6, state(2))
    with pytest.raises(LostRunError, match="attempt 2 has taken the run over from attempt 1"):
        commit(stale, 9, state(3))
    with pytest.raises(LostRunError):
        stale.renew()
    assert not stale.is_mine
    found = read_lease(store)
    assert (found.newest, found.previous) == (newer, first)


def test_an_attempt_that_started_earlier_does_not_take_the_run_from_a_later_one(
    store: ObjectStore, tmp_path: Path, elsewhere: Path
) -> None:
    late, early = owner(store, 2, tmp_path), owner(store, 1, elsewhere)
    claim(late)
    late.release()
    with pytest.raises(LostRunError, match="attempt 2 has taken the run over"):
        claim(early)


KILLED_OWNER = """
import os, signal, sys
from pathlib import Path
from tests.checkpoints import owner
from trainer.store import open_store
ownership = owner(open_store(sys.argv[1]), 1, Path(sys.argv[2]))
ownership.claim(print, lambda before: None)
print("mine", flush=True)
if len(sys.argv) > 3:
    os.kill(os.getpid(), signal.SIGSTOP)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_owner_that_was_killed_on_this_machine_is_known_to_be_dead(store: ObjectStore, tmp_path: Path) -> None:
    code = subprocess.run(
        [sys.executable, "-c", KILLED_OWNER, store.uri, str(tmp_path)], cwd=ROOT, capture_output=True, check=False
    )
    assert code.returncode == -9, code.stderr
    assert read_lease(store).owner
    started = time.monotonic()
    assert not claim(owner(store, 2, tmp_path))
    assert time.monotonic() - started < 5, "60 s is the lease"


def test_one_that_is_only_stopped_is_not_dead(store: ObjectStore, tmp_path: Path) -> None:
    stopped = subprocess.Popen(
        [sys.executable, "-c", KILLED_OWNER, store.uri, str(tmp_path), "stop"], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert stopped.stdout is not None
        assert stopped.stdout.readline() == b"mine\n"
        second = owner(store, 2, tmp_path)
        assert second.is_held_by_another(), "its lease counts"
    finally:
        stopped.kill()
        stopped.communicate()
    assert not second.is_held_by_another()


def test_a_manifest_whose_writer_died_before_the_lease_is_the_newest(
    store: ObjectStore, tmp_path: Path, elsewhere: Path
) -> None:
    with owning(store, 3, tmp_path) as dying:
        first = commit(dying, 5, state(1))
        orphan = store_checkpoint(store, 3, note(7, 3), state(2))
    second = owner(store, 4, elsewhere)
    claim(second)
    assert (read_lease(store).newest, read_lease(store).previous) == (orphan, first)
    assert read_lease(store).newest == manifest_key(RUN, 7, 3)


def test_an_adopted_checkpoint_that_says_it_is_the_best_is_the_best(
    store: ObjectStore, tmp_path: Path, elsewhere: Path
) -> None:
    with owning(store, 1, tmp_path) as dying:
        commit(dying, 5, state(1), is_best=True)
        best = store_checkpoint(
            store, 1, note(7, counters={"best": {"top1": 0.5, "step": 7, "weights": "ema"}}), state(2)
        )
    with owning(store, 2, elsewhere) as second:
        assert read_lease(store).best == best
        store_checkpoint(store, 2, note(9, 2, counters={"best": {"top1": 0.5, "step": 7, "weights": "ema"}}), state(2))
        second.release()
    claim(owner(store, 3, elsewhere))
    assert read_lease(store).newest == manifest_key(RUN, 9, 2)
    assert read_lease(store).best == best


def test_one_whose_claim_was_not_acknowledged_does_not_wait_for_itself(store: ObjectStore, tmp_path: Path) -> None:
    ownership = owner(store, 1, tmp_path)
    claim(owner(store, 1, tmp_path / "written but not acknowledged"))
    assert not claim(ownership)
    assert ownership.is_mine


def test_a_manifest_of_one_that_had_lost_the_run_is_never_the_newest_and_is_retired(
    store: ObjectStore, tmp_path: Path, elsewhere: Path
) -> None:
    with owning(store, 1, tmp_path) as first:
        kept = commit(first, 5, state(1))
    with owning(store, 2, elsewhere):
        pass
    late = store_checkpoint(store, 1, note(9, 1), state(2))  # the first one, waking up too late
    third = owner(store, 3, elsewhere)
    claim(third)
    assert read_lease(store).newest == kept
    third.sweep()
    assert is_retired(store, late)
    assert is_retired(store, data_key(late))
    assert not is_retired(store, kept)
    assert not is_retired(store, data_key(kept))


def test_a_lease_that_is_lost_or_damaged_or_put_back_costs_no_checkpoint(
    store: ObjectStore, tmp_path: Path, elsewhere: Path
) -> None:
    with owning(store, 1, tmp_path) as first:
        commit(first, 5, state(1))
        old = store.get(HEAD)
        newest = commit(first, 6, state(2))
    damaged = bytearray(store.get(HEAD))
    damaged[damaged.index(b"newest") + 40] ^= 1
    for attempt, body in enumerate((old, bytes(damaged), b"", b"{}"), 2):
        store.put(HEAD, body)
        ownership = owner(store, attempt, elsewhere, lease_seconds=1)
        claim(ownership)
        assert read_lease(store).newest == newest, body
        ownership.sweep()
        ownership.release()
    assert not is_retired(store, newest)
    assert not is_retired(store, data_key(newest))


def test_a_lease_that_is_put_back_under_its_owner_is_moved_on_by_the_next_commit(
    store: ObjectStore, tmp_path: Path
) -> None:
    ownership = owner(store, 1, tmp_path)
    claim(ownership)
    before = store.get(HEAD)
    fifth = commit(ownership, 5, state(1))
    store.put(HEAD, before)
    sixth = commit(ownership, 6, state(1))
    assert (read_lease(store).newest, read_lease(store).previous) == (sixth, fifth)


def test_the_sweep_is_done_once_for_each_attempt_and_spares_what_the_lease_names(
    store: ObjectStore, tmp_path: Path
) -> None:
    with owning(store, 1, tmp_path) as first:
        best = commit(first, 5, state(1), is_best=True)
        orphan = store_checkpoint(store, 1, note(4), state(9))
        kept = [commit(first, step, state(step)) for step in (6, 7)]
    second = owner(store, 2, tmp_path)
    claim(second)
    second.sweep()
    found = read_lease(store)
    assert {found.newest, found.previous, found.best} == {*kept, best}
    assert found.swept == 2
    assert [is_retired(store, key) for key in (orphan, data_key(orphan))] == [True, True]
    assert not any(is_retired(store, key) for name in (*kept, best) for key in (name, data_key(name)))
    later = store_checkpoint(store, 1, note(3), state(9))
    second.sweep()
    assert not is_retired(store, later), "looked at once"


def test_a_commit_done_twice_changes_nothing_and_other_bytes_under_its_name_are_refused(
    store: ObjectStore, tmp_path: Path
) -> None:
    ownership = owner(store, 1, tmp_path)
    claim(ownership)
    commit(ownership, 5, state(1))
    assert commit(ownership, 6, state(2)) == commit(ownership, 6, state(2)) == read_lease(store).newest
    assert read_lease(store).previous == manifest_key(RUN, 5, 1)
    with pytest.raises(StoreError, match="exists already, with other bytes"):
        store_checkpoint(store, 1, note(6, counters={"n": 1}), state(2))


def test_a_lost_acknowledgement_of_the_lease_is_found_out_by_reading_it(store: ObjectStore, tmp_path: Path) -> None:
    """As when a write took effect whose answer never came: HEAD.json is one renewal further than we know."""
    ownership = owner(store, 1, tmp_path)
    claim(ownership)
    key = commit(ownership, 5, state(1))
    ahead = replace(ownership.written, renewed=ownership.written.renewed + 1)
    store.replace(HEAD, ahead.to_json(), store.info(HEAD).etag)
    assert commit(ownership, 5, state(1)) == key
    assert read_lease(store) == replace(ahead, renewed=ahead.renewed + 1)
