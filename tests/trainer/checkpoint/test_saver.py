"""Snapshots and their handover: the bytes are a safetensors file, the newest wins, and nothing torn is ever sent."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch
from torch import Tensor

from tests import ROOT
from tests.checkpoints import RUN, file_of, same, state
from tests.trainer.standins import Receiver
from trainer.checkpoint.layout import Layout
from trainer.checkpoint.restore import tensors_of
from trainer.checkpoint.saver import Checkpointer
from trainer.contract import LostRunError
from trainer.process.channel import Channel, DisconnectedError
from trainer.store import StoreError


def stored_order(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the file has them: channels last where memory has them last."""
    return {name: t if t.is_contiguous() else t.permute(0, 2, 3, 1) for name, t in tensors.items()}


def test_a_checkpoint_is_a_safetensors_file_with_every_tensor_aligned_and_in_memory_order() -> None:
    tensors = state(1)
    body = file_of(tensors)
    assert same(safetensors.torch.load(bytes(body)), stored_order(tensors))
    for name, (start, end) in Layout.of(tensors).places.items():
        assert start % tensors[name].element_size() == 0
        assert end - start == tensors[name].nbytes


def test_what_is_read_back_has_the_logical_shapes_whatever_the_memory_order() -> None:
    assert same(tensors_of(file_of(state(1))), state(1))
    plain = {name: tensor.contiguous() for name, tensor in state(2).items()}
    assert same(tensors_of(file_of(plain)), state(2))


def test_a_save_hands_over_a_copy_that_later_steps_do_not_change(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    tensors = state(1)
    checkpointer = Checkpointer(tensors, ours, {"run_id": RUN})
    assert checkpointer.save(3, {"n": 3}, is_best=True)
    for tensor in tensors.values():
        tensor.zero_()
    seq, snapshot = Receiver(theirs).receive()
    assert snapshot.lock(wait=False)
    note = snapshot.note
    assert (note["seq"], note["step"], note["is_best"]) == (seq, 3, True)
    assert (note["manifest"]["run_id"], note["manifest"]["counters"]) == (RUN, {"n": 3})
    assert same(tensors_of(snapshot.body), state(1))


def test_while_one_is_sent_a_newer_save_takes_the_place_of_the_one_that_waits(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    uploader, checkpointer = Receiver(theirs), Checkpointer(state(1), ours, {})
    checkpointer.save(1, {})
    first, sending = uploader.receive()
    assert sending.lock(wait=False)
    for step in (2, 3, 4):
        started = time.monotonic()
        assert checkpointer.save(step, {})
        assert time.monotonic() - started < 1
    seqs = [uploader.receive() for _ in range(3)]
    waiting = seqs[-1][1]
    assert [seq for seq, snapshot in seqs if snapshot.note["seq"] == seq] == [seqs[-1][0]], "the others are void"
    assert waiting.note["step"] == 4
    assert sending.note["step"] == 1, "what is being sent is left alone"
    sending.unlock()
    uploader.committed(first)
    assert checkpointer.save(5, {})
    assert uploader.receive()[1] is sending


def test_the_best_weights_wait_for_their_turn_and_only_better_ones_take_their_place(
    pair: tuple[Channel, Channel],
) -> None:
    ours, theirs = pair
    uploader, checkpointer = Receiver(theirs), Checkpointer(state(1), ours, {})
    checkpointer.save(1, {})
    assert uploader.receive()[1].lock(wait=False)
    assert checkpointer.save(2, {}, is_best=True)
    assert not checkpointer.save(3, {})
    assert checkpointer.saved_step == 2
    assert checkpointer.save(4, {}, is_best=True)
    assert [uploader.receive()[1].note["step"] for _ in range(2)] == [4, 4]


def test_a_step_is_saved_once(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    checkpointer = Checkpointer(state(1), ours, {}, restored=(7, "restored", {"validated": 7}))
    assert checkpointer.save(7, {"validated": 7})
    assert checkpointer.save(8, {})
    assert checkpointer.save(8, {})
    assert Receiver(theirs).receive()[0] == 1
    with pytest.raises(TimeoutError):
        theirs.receive(timeout=0.1)


def test_a_restored_step_is_saved_again_when_it_was_validated_since(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    checkpointer = Checkpointer(state(1), ours, {}, restored=(7, "restored", {"validated": 5}))
    assert checkpointer.save(7, {"validated": 7}, is_best=True)
    note = Receiver(theirs).receive()[1].note
    assert (note["step"], note["is_best"]) == (7, True)


def test_the_lag_is_that_of_the_last_commit_and_grows_while_none_comes(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    checkpointer = Checkpointer(state(1), ours, {})
    assert checkpointer.lag_seconds == 0
    checkpointer.save(1, {})
    time.sleep(0.2)
    assert checkpointer.lag_seconds >= 0.2
    Receiver(theirs).committed(1, "manifest-1")
    checkpointer.poll()
    lag = checkpointer.lag_seconds
    assert checkpointer.committed == "manifest-1"
    assert 0.2 <= lag < 5
    time.sleep(0.05)
    assert checkpointer.lag_seconds == lag


def test_what_a_save_holds_the_training_up_is_counted_until_it_is_taken(pair: tuple[Channel, Channel]) -> None:
    ours, _ = pair
    checkpointer = Checkpointer(state(1), ours, {})
    checkpointer.save(1, {}, before_sending=lambda: time.sleep(0.2))
    time.sleep(0.2)  # training goes on
    assert 0.2 <= checkpointer.take_stall_seconds() < 0.4
    assert checkpointer.take_stall_seconds() == 0


def test_the_end_of_the_deadline_or_of_the_uploader_is_an_error_not_a_success(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    checkpointer = Checkpointer(state(1), ours, {})
    end = time.monotonic() + 0.1
    with pytest.raises(StoreError, match="in time"):
        checkpointer.save_last(5, {}, lambda: end)
    theirs.close()
    with pytest.raises(DisconnectedError, match="the uploader has died"):
        checkpointer.save_last(5, {}, lambda: end + 60)
    with pytest.raises(DisconnectedError, match="the uploader has died"):
        checkpointer.is_due(45)


def test_a_last_save_that_the_uploader_gave_up_on_is_an_error(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    checkpointer = Checkpointer(state(1), ours, {})
    theirs.send({"seq": 1, "step": 5})
    with pytest.raises(StoreError, match="step 5 did not reach the store in time"):
        checkpointer.save_last(5, {}, lambda: time.monotonic() + 60)


def test_a_run_that_was_taken_over_is_noticed_at_the_next_step(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    checkpointer = Checkpointer(state(1), ours, {})
    theirs.send({"lost": "attempt 2 has taken the run over from attempt 1"})
    with pytest.raises(LostRunError, match="attempt 2"):
        checkpointer.is_due(45)


SAVES = 50
SAVER = """
import sys, torch
from trainer.process.channel import Channel
from trainer.checkpoint.saver import Checkpointer
tensors = {f"t{i}": torch.zeros(1 << 18) for i in range(16)}
checkpointer = Checkpointer(tensors, Channel.connect(sys.argv[1]), {})
for step in range(1, 1_000_000):
    for tensor in tensors.values():
        tensor.fill_(step)
    checkpointer.save(step, {"all": step})
"""


@pytest.mark.slow
def test_a_saver_that_overwrites_all_the_time_and_is_killed_hands_over_no_torn_state(tmp_path: Path) -> None:
    """All tensors of one save have one value; 16 MB change under a reader that is as slow as it can be.

    However slow the machine is, the saver lives until enough saves were read, and dies at some moment of a later one.
    """
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(str(tmp_path / "s"))
    server.listen(1)
    saver = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path / "s")], cwd=ROOT)
    channel = Channel(server.accept()[0])
    uploader, seen = Receiver(channel), set[int]()
    killer = threading.Timer(random.uniform(0, 0.1), lambda: saver.send_signal(signal.SIGKILL))
    try:
        while True:
            seq, snapshot = uploader.receive()
            assert snapshot.lock(wait=True)
            if snapshot.note["seq"] == seq:
                step = snapshot.note["step"]
                values = {float(tensor[i]) for tensor in tensors_of(snapshot.body).values() for i in (0, -1)}
                time.sleep(0.002)
                values |= {float(tensor[i]) for tensor in tensors_of(snapshot.body).values() for i in (0, 1000, -1)}
                assert values == {float(step)}
                seen.add(step)
                if len(seen) == SAVES:
                    killer.start()
            snapshot.unlock()
            channel.send({"seq": seq, "step": 0, "committed": "x"})
    except DisconnectedError:
        pass
    finally:
        killer.cancel()
        saver.kill()
        saver.wait()
        channel.close()
        server.close()
    for snapshot in uploader.snapshots.values():  # what the killed one left: whole, or marked as void
        note = snapshot.note
        if note["seq"]:
            assert {float(t[0]) for t in tensors_of(snapshot.body).values()} == {float(note["step"])}
    assert len(seen) >= SAVES
