"""What others may have written into a store ends in a message, or is skipped: never in a traceback, never half read."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoints import RUN, commit, file_of, owner, owning, same, state
from tests.hostile import BODIES, forgeries
from trainer import checkpoints, origin
from trainer.checkpoint.restore import DamagedError, restore, tensors_of
from trainer.contract import (
    HEAD_FILE,
    Exit,
    LostRunError,
    UserError,
    attempt_key,
    checkpoint_key,
    manifest_key,
    metrics_key,
    run_key,
    seal,
    unseal,
)
from trainer.data.format import Index, Origin, Shard, Size, SplitIndex, Tally
from trainer.data.making.parts import Made
from trainer.learning.state import State, make_state
from trainer.prepare_run import is_done
from trainer.recipes.config import Config, ModelConfig
from trainer.recipes.fields import config_hash, from_json, to_json
from trainer.report import charts, write_report
from trainer.store import ObjectStore, open_store
from trainer.telemetry.metrics import read_metrics
from trainer.values import parse_json

HEAD = checkpoint_key(RUN, HEAD_FILE)
CONFIG = Config(model=ModelConfig(name="resnet18", num_classes=3))
BEST = {"top1": 0.5, "step": 2, "weights": "model"}
COUNTERS = {"step": 2, "validated": 2, "scores": {"val/top1": 0.5}, "best": BEST, "seconds": 1.5, "scaler": {}}
DATA = {"name": "digits", "version": "1", "fingerprint": "f", "commit": ""}


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    """The store of a run with steps 1 and 2."""
    (tmp_path / "store").mkdir()
    store = open_store(str(tmp_path / "store"))
    with owning(store, 1, tmp_path) as ownership:
        for step in (1, 2):
            said: dict[str, Any] = {"config": to_json(CONFIG), "counters": COUNTERS, "data": DATA}
            commit(ownership, step, state(step), is_best=step == 2, **said)
    store.put(attempt_key(RUN, 1), b"{}")
    row = {"step": 0, "time": 0, "event": "start", "attempt": 1, "origin": 0}
    store.put(metrics_key(RUN, 1, "0.jsonl"), json.dumps(row).encode())
    return store


@pytest.fixture(scope="module")
def training() -> State:
    return make_state(CONFIG, torch.device("cpu"), initialise=False)


def sealed(value: Any) -> bytes:
    with suppress(ValueError, RecursionError):  # not all values can be sealed
        return seal(value)
    return b""


def test_a_forged_manifest_is_skipped_or_refused(store: ObjectStore, training: State) -> None:
    """Each has a right CRC. What `restore` takes over, the start that follows takes over or refuses with a message."""
    key, older = manifest_key(RUN, 2, 1), manifest_key(RUN, 1, 1)
    honest = unseal(store.get(key)) | {"config": {"model": {"name": "x"}}}
    for body in forgeries(honest, sealed):
        store.put(key, body)
        tensors = state(9)
        if b'"format": 2' not in body and b'"run_id"' in body:
            with pytest.raises(UserError, match="has format"):
                restore(store, RUN, tensors)
            continue
        restored, skipped = restore(store, RUN, tensors)
        assert restored is not None
        assert (restored.step, len(skipped)) in ((2, 0), (1, 1))
        assert same(tensors, state(restored.step))
        with suppress(UserError):
            training.load_counters(restored.counters)
    store.put(key, seal({name: value for name, value in honest.items() if name != "run_id"}))
    restored, skipped = restore(store, RUN, state(9))
    assert restored is not None
    assert (restored.key, skipped) == (older, [f"{store.describe(key)}: run_id is missing"])


def test_a_forged_head_hides_no_checkpoint_and_stops_nobody_without_a_word(store: ObjectStore, tmp_path: Path) -> None:
    attempts = itertools.count(2)
    for body in forgeries(unseal(store.get(HEAD)), sealed):
        store.put(HEAD, body)
        with suppress(UserError):  # it may name what is not there
            restored, _ = restore(store, RUN, state(9))
            assert restored is not None
        ownership = owner(store, next(attempts), tmp_path, lease_seconds=0.01)
        with suppress(LostRunError):
            ownership.claim(lambda line: None, lambda before: None)
        ownership.machine.close()


def test_a_head_that_names_the_objects_of_another_run_counts_as_damaged(store: ObjectStore, tmp_path: Path) -> None:
    """Else the next commit would retire them."""
    other = "checkpoints/other/manifest/step-00000001.1.json"
    store.put(other, b"{}")
    store.put(HEAD, seal(unseal(store.get(HEAD)) | {"previous": other, "attempt": 1}))
    with owning(store, 3, tmp_path) as ownership:
        for step in (3, 4):
            commit(ownership, step, state(step))
    assert store.get(other) == b"{}"


def test_a_head_that_names_no_manifest_counts_as_damaged(store: ObjectStore, tmp_path: Path) -> None:
    """Else the uploader would end with a traceback when it commits for the second time."""
    store.put(HEAD, seal(unseal(store.get(HEAD)) | {"previous": checkpoint_key(RUN, "manifest/../x")}))
    with owning(store, 3, tmp_path) as ownership:
        for step in (3, 4):
            commit(ownership, step, state(step))
        ownership.sweep()
    restored, skipped = restore(store, RUN, state(9))
    assert restored is not None
    assert (restored.step, skipped) == (4, [])


COMMANDS = [["list"], ["verify", "--every"], ["export", "{}/x.safetensors"], ["rewind", "1"]]


@pytest.mark.parametrize("arguments", COMMANDS)
def test_the_command_for_checkpoints_ends_with_a_message(
    arguments: list[str], store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in (("STORE", store.uri), ("RUN_ID", RUN), ("SCRATCH_DIR", str(tmp_path))):
        monkeypatch.setenv(f"TRAINER_{name}", value)
    given, key = [one.format(tmp_path) for one in arguments], manifest_key(RUN, 1 if "rewind" in arguments else 2, 1)
    honest = {one: store.get(one) for one in (key, HEAD)}
    values = {one: unseal(body) for one, body in honest.items()}
    values[key]["config"] = {"model": {"name": "x"}}
    for forged in (key,) if "rewind" in arguments else (key, HEAD):  # a forged HEAD.json is waited for
        for body in forgeries(values[forged], sealed)[::9]:
            for one in honest:
                store.put(one, body if one == forged else honest[one])
            code = checkpoints.main(given)
            said = capsys.readouterr()
            assert code in (Exit.FINISHED, Exit.USER), said
            assert code == Exit.FINISHED or re.search("error: |DAMAGED|MISSING", said.out + said.err)
            assert "\x1b" not in said.out + said.err


def test_forged_metrics_are_skipped_and_said(store: ObjectStore, capfd: pytest.CaptureFixture[str]) -> None:
    honest = {"step": 1, "time": 5.0, "train/loss": 2.0, "train/epoch": 0.1, "speed/images_per_second": 3.0}
    start = {"step": 0, "time": 0, "event": "start", "attempt": 1, "origin": 0}
    good = json.dumps(start).encode() + b"\n" + json.dumps(honest).encode()
    bodies = [*forgeries(honest), *forgeries(start)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "draw_charts", lambda *_: ({}, {}))
        for body in bodies:
            store.put(metrics_key(RUN, 1, "0.jsonl"), good + b"\n" + body.replace(b"\n", b""))
            rows = read_metrics(store, RUN)
            assert [row["step"] for row in rows][:2] == [0, 1]
        for body in bodies[::9]:
            store.put(metrics_key(RUN, 1, "0.jsonl"), good + b"\n" + body)
            store.put(metrics_key(RUN, 2, "0.jsonl"), body)
            write_report(store, RUN)
    assert "has 1 lines that are no metrics (the file is None, not an object): skipped" in capfd.readouterr().err
    store.put(metrics_key(RUN, 1, "0.jsonl"), good + b'\n{"step": 2, "val/top1": 1e90, "train/loss": NaN}')
    store.put(metrics_key(RUN, 2, "0.jsonl"), b"")
    write_report(store, RUN)  # with its charts


def test_a_forged_config_or_result_is_skipped_and_said(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(charts, "draw_charts", lambda *_: ({}, {}))
    result = {
        "run_id": RUN, "recipe": "rn50", "steps": 2, "epochs": 1, "steps_per_epoch": 2, "seconds": 1.0, "attempts": 1,
        "images_per_second": 7.0, "best": BEST, "checkpoint": "checkpoints/x", "parameters": 5,
    }  # fmt: skip
    config = {"recipe": "x", "epochs": 3, "model": {"name": "y"}}
    for file, honest in (("config.json", config), ("result.json", result)):
        for body in forgeries(honest):
            store.put(run_key(RUN, file), body)
            write_report(store, RUN)
    said = f"{RUN}/result.json is not what a trainer writes (the file is None, not an object): skipped"
    assert said in capfd.readouterr().err


def complete(kind: Any, found: Any) -> dict[str, Any]:
    """What a config says with the fields that one of an older version lacks, which then have their defaults."""
    said = dict(found)
    for f in dataclasses.fields(kind):
        if f.metadata.get("added") and f.name not in said:
            said[f.name] = json.loads(json.dumps(to_json(Config())))[f.name] if kind is Config else f.default
        elif dataclasses.is_dataclass(f.default):
            said[f.name] = complete(type(f.default), said[f.name])
    return json.loads(json.dumps(said))


def test_a_forged_config_is_refused_or_means_what_it_says() -> None:
    for body in forgeries(to_json(CONFIG)):
        with suppress(ValueError):
            found = parse_json(body)
            assert not origin.check_config(found, RUN, CONFIG)
            assert config_hash(from_json(Config, found)) == config_hash(CONFIG)
            read = json.loads(json.dumps(to_json(from_json(Config, found))))
            assert read == complete(Config, found)


def test_a_config_that_is_none_is_no_config_to_continue_with(store: ObjectStore) -> None:
    store.put(manifest_key(RUN, 2, 1), b"damaged")
    for body in BODIES:
        store.put(run_key(RUN, "config.json"), body)
        with pytest.raises(UserError, match=r"config\.json is no config|fields .* are unknown or missing"):
            origin.check_config(origin.read_config(store, RUN, manifest_key(RUN, 2, 1)), RUN, CONFIG)


def test_a_forged_index_or_note_of_a_shard_is_damaged() -> None:
    shard = Shard("train-32px-00000.arrow", 3, 100, 5)
    splits = {name: SplitIndex(3, (Size(32, 90, (shard,)),)) for name in ("train", "val")}
    index = Index("a", "b", ("x", "y"), splits, "f", Origin("hub", "d", 1, 2, "c"))
    for body in forgeries(json.loads(index.to_json())):
        with suppress(UserError):
            found = Index.from_json(body, "here")
            assert {found.sides_for(name, (32, 32)) for name in ("train", "val")}
            assert all(type(one) is str for one in found.classes)
            assert not any("/" in one.file or "\0" in one.file for one in found.shards())
    tally = Tally(3, [np.array([0, 1, 1])], broken=["b: cut"], hashes=[np.zeros(4, np.uint64)])
    made = Made(shard, tally)
    assert Made.from_json(made.to_json().encode(), 2).shard == shard
    for body in forgeries(json.loads(made.to_json())):
        with suppress(ValueError, TypeError, KeyError):
            again = Made.from_json(body, 2)
            assert again.tally.labels[0].max(initial=0) < 2
            assert {type(count) for count in asdict(again.shard).values()} == {str, int}


def test_a_forged_done_of_a_preparation_is_an_end_all_the_same(store: ObjectStore) -> None:
    for body in forgeries({"images": 3, "dataset": "s3://a", "exit": 0}):
        store.put(run_key("prepare-1", "done.json"), body)
        assert is_done(store, "prepare-1")


def test_a_forged_header_of_a_checkpoint_is_damaged() -> None:
    body = bytes(file_of(state(1)))
    size = int.from_bytes(body[:8], "little")
    for header in forgeries(json.loads(body[8 : 8 + size])):
        forged = len(header).to_bytes(8, "little") + header + body[8 + size :]
        with suppress(DamagedError):
            for tensor in tensors_of(memoryview(bytearray(forged))).values():
                tensor.float().sum()
    for shape in ([0], [0, 2**52, 2**52]):  # torch refuses both
        header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
        with pytest.raises(DamagedError):
            tensors_of(memoryview(bytearray(len(header).to_bytes(8, "little") + header)))
    for length in (0, 2**63, len(body)):
        with pytest.raises(DamagedError):
            tensors_of(memoryview(length.to_bytes(8, "little") + body[8:]))
