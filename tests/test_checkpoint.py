"""Snapshots and their restore: the bytes are a safetensors file, and bytes that changed are never loaded."""

from __future__ import annotations

import json
import os
import random
import socket
import time
import zlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from trainer.channel import Channel
from trainer.checkpoint import Checkpointer, Layout, LostRunError, Snapshot, restore
from trainer.contract import Head, UserError, checkpoint_key, manifest_key, snapshot_key
from trainer.store import ObjectStore, StoreError, open_store

RUN = "job"


def state(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "model.conv.weight": torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
        "model.bn.num_batches_tracked": torch.tensor(seed),
        "model.bn.half": torch.randn(5).to(torch.bfloat16),
        "model.flag": torch.tensor([True, False, True]),
        "model.empty": torch.empty(0, 3),
        "ema.conv.weight": torch.randn(2, 3),
    }


def write(store: ObjectStore, step: int, tensors: dict[str, Tensor], *, previous: str = "", format: int = 1) -> str:
    """Commit as the uploader does."""
    snapshot = Snapshot(layout := Layout.of(tensors), tensors)
    for name, tensor in tensors.items():
        snapshot.views[name].copy_(tensor)
    body = bytes(snapshot.buffer)
    assert len(body) == layout.bytes
    store.put(snapshot_key(RUN, step, 1), body)
    manifest = {
        "format": format, "step": step, "counters": {"n": step},
        "object": {"key": snapshot_key(RUN, step, 1), "bytes": len(body), "crc32": zlib.crc32(body)},
    }  # fmt: skip
    key = manifest_key(RUN, step, 1)
    store.put(key, json.dumps(manifest).encode())
    store.put(checkpoint_key(RUN, "HEAD.json"), Head(attempt=1, newest=key, previous=previous).to_json())
    return key


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    (tmp_path / "store").mkdir()
    return open_store(str(tmp_path / "store"))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_snapshot_is_a_safetensors_file_with_every_tensor_aligned() -> None:
    tensors = state(1)
    snapshot = Snapshot(layout := Layout.of(tensors), tensors)
    for name, tensor in tensors.items():
        snapshot.views[name].copy_(tensor)
    assert same(safetensors.torch.load(bytes(snapshot.buffer)), tensors)
    for name, (start, end) in layout.places.items():
        assert start % tensors[name].element_size() == 0
        assert end - start == tensors[name].nbytes


def test_the_memory_of_a_snapshot_is_a_file_that_another_process_can_read() -> None:
    tensors = state(2)
    snapshot = Snapshot(layout := Layout.of(tensors), tensors)
    snapshot.views["ema.conv.weight"].copy_(tensors["ema.conv.weight"])
    body = os.pread(snapshot.fd, layout.bytes, 0)
    assert torch.equal(safetensors.torch.load(body)["ema.conv.weight"], tensors["ema.conv.weight"])


def test_a_restore_gives_every_tensor_and_counter_back(store: ObjectStore) -> None:
    key = write(store, 12, state(3))
    tensors = state(4)
    restored, skipped = restore(store, RUN, tensors)
    assert restored is not None
    assert (restored.key, restored.step, restored.counters) == (key, 12, {"n": 12})
    assert not skipped
    assert same(tensors, state(3))


def test_a_run_without_checkpoints_starts_at_nothing(store: ObjectStore) -> None:
    tensors = state(4)
    assert restore(store, RUN, tensors) == (None, [])
    assert same(tensors, state(4))


def test_a_store_that_fails_is_never_a_run_without_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        restore(open_store(str(tmp_path / "not-mounted")), RUN, state(1))


def test_two_hundred_damaged_files_are_all_noticed_and_the_one_before_is_used(store: ObjectStore) -> None:
    first = write(store, 1, state(5))
    write(store, 2, state(6), previous=first)
    key = snapshot_key(RUN, 2, 1)
    whole, rng = store.get(key), random.Random(0)
    for trial in range(200):
        body = bytearray(whole)
        if trial % 4 == 3:
            body = body[: rng.randrange(len(body))]
        else:
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        store.put(key, bytes(body))
        tensors = state(7)
        restored, skipped = restore(store, RUN, tensors)
        assert restored is not None
        assert restored.step == 1, f"trial {trial} was loaded"
        assert same(tensors, state(5))
        assert len(skipped) == 1
        assert "step-00000002" in skipped[0]


def test_when_nothing_verifies_the_run_stops_and_no_tensor_is_touched(store: ObjectStore) -> None:
    write(store, 1, state(5))
    store.put(snapshot_key(RUN, 1, 1), b"nonsense")
    tensors = state(7)
    with pytest.raises(UserError, match=r"none can be used.*8 bytes instead of"):
        restore(store, RUN, tensors)
    assert same(tensors, state(7))


def test_a_checkpoint_of_another_model_or_a_newer_format_is_refused_with_the_fix(store: ObjectStore) -> None:
    write(store, 1, state(5))
    with pytest.raises(UserError, match=r"another model.*RUN=another-name"):
        restore(store, RUN, {"model.conv.weight": torch.zeros(9)})
    write(store, 1, state(5), format=2)
    with pytest.raises(UserError, match="format 2, and this trainer reads 1"):
        restore(store, RUN, state(5))


@pytest.fixture
def pair() -> tuple[Channel, Channel]:
    """The trainer's and the uploader's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours), Channel(theirs)


def test_a_save_hands_over_a_copy_that_later_steps_do_not_change(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    tensors = state(1)
    checkpointer = Checkpointer(tensors, ours, {"run_id": RUN})
    assert checkpointer.save(3, {"n": 3}, is_best=True)
    for tensor in tensors.values():
        tensor.zero_()
    received = theirs.receive(timeout=5)
    assert received is not None
    message, fd = received
    assert fd is not None
    assert (message["step"], message["is_best"], message["manifest"]["counters"]) == (3, True, {"n": 3})
    assert same(safetensors.torch.load(os.pread(fd, message["bytes"], 0)), state(1))
    os.close(fd)
    ours.close()
    theirs.close()


def test_with_both_snapshots_on_their_way_a_save_is_left_out_and_never_waits(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    checkpointer = Checkpointer(state(1), ours, {})
    assert checkpointer.save(1, {}, is_best=False)
    assert checkpointer.save(2, {}, is_best=False)
    started = time.monotonic()
    assert not checkpointer.save(3, {}, is_best=False)
    assert time.monotonic() - started < 1
    theirs.send({"buffer": 0, "step": 1, "committed": "manifest-1", "seconds": 2.5})
    assert checkpointer.save(4, {}, is_best=False)
    assert (checkpointer.committed, checkpointer.lag_seconds) == ("manifest-1", 2.5)
    ours.close()
    theirs.close()


def test_the_end_of_the_uploader_or_of_the_deadline_is_an_error_not_a_success(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    checkpointer = Checkpointer(state(1), ours, {})
    with pytest.raises(StoreError, match="in time"):
        checkpointer.save_last(5, {}, deadline=time.monotonic() + 0.1)
    theirs.close()
    with pytest.raises(StoreError, match="the uploader is gone"):
        checkpointer.save_last(5, {}, deadline=time.monotonic() + 5)
    ours.close()


def test_the_last_step_is_saved_as_the_best_where_it_is(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    checkpointer = Checkpointer(state(1), ours, {})
    with pytest.raises(StoreError, match="in time"):  # nobody answers here
        checkpointer.save_last(5, {}, deadline=time.monotonic() + 0.1, is_best=True)
    received = theirs.receive(timeout=5)
    assert received is not None
    message, fd = received
    assert fd is not None
    os.close(fd)
    assert (message["step"], message["is_best"]) == (5, True)
    ours.close()
    theirs.close()


def test_a_run_that_was_taken_over_is_noticed_at_the_next_step(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    checkpointer = Checkpointer(state(1), ours, {})
    checkpointer.save(1, {}, is_best=False)
    theirs.send({"buffer": 0, "step": 1, "lost": "attempt 2 has taken the run over from attempt 1"})
    with pytest.raises(LostRunError, match="attempt 2"):
        checkpointer.is_due(45)
    ours.close()
    theirs.close()
