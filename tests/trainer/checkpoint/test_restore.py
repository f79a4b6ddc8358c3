"""Reading checkpoints back: only bytes that verify, the newest of them, and never "nothing" from a store that fails."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import RUN, commit, object_key, owner, owning, same, state
from tests.emulator.s3 import FaultyProxy, refuse
from trainer.checkpoint.line import list_manifests
from trainer.checkpoint.restore import restore
from trainer.contract import HEAD_FILE, UserError, checkpoint_key, manifest_key, seal, unseal
from trainer.store import ObjectStore, StoreError, open_store
from trainer.store.retry import patiently

HEAD = checkpoint_key(RUN, HEAD_FILE)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    (tmp_path / "store").mkdir()
    return open_store(str(tmp_path / "store"))


def test_a_restore_gives_every_tensor_and_counter_back(store: ObjectStore, tmp_path: Path) -> None:
    with owning(store, 1, tmp_path) as ownership:
        key = commit(ownership, 12, state(3))
    tensors = state(4)
    parts: list[int] = []
    restored, skipped = restore(store, RUN, tensors, lambda: parts.append(1))
    assert restored is not None
    assert len(parts) == 1, "each part that is read is progress: who reads a large one slowly does not hang"
    assert (restored.key, restored.step, restored.counters) == (key, 12, {"n": 12})
    assert not skipped
    assert same(tensors, state(3))
    assert tensors["model.conv.weight"].is_contiguous(memory_format=torch.channels_last)


def test_it_does_not_matter_in_which_memory_order_the_model_is_now(store: ObjectStore, tmp_path: Path) -> None:
    with owning(store, 1, tmp_path) as ownership:
        commit(ownership, 12, state(3))
    tensors = {name: tensor.contiguous() for name, tensor in state(4).items()}
    restore(store, RUN, tensors)
    assert same(tensors, state(3))


def test_a_run_without_checkpoints_starts_at_nothing(store: ObjectStore, tmp_path: Path) -> None:
    assert restore(store, RUN, state(4)) == (None, [])
    with owning(store, 1, tmp_path):
        pass
    assert restore(store, RUN, state(4)) == (None, [])


def test_a_store_that_is_not_there_is_never_a_run_without_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        restore(open_store(str(tmp_path / "not-mounted")), RUN, state(1))


@pytest.mark.parametrize("answer", [(403, "AccessDenied"), (500, "InternalError"), (503, "SlowDown")])
def test_a_store_that_refuses_or_errs_is_never_a_run_without_checkpoints(
    answer: tuple[int, str], s3_uri: str, s3_proxy: FaultyProxy
) -> None:
    s3_proxy.plan("GET", *[refuse(*answer)] * 100)
    with pytest.raises(StoreError) as raised:
        restore(open_store(s3_uri), RUN, state(1))
    assert raised.value.code == answer[1]


def test_a_store_that_fails_for_a_while_is_waited_for_and_mentioned(
    s3_uri: str, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    with owning(open_store(s3_uri), 1, tmp_path) as ownership:
        commit(ownership, 12, state(3))
    s3_proxy.plan("GET", *[refuse(403, "AccessDenied")] * 3)
    tensors, said = state(4), list[str]()
    restored, _ = patiently("the store", lambda: restore(open_store(s3_uri), RUN, tensors), said.append)
    assert restored is not None
    assert same(tensors, state(3))
    assert len(said) == 1
    assert "trying again" in said[0]


def test_one_that_goes_on_failing_ends_with_what_the_user_can_do(s3_uri: str, s3_proxy: FaultyProxy) -> None:
    s3_proxy.plan("GET", *[refuse(403, "AccessDenied")] * 100)
    store = open_store(s3_uri)
    with pytest.raises(UserError, match=r"after 1 s of trying, the store.*AccessDenied.*allow the role or user"):
        patiently("the store", lambda: restore(store, RUN, state(4)), lambda line: None, seconds=1)


MUTATIONS = ("bit", "truncated", "parts swapped", "missing", "empty", "of another step")


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_damaged_file_is_always_noticed_and_the_one_before_is_used(
    mutation: str, store: ObjectStore, tmp_path: Path
) -> None:
    with owning(store, 1, tmp_path) as ownership:
        commit(ownership, 1, state(5))
        key = object_key(store, commit(ownership, 2, state(6)))
    whole, rng = store.get(key), random.Random(mutation)
    for trial in range(40 if mutation in ("bit", "truncated") else 1):
        body = bytearray(whole)
        if mutation == "bit":
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        elif mutation == "truncated":
            body = body[: rng.randrange(1, len(body))]
        elif mutation == "parts swapped":
            middle = len(body) // 2
            body = body[middle:] + body[:middle]
        elif mutation == "of another step":
            body = bytearray(store.get(key.replace("00000002", "00000001")))
        store.put(key, b"" if mutation == "empty" else bytes(body))
        if mutation == "missing":
            store.retire(key)
        tensors = state(7)
        restored, skipped = restore(store, RUN, tensors)
        assert restored is not None
        assert restored.step == 1, f"trial {trial} was loaded"
        assert same(tensors, state(5))
        assert len(skipped) == 1
        assert "step-00000002" in skipped[0]


def test_every_damaged_manifest_is_noticed(store: ObjectStore, tmp_path: Path) -> None:
    with owning(store, 1, tmp_path) as ownership:
        commit(ownership, 1, state(5))
        key = commit(ownership, 2, state(6))
    whole, rng = store.get(key), random.Random(0)
    for _ in range(100):
        body = bytearray(whole)
        body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        store.put(key, bytes(body))
        restored, skipped = restore(store, RUN, state(7))
        assert restored is not None
        assert restored.step == 1
        assert "step-00000002" in skipped[0]


@pytest.mark.parametrize("change", [{"run_id": "other"}, {"step": 3}, {"attempt": 2}])
def test_a_whole_manifest_under_a_name_that_is_not_its_own_is_not_used(
    change: dict[str, Any], store: ObjectStore, tmp_path: Path
) -> None:
    with owning(store, 1, tmp_path) as ownership:
        commit(ownership, 1, state(5))
        key = commit(ownership, 2, state(6))
    store.put(key, seal(unseal(store.get(key)) | change))
    restored, skipped = restore(store, RUN, state(7))
    assert restored is not None
    assert restored.step == 1
    assert "it is the manifest of run" in skipped[0]


def test_a_bit_that_flips_on_its_way_is_read_again(s3_uri: str, s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    with owning(open_store(s3_uri), 1, tmp_path) as ownership:
        key = object_key(ownership.store, commit(ownership, 12, state(3)))

    def flip(forward: Any) -> Any:
        status, headers, body = forward()
        if body.startswith(b"<") or b'"object"' in body or b'"renewed"' in body:
            return status, headers, body
        return status, headers, body[:-1] + bytes([body[-1] ^ 1])

    store = open_store(s3_uri)
    _, keys = list_manifests(store, RUN)
    assert keys == [manifest_key(RUN, 12, 1)]
    s3_proxy.plan("GET", *[flip] * 4)  # list, HEAD.json, manifest, and then the object once
    tensors = state(4)
    restored, skipped = restore(store, RUN, tensors)
    assert restored is not None
    assert not skipped
    assert same(tensors, state(3))
    assert sum(request.startswith("GET") and key in request for request in s3_proxy.requests) == 2


def test_when_nothing_verifies_the_run_stops_and_no_tensor_is_touched(store: ObjectStore, tmp_path: Path) -> None:
    with owning(store, 1, tmp_path) as ownership:
        key = object_key(store, commit(ownership, 1, state(5)))
    store.put(key, b"nonsense")
    tensors = state(7)
    with pytest.raises(UserError, match=r"none can be used.*8 bytes instead of.*RUN=another-name"):
        restore(store, RUN, tensors)
    assert same(tensors, state(7))


def test_a_lease_that_is_gone_or_put_back_hides_no_checkpoint(store: ObjectStore, tmp_path: Path) -> None:
    with owning(store, 1, tmp_path) as ownership:
        commit(ownership, 1, state(5))
        old = store.get(HEAD)
        commit(ownership, 2, state(6))
    for body in (old, b"", None):
        store.retire(HEAD) if body is None else store.put(HEAD, body)
        restored, _ = restore(store, RUN, state(7))
        assert restored is not None
        assert restored.step == 2


def test_older_checkpoints_that_were_superseded_but_not_expired_are_a_last_resort(s3_uri: str, tmp_path: Path) -> None:
    store = open_store(s3_uri)
    with owning(store, 1, tmp_path) as ownership:
        for step in (1, 2, 3):
            commit(ownership, step, state(step))
    for step in (2, 3):
        store.put(manifest_key(RUN, step, 1), b"")
    tensors = state(7)
    restored, skipped = restore(store, RUN, tensors)
    assert restored is not None
    assert (restored.step, len(skipped)) == (1, 2)
    assert same(tensors, state(1))


def test_a_checkpoint_of_another_model_or_a_newer_format_is_refused_with_the_fix(
    store: ObjectStore, tmp_path: Path
) -> None:
    ownership = owner(store, 1, tmp_path)
    ownership.claim(print, lambda before: None)
    commit(ownership, 1, state(5))
    tensors = state(6) | {"model.conv.weight": torch.zeros(9)}
    match = r"model.conv.weight: F32 \[4, 3, 3, 3\] there, F32 \[9\] here.*RUN=another-name"
    with pytest.raises(UserError, match=match):
        restore(store, RUN, tensors)
    assert same({"model.flag": tensors["model.flag"]}, {"model.flag": state(6)["model.flag"]})
    assert tensors["model.bn.num_batches_tracked"] == 6, "nothing was touched"
    commit(ownership, 2, state(5), format=99)
    with pytest.raises(UserError, match="has format 99, and this trainer reads 2: use the version that wrote it"):
        restore(store, RUN, state(5))


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("ema.fc.bias", "--average.half-life-steps or --regularize.ema-decay"),
        ("swa.fc.bias", "--average.late-epochs"),
        ("exp_avg.fc.bias", "--optim.name or --optim.freeze-stages"),
    ],
)
def test_tensors_that_an_option_adds_are_told_with_the_option(
    store: ObjectStore, tmp_path: Path, name: str, option: str
) -> None:
    with owning(store, 1, tmp_path) as ownership:
        commit(ownership, 1, state(5))
    with pytest.raises(UserError, match=f"was saved with another {option}: {name}: missing there.*RUN=another-name"):
        restore(store, RUN, state(6) | {name: torch.zeros(2)})
    with pytest.raises(UserError, match="is of another model: "):
        restore(store, RUN, state(6) | {name: torch.zeros(2), "model.fc.bias": torch.zeros(2)})


def test_a_checkpoint_of_several_parts_is_read_and_checked_by_parts(s3_uri: str, tmp_path: Path) -> None:
    big = {"model.weight": torch.arange(10_000_000, dtype=torch.float32)}  # 40 MB: two parts of up to 32 MiB
    store = open_store(s3_uri)
    with owning(store, 1, tmp_path) as ownership:
        key = commit(ownership, 1, big)
    parts = json.loads(store.get(key))["object"]["parts"]
    assert len(parts) == 2
    tensors = {"model.weight": torch.zeros(10_000_000)}
    started = time.monotonic()
    restore(store, RUN, tensors)
    assert torch.equal(tensors["model.weight"], big["model.weight"])
    assert time.monotonic() - started < 20
