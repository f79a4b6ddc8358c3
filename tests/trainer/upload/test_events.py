"""TensorBoard's copies of the metrics: the uploader makes them, as tensorboardX would, and no checkpoint waits."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import RUN, names, note, owning
from tests.curves import summary_values
from tests.uploads import Connect, Start, in_memory, is_drained, send_segment, wait_until
from trainer.contract import RunEnv
from trainer.process.channel import Channel
from trainer.process.snapshot import Snapshot
from trainer.store import StoreError, open_store
from trainer.telemetry.metrics import start_row
from trainer.telemetry.samples import samples_key
from trainer.upload import queue
from trainer.upload.copies import copy_of
from trainer.upload.events import event_file, sample_file
from trainer.upload.queue import Sender
from trainer.upload.records import head


def segment(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def rows_from(first: int) -> list[dict[str, Any]]:
    """Steps with numbers that take one byte and more, in all the kinds that a row has."""
    return [
        {"step": step, "time": 1790000000.25 + step, "train/loss": 2.5 / step, "train/top1": 0.0, "train/lr": 1e-12,
         "gpu/memory_bytes": 12345678901, "val_ema/top1": float("nan"),
         "train/diverged": 1e39, "train/sunk": -1e39}
        for step in (first, first + 1, first + 127, first + 20000)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "purge_step"),
    [
        (rows_from(1), None),
        ([start_row(1, 0, 0), *rows_from(1)], None),
        ([start_row(2, 300, 1), *rows_from(301)], 301),
    ],
    ids=["goes on", "begins", "is resumed"],
)
def test_an_event_file_is_to_the_byte_what_tensorboardx_writes(
    rows: list[dict[str, Any]], purge_step: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboardX import SummaryWriter

    monkeypatch.setattr("time.time", lambda: rows[-1]["time"])  # the head of a file has the time of its making
    with SummaryWriter(logdir=str(tmp_path), filename_suffix=".x", max_queue=100, purge_step=purge_step) as writer:
        for row in rows:
            for metric in row:
                if "/" in metric:
                    writer.add_scalar(metric, row[metric], global_step=row["step"], walltime=row["time"])
    (theirs,) = tmp_path.iterdir()
    ours = theirs.name.replace(f".{socket.gethostname()}.", ".trainer.")  # the same, whichever machine makes it again
    assert event_file(segment(rows), "x") == (ours, theirs.read_bytes())


def test_of_samples_each_step_has_the_last_value_also_where_the_segment_before_has_it() -> None:
    def sample(step: int, watts: float, **more: Any) -> dict[str, Any]:
        return {"step": step, "time": 1.5, "phase": "training", "gpu/power_watts": watts} | more

    told = {"step": 7, "time": 1.5, "event": "alert", "kind": "starved", "level": "warning", "text": "a/b"}
    rows = [sample(7, 1.0, **{"gpu/utilization": 0.5}), told, sample(7, 2.0), sample(9, 3.0)]
    name, body = sample_file(segment(rows), "000002")
    assert name == "events.out.tfevents.1.trainer.000002"
    assert [(step, value.tag, value.simple_value) for step, value in summary_values(body)] == [
        (7, "gpu/power_watts", 2.0), (7, "gpu/utilization", 0.5), (9, "gpu/power_watts", 3.0),
    ]  # fmt: skip
    assert body.startswith(head(1.5, 7))


@pytest.mark.slow
def test_the_uploader_makes_the_event_files_without_torch_and_one_that_cannot_be_made_is_told_once(
    folder_uri: str, start: Start, connect: Connect, capfd: pytest.CaptureFixture[str]
) -> None:
    uploader = start(folder_uri)
    channel = connect(uploader)
    for name, content in (("1-2", segment(rows_from(1))), ("3-4", b"no row"), ("5-6", b"{}\n"), ("7-8", b"")):
        send_segment(channel, name, content)
    channel.close()
    assert is_drained(uploader)
    assert "torch" not in Path(f"/proc/{uploader.process.pid}/maps").read_text()
    store = open_store(folder_uri)
    assert [info.key.rsplit("/", 1)[1] for info in store.list(f"runs/{RUN}/metrics/1/")] == [
        "1-2.jsonl", "3-4.jsonl", "5-6.jsonl", "7-8.jsonl",
    ]  # fmt: skip
    (copy,) = store.list(f"runs/{RUN}/tensorboard/1/")
    assert (Path(copy.key).name, store.get(copy.key)) == event_file(segment(rows_from(1)), "1-2")
    assert capfd.readouterr().err.count("TensorBoard has no copy of") == 1
    assert uploader.finish(30) == 0


def test_a_checkpoint_waits_for_the_metrics_before_it_and_not_for_their_copies(
    folder_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(folder_uri)
    gate, put = threading.Event(), store.put

    def put_late(key: str, body: bytes) -> None:
        assert "/tensorboard/" not in key or gate.wait(20)
        put(key, body)

    monkeypatch.setattr(store, "put", put_late)
    env = RunEnv(store=store.uri, run_id=RUN, scratch_dir=str(tmp_path), attempt="1")
    ends = [Channel(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
    with owning(store, 1, tmp_path) as ownership:
        sender = Sender(env, store, ownership)
        sender.put_soon({"op": "put", "key": f"runs/{RUN}/metrics/1/1-2.jsonl"}, in_memory(segment(rows_from(1))))
        snapshot = Snapshot.create(7)
        snapshot.body[:], snapshot.note = b"tensors", note(2)
        sender.commit(2, snapshot, sender.puts, ends[0])
        assert ends[1].receive(timeout=5)[0]["committed"].endswith("step-00000002.1.json")
        assert names(store, "manifest/") == ["step-00000002.1.json"]
        assert len(list(store.list(f"runs/{RUN}/metrics/"))) == 1
        assert not list(store.list(f"runs/{RUN}/tensorboard/"))
        sender.in_order(lambda: None)  # as at the end of a run
        gate.set()
        sender.jobs.get()()
        assert len(list(store.list(f"runs/{RUN}/tensorboard/"))) == 1
    for end in ends:
        end.close()


def test_a_store_that_refuses_the_copies_alone_keeps_nothing_waiting_and_the_attempt_ends_well(
    folder_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store = open_store(folder_uri)
    put = store.put

    def refuse_copies(key: str, body: bytes) -> None:
        if "/tensorboard/" in key:
            raise StoreError("AccessDenied")
        put(key, body)

    monkeypatch.setattr(store, "put", refuse_copies)
    monkeypatch.setattr(queue, "EVENTS_SECONDS", 0.1)
    env = RunEnv(store=store.uri, run_id=RUN, scratch_dir=str(tmp_path), attempt="1")
    ends = [Channel(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
    with owning(store, 1, tmp_path) as ownership:
        sender = Sender(env, store, ownership)
        for name in range(6):  # more than are stored at once
            key = f"runs/{RUN}/metrics/1/{name}.jsonl"
            sender.put_soon({"op": "put", "key": key}, in_memory(segment(rows_from(1))))
        wait_until(lambda: len(list(store.list(f"runs/{RUN}/metrics/"))) == 6)
        snapshot = Snapshot.create(7)
        snapshot.body[:], snapshot.note = b"tensors", note(2)
        sender.commit(2, snapshot, sender.puts, ends[0])
        assert ends[1].receive(timeout=5)[0]["committed"].endswith("step-00000002.1.json")
        sender.retry.end_in(3600)  # a finished run is patient with its store
        sender.in_order(lambda: None)
        sender.jobs.get()()
        assert (sender.failed, sender.saved_here) == (False, "")
    assert capfd.readouterr().err.count("TensorBoard has no copy of") == 1
    for end in ends:
        end.close()


def test_an_attempt_makes_the_copies_that_those_before_it_lack_and_none_twice(
    folder_uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = open_store(folder_uri)

    def key(attempt: int, name: str) -> str:
        return f"runs/{RUN}/metrics/{attempt}/{name}.jsonl"

    whole, cut, other = segment(rows_from(1)), segment(rows_from(1))[:-9], samples_key(RUN, 1, 1)
    for name in (key(1, "1-2"), key(1, "3-4"), key(1, "3-4_2"), key(2, "5-6"), key(3, "7-8"), other):
        store.put(name, whole)
    store.put(key(1, "0-0"), cut)  # comes first, and is no obstacle
    store.put(f"runs/{RUN}/metrics/1/.DS_Store", b"of a file manager")
    older = f"runs/{RUN}/tensorboard/1/events.out.tfevents.1790000001.my.laptop.local.3-4"  # as they were called
    store.put(older, b"made already")
    env = RunEnv(store=store.uri, run_id=RUN, scratch_dir=str(tmp_path), attempt="3")
    with owning(store, 3, tmp_path) as ownership:
        sender = Sender(env, store, ownership)
        sender.mend_copies()
        sender.in_order(lambda: None)
        sender.jobs.get()()
    made = [copy_of(RUN, name, whole) for name in (key(1, "1-2"), key(1, "3-4_2"), key(2, "5-6"), other)]
    expected = dict(copy for copy in made if copy is not None) | {older: b"made already"}
    assert {info.key: store.get(info.key) for info in store.list(f"runs/{RUN}/tensorboard/")} == expected
    assert capfd.readouterr().err.count("TensorBoard has no copy of") == 1


def test_a_file_for_tensorboard_alone_is_stored_as_it_is_and_no_checkpoint_waits_for_it(
    folder_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(folder_uri)
    env = RunEnv(store=store.uri, run_id=RUN, scratch_dir=str(tmp_path), attempt="1")
    with owning(store, 1, tmp_path) as ownership:
        sender = Sender(env, store, ownership)
        key, page = f"runs/{RUN}/tensorboard/1/events.out.tfevents.0.x", f"runs/{RUN}/report/index.html"
        sender.put_soon({"op": "put", "key": key}, in_memory(b"pictures"))
        assert not sender.puts
        sender.put_soon({"op": "put", "key": page}, in_memory(b"<html>"))
        sender.in_order(lambda: None)
        sender.jobs.get()()
        assert (store.get(key), store.get(page)) == (b"pictures", b"<html>")
        assert len(list(store.list(f"runs/{RUN}/tensorboard/"))) == 1


def test_copies_that_several_threads_queue_at_once_are_all_waited_for(
    folder_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(folder_uri)
    env = RunEnv(store=store.uri, run_id=RUN, scratch_dir=str(tmp_path), attempt="1")
    both, unfinished = threading.Barrier(2), queue.unfinished

    def slow(found: set[Future[None]]) -> set[Future[None]]:
        left = unfinished(found)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(timeout=0.3)  # the other thread may look at the same set
        return left

    monkeypatch.setattr(queue, "unfinished", slow)
    gate, made = threading.Event(), list[str]()
    with owning(store, 1, tmp_path) as ownership:
        sender = Sender(env, store, ownership)

        def copy_late(key: str, file: bytes) -> None:
            assert gate.wait(20)
            made.append(key)

        monkeypatch.setattr(sender, "put_copy", copy_late)
        threads = [threading.Thread(target=sender.copy_soon, args=[name, b""]) for name in ("metrics", "samples")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(sender.events) == 2
        sender.in_order(lambda: made.append("the end"))
        gate.set()
        sender.jobs.get()()
        assert sorted(made[:2]) == ["metrics", "samples"]
        assert made[2:] == ["the end"]
