"""What the processes of a run tell each other, and how often. The other process is a twin, with the same values."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.trainer import lab as lab_module
from tests.trainer.lab import CONFIG, STEPS, Lab
from trainer import setup
from trainer import train as module
from trainer.contract import Exit
from trainer.learning import execution
from trainer.learning.world import Wishes, World, share_buffers

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
