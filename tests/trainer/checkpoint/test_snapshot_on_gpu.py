"""A save on a GPU: one kernel for each type of tensors, one copy to the host, and a training that waits for neither."""

from __future__ import annotations

import pytest
import torch

from tests.checkpoints import same, state
from tests.trainer.cuda import StandInCuda, stand_in_cuda
from tests.trainer.standins import Receiver
from trainer.checkpoint.layout import Layout
from trainer.checkpoint.restore import tensors_of
from trainer.checkpoint.saver import Checkpointer, Copier
from trainer.process.channel import Channel
from trainer.process.snapshot import Snapshot
from trainer.store import StoreError


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> StandInCuda:
    return stand_in_cuda(monkeypatch)


def change(tensors: dict[str, torch.Tensor], seed: int) -> None:
    for name, tensor in state(seed).items():
        tensors[name].copy_(tensor)


def test_training_goes_on_at_once_and_the_save_is_handed_over_when_its_copy_is_done(
    cuda: StandInCuda, pair: tuple[Channel, Channel]
) -> None:
    ours, theirs = pair
    tensors = state(1)
    checkpointer = Checkpointer(tensors, ours, {})
    assert checkpointer.save(1, {})
    for seed in (2, 3, 4):
        change(tensors, seed)
        checkpointer.poll()
    assert (cuda.copies, cuda.waits) == (1, 0)
    with pytest.raises(TimeoutError):
        theirs.receive(timeout=0.05)
    cuda.finish()
    checkpointer.poll()
    snapshot = Receiver(theirs).receive()[1]
    assert snapshot.lock(wait=False)
    assert snapshot.note["step"] == 1
    assert same(tensors_of(snapshot.body), state(1))


def test_the_next_save_waits_for_the_copy_of_the_one_before_since_both_leave_one_buffer(
    cuda: StandInCuda, pair: tuple[Channel, Channel]
) -> None:
    ours, theirs = pair
    tensors = state(1)
    checkpointer, uploader = Checkpointer(tensors, ours, {}), Receiver(theirs)
    for step in (1, 2, 3):
        change(tensors, step)
        assert checkpointer.save(step, {})
        assert cuda.waits == step - 1
        if step > 1:
            seq, snapshot = uploader.receive()
            assert snapshot.lock(wait=False)
            assert snapshot.note["step"] == step - 1
            assert same(tensors_of(snapshot.body), state(step - 1))
            snapshot.unlock()
            uploader.committed(seq)


def test_a_copy_into_a_buffer_that_is_still_read_is_a_mistake(cuda: StandInCuda) -> None:
    layout = Layout.of(state(1))
    copier = Copier(state(1), layout, [Snapshot.create(layout.bytes) for _ in range(2)])
    copier.start(0)
    with pytest.raises(AssertionError, match="still read"):
        copier.start(1)


def test_a_save_is_what_torch_copies_in_one_kernel_for_each_type(cuda: StandInCuda) -> None:
    """Its fast path wants one type in a list, and of each pair the same sizes and strides."""
    layout = Layout.of(state(1))
    copier = Copier(state(1), layout, [Snapshot.create(layout.bytes)])
    (targets,) = copier.targets
    types = {tensor.dtype for tensor in state(1).values()}
    assert [len({tensor.dtype for tensor in some}) for some in targets] == [1] * len(types)
    for some, sources in zip(targets, copier.sources, strict=True):
        assert [(t.dtype, t.shape, t.stride()) for t in some] == [(s.dtype, s.shape, s.stride()) for s in sources]
    assert targets[0][0].data_ptr() % 16 == 0


def test_the_last_save_waits_for_its_copy(cuda: StandInCuda, pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    checkpointer = Checkpointer(state(1), ours, {})
    with pytest.raises(StoreError, match="in time"):  # nobody commits it
        checkpointer.save_last(5, {}, lambda: 0.0)
    assert Receiver(theirs).receive()[1].note["step"] == 5
