"""A rewind that is killed leaves the old state or the new one, and the second call is right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import trainer.store
from tests.checkpoints import RUN, read_lease
from tests.rewinds import CONFIG, objects, restored, steps, training
from trainer.checkpoint.line import list_manifests
from trainer.checkpoints import main
from trainer.contract import Exit, manifest_key, parse_manifest_key, run_key
from trainer.store import ObjectStore


class Killed(BaseException):
    """This process is gone."""


class Dying:
    """A store whose user dies at a write of some number, before it takes effect or after."""

    WRITES = ("put", "put_large", "create", "replace", "retire")

    def __init__(self, store: ObjectStore, number: int, *, after: bool, kind: type[BaseException] = Killed):
        self.store, self.left, self.after, self.kind, self.is_dead = store, number, after, kind, False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.store, name)
        if name not in self.WRITES:
            return found

        def write(*arguments: Any) -> Any:
            if self.is_dead and self.kind is Killed:
                raise Killed
            self.left -= 1
            if self.left == 0:
                self.is_dead = True
                if self.after:
                    found(*arguments)
                raise self.kind
            return found(*arguments)

        return write


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_write_it_leaves_the_old_state_or_the_new_one_and_again_it_is_done(
    after: bool,
    six_steps: Path,
    tmp_path: Path,
    named_store: Callable[[str], ObjectStore],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number, ends = 0, set[str]()
    while True:
        number += 1
        shutil.copytree(six_steps, tmp_path / f"store-{number}")
        store = named_store(str(tmp_path / f"store-{number}"))
        before = objects(store)
        dying = Dying(store, number, after=after)
        monkeypatch.setattr(trainer.store, "open_store", lambda uri, dying=dying: dying)
        try:
            main(["rewind", "5"])
        except Killed:
            pass
        else:
            break
        newest = list_manifests(store, RUN)[1][0]
        ends.add(newest)
        assert newest in (manifest_key(RUN, 6, 1), manifest_key(RUN, 5, 2))
        assert steps(store) == list(range(1, 1 + (parse_manifest_key(newest) or (0, 0))[1])), "the metrics say the same"
        monkeypatch.setattr(trainer.store, "open_store", lambda uri, store=store: store)
        if number % 2:  # a start comes in between, which finishes the rewind or never hears of it
            with training(store, tmp_path / "runs" / RUN, range(steps(store)[-1], 9)):
                pass
            assert before.items() <= objects(store).items() or newest == manifest_key(RUN, 6, 1)
        assert main(["rewind", "5" if not number % 2 else "8"]) == Exit.FINISHED
        lease = read_lease(store)
        assert (lease.owner, (parse_manifest_key(lease.newest) or (0, 0))[1]) == ("", 8 if number % 2 else 5)
        if not number % 2:
            assert lease.best == manifest_key(RUN, 2, 1)
            assert steps(store) == [1, 2, 3, 4, 5]
            assert json.loads(store.get(run_key(RUN, "config.json"))) == CONFIG
            assert before.items() <= objects(store).items()
    assert ends == {manifest_key(RUN, 6, 1), manifest_key(RUN, 5, 2)}
    assert number > 7


@pytest.fixture
def store(six_steps: Path, tmp_path: Path, named_store: Callable[[str], ObjectStore]) -> ObjectStore:
    shutil.copytree(six_steps, tmp_path / "store")
    return named_store(str(tmp_path / "store"))


def test_ctrl_c_gives_the_run_up(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    dying = Dying(store, 4, after=False, kind=KeyboardInterrupt)
    monkeypatch.setattr(trainer.store, "open_store", lambda uri: dying)
    assert main(["rewind", "5"]) == 130
    assert dying.is_dead
    assert read_lease(store).owner == ""
    assert restored(store) == (manifest_key(RUN, 6, 1), 0)
