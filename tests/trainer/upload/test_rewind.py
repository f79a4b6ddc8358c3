"""Back to an older step: nothing is deleted, damage leads along the new line, and what was left stays left."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import RUN, commit, is_retired, note, owner, read_lease, state, store_checkpoint
from tests.emulator.s3 import Control
from tests.rewinds import damage, first_line, objects, restored, steps, training
from trainer.checkpoints import main
from trainer.contract import HEAD_FILE, Exit, LostRunError, RunEnv, attempt_key, checkpoint_key, manifest_key, run_key
from trainer.manifest import data_key
from trainer.store import ObjectStore
from trainer.telemetry.metrics import read_metrics
from trainer.upload import rewind as rewinding
from trainer.upload.commit import Commit
from trainer.upload.owner import Ownership
from trainer.upload.unsaved import resend, save_checkpoint_here, unsaved_dir


@pytest.fixture
def store(six_steps: Path, tmp_path: Path, named_store: Callable[[str], ObjectStore]) -> ObjectStore:
    shutil.copytree(six_steps, tmp_path / "store")
    return named_store(str(tmp_path / "store"))


@pytest.mark.parametrize("kind", ["folder", pytest.param("s3", marks=pytest.mark.slow)])
def test_nothing_is_deleted_neither_now_nor_when_the_run_goes_on(
    kind: str, tmp_path: Path, named_store: Callable[[str], ObjectStore], request: pytest.FixtureRequest
) -> None:
    (tmp_path / "store").mkdir()
    store = named_store(request.getfixturevalue("s3_uri") if kind == "s3" else str(tmp_path / "store"))
    first_line(store, tmp_path)
    lease, before = read_lease(store), objects(store)
    assert main(["rewind", "5"]) == Exit.FINISHED
    with training(store, tmp_path, range(5, 9)):
        pass
    assert (read_lease(store).newest, read_lease(store).best) == (manifest_key(RUN, 8, 3), lease.best)
    assert before.items() <= objects(store).items()
    for manifest in lease.keys():  # noqa: SIM118
        assert not is_retired(store, manifest)
        assert not is_retired(store, data_key(manifest))
    assert main(["rewind", "5"]) == Exit.FINISHED, "and again from the same step"
    assert restored(store) == (manifest_key(RUN, 5, 4), 0)
    assert before.items() <= objects(store).items()


def test_the_list_tells_the_new_line_from_what_it_left_and_leads_back_there(
    store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def listed() -> list[tuple[str, str, str]]:
        capsys.readouterr()
        assert main(["list"]) == Exit.FINISHED
        lines = [line.split(maxsplit=6) for line in capsys.readouterr().out.splitlines()[1:]]
        return [(line[0], line[1], line[6]) for line in lines]

    assert main(["rewind", "2"]) == Exit.FINISHED
    left = [("6", "1", "left"), ("5", "1", "left")]
    assert listed() == [("2", "2", "newest, best"), *left, ("2", "1", "superseded")]
    with training(store, tmp_path, range(2, 6)):
        pass
    mine = [("5", "3", "newest"), ("4", "3", "previous")]
    assert listed() == [*mine, ("2", "2", "best"), *left, ("2", "1", "superseded")]
    assert main(["verify", "--every"]) == Exit.FINISHED, "no metrics of the left steps are missing"
    assert steps(store) == [1, 2, 3, 4, 5]

    assert main(["rewind", "5"]) == Exit.FINISHED
    assert "already" in capsys.readouterr().out, "of two with this step, the one on the line"
    assert main(["rewind", "5", "--attempt", "1"]) == Exit.FINISHED
    assert restored(store)[0] == manifest_key(RUN, 5, 4)
    assert [row.get("attempt") for row in read_metrics(store, RUN) if "event" in row] == [1, 4]
    assert ("5", "3", "left") in listed()


def test_what_cannot_be_done_is_refused_and_changes_nothing(
    store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        before = [info for prefix in ("runs/", "checkpoints/") for info in store.list(prefix)]
        assert main(["rewind", *arguments]) == Exit.USER
        assert before == [info for prefix in ("runs/", "checkpoints/") for info in store.list(prefix)]
        return capsys.readouterr().err

    assert "step 3: run 'job' has no checkpoint of it: choose one of 2, 5, 6, which `list` shows" in refused("3")
    assert "step 5 of attempt 7: run 'job' has no checkpoint of it" in refused("5", "--attempt", "7")
    damage(store, manifest_key(RUN, 5, 1))
    assert "is damaged (its object has 7 bytes instead of" in refused("5")
    store.put(run_key(RUN, "done.json"), b"{}")
    assert "run 'job' is finished, and no step of it is left to train" in refused("2")
    assert main(["rewind", "--help"]) == Exit.FINISHED
    assert "--checkpoint.accept-changes --optim.peak-lr" in capsys.readouterr().out


def test_while_a_trainer_owns_the_run_it_is_refused(
    store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()
    with training(store, tmp_path, range(6, 8), attempt=2) as ownership:

        def renew() -> None:
            while not ended.wait(0.2):
                ownership.renew()

        renewing = threading.Thread(target=renew)
        renewing.start()
        try:
            assert main(["rewind", "2"]) == Exit.HELD
        finally:
            ended.set()
            renewing.join()
        assert "is held by attempt 2" in capsys.readouterr().err
        commit(ownership, 8, state(8))
    assert read_lease(store).newest == manifest_key(RUN, 8, 2)
    assert json.loads(store.get(attempt_key(RUN, 3)))["exit"] == Exit.HELD
    assert steps(store) == list(range(1, 8))


def test_a_copy_that_a_new_owner_goes_on_from_is_kept_when_the_rewind_finds_the_run_lost(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = rewinding.put_copy

    def and_sleep(ownership: Ownership, *given: Any) -> tuple[Commit, Mapping[str, Any]]:
        """Meanwhile another attempt takes the run, finds the copy, and goes on from it."""
        copy, manifest = put(ownership, *given)
        taken = replace(read_lease(store), attempt=9, owner="another", newest=copy.key, renewed=99)
        store.put(checkpoint_key(RUN, HEAD_FILE), taken.to_json())
        return copy, manifest

    monkeypatch.setattr(rewinding, "put_copy", and_sleep)
    assert main(["rewind", "5"]) == Exit.HELD
    copy = manifest_key(RUN, 5, 2)
    assert restored(store) == (copy, 0)
    assert not is_retired(store, copy)


@pytest.mark.slow
def test_an_endpoint_that_wants_etags_without_quotes_gets_them(
    s3_uri: str, s3_control: Control, named_store: Callable[[str], ObjectStore], tmp_path: Path
) -> None:
    first_line(named_store(s3_uri), tmp_path)
    s3_control.set(lacks=["bare-etags"])
    assert main(["rewind", "5"]) == Exit.FINISHED
    assert restored(named_store(s3_uri)) == (manifest_key(RUN, 5, 2), 0)


def test_after_damage_the_run_falls_back_along_its_line_and_never_to_what_was_left(
    store: ObjectStore, tmp_path: Path
) -> None:
    assert main(["rewind", "5"]) == Exit.FINISHED
    damage(store, manifest_key(RUN, 5, 2))
    assert restored(store) == (manifest_key(RUN, 5, 1), 1), "the original, and not the better step 2"
    with training(store, tmp_path, range(5, 8)):
        pass
    for key in (read_lease(store).newest, read_lease(store).previous):
        damage(store, key)
    assert restored(store) == (manifest_key(RUN, 5, 1), 2)
    damage(store, manifest_key(RUN, 5, 1))
    assert restored(store) == (manifest_key(RUN, 2, 1), 3)


def test_the_machine_of_the_left_line_comes_back_and_changes_nothing(store: ObjectStore, tmp_path: Path) -> None:
    first = owner(store, 1, tmp_path / "its machine")
    assert main(["rewind", "5"]) == Exit.FINISHED
    env = RunEnv(store=store.uri, run_id=RUN, scratch_dir=str(tmp_path / "its scratch"), attempt="1")
    save_checkpoint_here(env, note(9), memoryview(b"not stored"))
    said: list[str] = []
    resend(RunEnv(**{**vars(env), "attempt": "3"}), store, read_lease(store), said.append)
    assert ["holds step 9 of attempt 1, but the run went on without it" in line for line in said] == [True]
    assert unsaved_dir(env).exists()
    store_checkpoint(store, 1, note(7), state(7))  # it was on its way
    with pytest.raises(LostRunError, match="attempt 2 has taken the run over from attempt 1"):
        first.commit(manifest_key(RUN, 7, 1), "", is_best=True)
    assert restored(store) == (manifest_key(RUN, 5, 2), 0)
    with training(store, tmp_path, range(5, 6)):
        assert read_lease(store).newest == manifest_key(RUN, 5, 2)


def test_a_file_of_others_among_the_metrics_hides_no_line(store: ObjectStore, tmp_path: Path) -> None:
    assert main(["rewind", "2"]) == Exit.FINISHED
    with training(store, tmp_path, range(2, 5)):  # attempt 3 saves steps that the next rewind leaves
        pass
    assert main(["rewind", "5", "--attempt", "1"]) == Exit.FINISHED
    store.put(run_key(RUN, "metrics/4/.DS_Store"), b"of a file manager")
    for attempt in (4, 1):
        damage(store, manifest_key(RUN, 5, attempt))
    assert restored(store) == (manifest_key(RUN, 2, 1), 2)
