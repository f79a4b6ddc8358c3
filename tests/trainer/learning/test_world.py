"""What the processes of a run tell each other, and how often. The other process is a twin, with the same values."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore

from tests.trainer import lab as lab_module
from tests.trainer.lab import CONFIG, STEPS, Lab
from trainer import setup
from trainer import train as module
from trainer.contract import Exit, MachineError
from trainer.learning import execution
from trainer.learning import world as world_module
from trainer.learning.world import Wishes, World, is_head, main_of, meeting_point, share_buffers

TWO = World(0, 0, 2, torch.device("cpu"))


def test_a_step_takes_one_round_of_all_processes_beside_its_gradients(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[int] = []  # the step after which each was

    class Done:
        def wait(self) -> None:
            pass

    def with_a_twin(values: Tensor, async_op: bool = False) -> Done:
        rounds.append(step)
        with torch.inference_mode():  # as a sum over an evaluation is
            values *= 2
        return Done()

    step, stepped = 0, module.step

    def counted(run: setup.Run) -> None:
        nonlocal step
        stepped(run)
        step = run.state.step

    monkeypatch.setattr(module, "step", counted)
    monkeypatch.setattr(lab_module, "WORLD", TWO)
    monkeypatch.setattr(execution, "wrap", lambda net, world, **options: net)
    monkeypatch.setattr(torch.distributed, "all_reduce", with_a_twin)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda values, src: None)
    monkeypatch.setattr(setup, "agree_on_start", lambda *arguments: None)
    monkeypatch.setattr(setup, "looking_out", lambda *arguments: nullcontext(iter))
    monkeypatch.setattr(setup, "agree_on_data", lambda *arguments: None)
    config = replace(CONFIG, val_every_epochs=3, log_every_steps=100)
    assert lab.train(config) == (Exit.FINISHED, "6 steps are done")
    assert [rounds.count(number) for number in range(2, STEPS)] == [1] * (STEPS - 2)


def test_one_process_knows_what_it_wants_after_the_step_and_asks_nobody() -> None:
    wants = [False, False]
    wishes = Wishes(lambda: list(wants), replace(TWO, size=1))
    wishes.ask()
    wants[1] = True
    assert wishes.answer() == [False, True]


def test_the_main_process_sends_all_buffers_in_one_call_for_each_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def network(number: int) -> nn.Module:
        net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.BatchNorm2d(2))
        net.register_buffer("table", torch.full((2, 4, 4, 3), float(number)).permute(0, 3, 1, 2))  # channels last
        for buffer in net.buffers():
            buffer.copy_(torch.arange(buffer.numel()).view_as(buffer) + number)
        return net

    sent: list[Tensor] = []
    main, other = network(7), network(9)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda values, src: sent.append(values.clone()))
    share_buffers(main, TWO)
    assert [(values.dtype, len(values)) for values in sent] == [(torch.float32, 2 * (3 + 5 + 2) + 96), (torch.int64, 3)]

    monkeypatch.setattr(torch.distributed, "broadcast", lambda values, src: values.copy_(sent.pop(0)))
    share_buffers(other, TWO)
    for (name, expected), found in zip(main.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(found, expected), name
        assert found.stride() == expected.stride()
    assert torch.equal(next(main.buffers()), next(network(7).buffers())), "its own stay"


@pytest.mark.parametrize(
    ("given", "head"),
    [({}, True), ({"GROUP_RANK": "1"}, False), ({"GROUP_RANK": "1", "TRAINER_IS_HEAD": "1"}, True),
     ({"GROUP_RANK": "0", "TRAINER_IS_HEAD": "0"}, False), ({"LOCAL_RANK": "1", "TRAINER_IS_HEAD": "1"}, False),
     ({"LOCAL_RANK": "1"}, False), ({"GROUP_RANK": "0", "TRAINER_IS_HEAD": ""}, True)],
)  # fmt: skip
def test_the_main_process_is_the_first_of_the_machine_that_owns_the_run_or_of_torchruns_first(
    given: dict[str, str], head: bool
) -> None:
    assert is_head(given) is head


def meet(heads: list[bool], *, size: int) -> list[int | str]:
    """What `main_of` tells each of these processes: the number of the main one, or the error."""

    def one(rank: int) -> int | str:
        try:
            return main_of(store, rank, size, heads[rank])
        except MachineError as error:
            return str(error)

    store = HashStore()
    with ThreadPoolExecutor(len(heads)) as pool:
        return list(pool.map(one, range(len(heads))))


def test_all_processes_learn_which_one_is_the_main_one() -> None:
    assert meet([False, False, True, False], size=4) == [2] * 4


@pytest.mark.parametrize(
    ("heads", "said"),
    [([True, False, True], "2 of the 3 processes that met say that their machine owns the run (numbers 0, 2)"),
     ([False, False, False], "0 of the 3 processes that met say that their machine owns the run (numbers -)")],
)  # fmt: skip
def test_two_owners_of_a_run_and_none_are_refused_by_every_process(heads: list[bool], said: str) -> None:
    for answer in meet(heads, size=3):
        assert str(answer).startswith(said)


def test_processes_that_do_not_come_are_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_module, "MEETING_SECONDS", 0.2)
    for answer in meet([True, False], size=4):
        assert str(answer).startswith("2 of 4 processes did not come within 0.2 s (numbers 2, 3)")


def test_a_meeting_point_that_nobody_hears_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(url: str) -> Iterator[tuple[HashStore, int, int]]:
        raise torch.distributed.DistNetworkError("The client socket has failed to connect\nmore")
        yield

    monkeypatch.setattr(world_module, "rendezvous", nobody)
    with pytest.raises(MachineError, match=r"10\.0\.0\.9:29400 does not answer \(The client socket has failed to co"):
        meeting_point({"MASTER_ADDR": "10.0.0.9", "MASTER_PORT": "29400"})
